"""Every layer that is said to be supported goes the whole way."""

import re

import layer_page
import numpy as np
import pytest
import tensorflow as tf
from layer_table import LEAST_EQUAL, ROWS

import dqat
from dqat.export.flatbuffer import Flatbuffer
from dqat.export.inspection import inspect_tflite
from dqat.keras_api import keras
from dqat.rules import absent

layers = keras.layers
#: Rows that TensorFlow 2.21's default kernels compute wrongly: BATCH_MATMUL there, see docs/limits.md.
WRONG_ON_CURRENT = ("Attention", "Attention, causal", "AdditiveAttention", "Dot")


@pytest.fixture(scope="module")
def trained_row():
    """The quantized model of a row, trained for three steps; each row is trained once."""
    made = {}

    def of(name):
        if name not in made:
            model = dqat.quantize_model(ROWS[name].model())
            inputs = ROWS[name].samples(32)
            inputs = inputs if len(inputs) > 1 else inputs[0]
            model.compile(keras.optimizers.SGD(1e-3), "mse")
            targets = ROWS[name].targets(model, 32)
            losses = model.fit(inputs, targets, batch_size=16, epochs=2, verbose=0).history["loss"]
            assert np.isfinite(losses).all()
            made[name] = model, inputs
        return made[name]

    return of


@pytest.mark.parametrize("name", ROWS)
def test_all_values_of_the_simulation_lie_on_a_grid(trained_row, name):
    model, inputs = trained_row(name)
    outputs = tf.nest.flatten(model(inputs, training=False))
    assert all(len(np.unique(output)) <= 256 for output in outputs)
    assert all(np.isfinite(part).all() for range_ in dqat.ranges(model).values() for part in range_)


@pytest.mark.parametrize("name", ROWS)
def test_a_saved_model_is_the_same_bit_for_bit(trained_row, tmp_path, name):
    model, inputs = trained_row(name)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    tf.nest.map_structure(np.testing.assert_array_equal, loaded(inputs), model(inputs))
    before, after = dqat.ranges(model), dqat.ranges(loaded)
    assert before.keys() == after.keys()
    for path, range_ in before.items():
        np.testing.assert_array_equal(range_, after[path])
    assert str(dqat.coverage(loaded)) == str(dqat.coverage(model))


@pytest.mark.parametrize("name", ROWS)
def test_the_integer_file_is_what_was_simulated(trained_row, tmp_path, name, request):
    if name in WRONG_ON_CURRENT and not tf.__version__.startswith("2.15."):
        request.applymarker(pytest.mark.xfail(strict=True, reason="the runtime's kernel is wrong: docs/limits.md"))
    model, inputs = trained_row(name)
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    assert Flatbuffer(report.path.read_bytes()).float_tensors() == []
    parity = dqat.verify(model, report.path, inputs)
    assert parity.equal >= LEAST_EQUAL.get(name, 1.0)
    assert parity.within_1_lsb >= ROWS[name].least
    assert parity.max_lsb <= ROWS[name].largest
    assert all(len(np.unique(output)) > 5 for output in tf.nest.flatten(parity.integer))


def test_the_page_of_layers_is_this_table():
    assert layer_page.PAGE.read_text() == layer_page.text(), "run python tests/layer_page.py"


@pytest.mark.parametrize("name", [name for name in ROWS if "MultiHeadAttention" in name])
def test_keys_and_values_have_the_zero_point_0(trained_row, tmp_path, name):
    """TensorFlow 2.21's XNNPACK leaves another one out."""
    report = dqat.export_tflite(trained_row(name)[0], tmp_path / "model.tflite")
    graph = inspect_tflite(report.path).subgraphs[0]
    products = [operator for operator in graph.operators if operator.name == "BATCH_MATMUL"]
    assert products
    assert [graph.tensors[operator.inputs[1]].zero_points[0] for operator in products] == [0] * len(products)


def test_ranges_that_cannot_be_one_are_named_at_once():
    first, second = keras.Input((4,)), keras.Input((4,))
    softmax = keras.layers.Softmax(name="chances")(first)
    dense = keras.layers.Dense(4, name="features")(second)
    model = keras.Model([first, second], keras.layers.Concatenate(name="together")([softmax, dense]))
    with pytest.raises(dqat.UnsupportedLayerError) as error:
        dqat.quantize_model(model)
    for words in ("chances", "features", "together", "need one scale", "found in training", "QuantizePoint"):
        assert words in str(error.value)


def _smallest_input(layer):
    name = type(layer).__name__
    rank = next((int(digit) for digit in name if digit.isdigit()), 1)
    return keras.Input((*([3] if "LSTM" in name or "Time" in name else []), *[4] * rank, 2))


@pytest.mark.parametrize(
    "layer, reason",
    [
        *(
            (make(), re.escape(absent.LAYERS[cls][0]))
            for cls, make in {
                layers.Conv3DTranspose: lambda: layers.Conv3DTranspose(2, 3),
                layers.ConvLSTM1D: lambda: layers.ConvLSTM1D(2, 2),
                layers.ConvLSTM2D: lambda: layers.ConvLSTM2D(2, 2),
                layers.ConvLSTM3D: lambda: layers.ConvLSTM3D(2, 2),
                layers.LocallyConnected1D: lambda: layers.LocallyConnected1D(2, 2),
                layers.LocallyConnected2D: lambda: layers.LocallyConnected2D(2, 2),
                layers.ThresholdedReLU: layers.ThresholdedReLU,
                layers.TimeDistributed: lambda: layers.TimeDistributed(layers.LSTM(2)),
                layers.Lambda: lambda: layers.Lambda(tf.identity),
            }.items()
        ),
        *((layers.Activation(name), re.escape(reason)) for name, (reason, _) in absent.ACTIVATIONS.items()),
        (layers.MaxPooling2D(data_format="channels_first"), "data_format must be 'channels_last'"),
        (layers.LayerNormalization(axis=1), "axis must be the last one"),
    ],
    ids=lambda value: value.name if isinstance(value, keras.layers.Layer) else "",
)
def test_what_tflite_cannot_run_in_integers_is_refused_with_the_reason(layer, reason):
    inputs = _smallest_input(layer)
    with pytest.raises(dqat.UnsupportedLayerError, match=reason):
        dqat.quantize_model(keras.Model(inputs, layer(inputs)))


def test_options_without_an_integer_counterpart_are_refused_with_the_reason():
    first, second = keras.Input((4,)), keras.Input((4,))
    cosine = layers.Dot(1, normalize=True)([first, second])
    with pytest.raises(dqat.UnsupportedLayerError, match="normalize must be False"):
        dqat.quantize_model(keras.Model([first, second], cosine))
    rows = keras.Input((6, 8))
    concat = layers.Attention(score_mode="concat")([rows, rows])
    with pytest.raises(dqat.UnsupportedLayerError, match="score_mode must be 'dot'"):
        dqat.quantize_model(keras.Model(rows, concat))
    mask = keras.Input((6, 6), dtype="bool")
    masked = layers.MultiHeadAttention(2, 4)(rows, rows, attention_mask=mask)
    with pytest.raises(dqat.UnsupportedLayerError, match="depends on the data"):
        dqat.quantize_model(keras.Model([rows, mask], masked))


def test_a_mask_that_embeddings_make_is_refused_by_attention():
    words = keras.Input((6,))
    embedded = layers.Embedding(9, 8, mask_zero=True)(words)
    attended = layers.MultiHeadAttention(2, 4, name="heads")(embedded, embedded)
    with pytest.raises(ValueError, match="'heads'.*depends on the data"):
        dqat.quantize_model(keras.Model(words, attended))


def test_the_grid_of_a_convolution_is_that_of_the_folded_one(trained_row):
    """Folding multiplies each channel's weights with a factor: the integers stay, but for the factor's sign."""
    model, _ = trained_row("Conv2D, BatchNormalization")
    layer = model.layers[2]
    factor = layer.fold_factor().numpy()
    assert (factor < 0).any()
    quantized = layer.quantized_weights()["kernel"].numpy()
    folded = layer.inference_weights()["kernel"]
    channels = (0, 1, 2)
    codes, folded_codes = (
        np.rint(kernel / (np.abs(kernel).max(channels) / 127)).astype(int) for kernel in (quantized, folded)
    )
    np.testing.assert_array_equal(folded_codes, codes * np.sign(factor).astype(int))


def test_layers_whose_tensors_need_one_scale_have_one_range(trained_row):
    model, _ = trained_row("Concatenate")
    ranges = list(dqat.ranges(model).values())
    assert len(ranges) == 2
    np.testing.assert_array_equal(*ranges)
    assert "shares the range of" in str(dqat.coverage(model))


def test_a_row_is_quantized_for_training_as_tensorflow_differentiates_it(trained_row):
    model, inputs = trained_row("Conv2D, BatchNormalization, ReLU")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(inputs, training=True) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(gradient is not None for gradient in gradients)


def two_relus(x):
    return layers.Add()([layers.ReLU()(x), layers.ReLU(6.0)(x)])


#: Behind a tensor that is quantized before it, and behind operators that compute it themselves.
RELUS = {
    "of a sum that is a state": lambda x: layers.ReLU()(layers.GRU(4)(x)),
    "of a product": lambda x: layers.ReLU(6.0)(layers.Activation("swish")(x)),
    "of a sum that others read": lambda x: two_relus(layers.Add()([x, layers.Dense(4)(x)])),
    "in a transposed convolution": lambda x: layers.Conv1DTranspose(3, 2, activation="relu", use_bias=False)(x),
    "behind a transposed convolution": lambda x: layers.ReLU()(layers.Conv1DTranspose(3, 2, use_bias=False)(x)),
}


@pytest.mark.parametrize("name", RELUS)
def test_a_relu_has_every_level_of_the_simulation(name, tmp_path, rng):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 4))
    model = dqat.quantize_model(keras.Model(inputs, RELUS[name](inputs)))
    samples = rng.standard_normal((64, 6, 4), np.float32)
    for _ in range(2):
        model(samples, training=True)
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    assert dqat.verify(model, report.path, samples).equal == 1.0


def test_a_range_whose_zero_point_lies_between_two_integers_is_exported_as_it_was_simulated(tmp_path, rng):
    inputs = keras.Input((6, 6, 3))
    model = dqat.quantize_model(keras.Model(inputs, layers.Conv2D(4, 3)(inputs)))
    images = rng.uniform(-1.0, 1.0, (8, 6, 6, 3)).astype(np.float32)
    images[0, 0, 0, :2] = -1.0, 1.0  # as images are, that were scaled from 0 to 255
    model(images, training=True)
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    assert dqat.verify(model, report.path, images).within_1_lsb == 1.0
