"""Every layer that is said to be supported goes the whole way."""

import numpy as np
import pytest
import tensorflow as tf
from layer_table import ROWS

import dqat
from dqat.export.flatbuffer import Flatbuffer
from dqat.keras_api import keras


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
            targets = np.zeros((32, *model.output_shape[1:]), np.float32)
            losses = model.fit(inputs, targets, batch_size=16, epochs=2, verbose=0).history["loss"]
            assert np.isfinite(losses).all()
            made[name] = model, inputs
        return made[name]

    return of


@pytest.mark.parametrize("name", ROWS)
def test_all_values_of_the_simulation_lie_on_a_grid(trained_row, name):
    model, inputs = trained_row(name)
    outputs = model(inputs, training=False).numpy()
    assert len(np.unique(outputs)) <= 256
    assert all(np.isfinite(part).all() for range_ in dqat.ranges(model).values() for part in range_)


@pytest.mark.parametrize("name", ROWS)
def test_a_saved_model_is_the_same_bit_for_bit(trained_row, tmp_path, name):
    model, inputs = trained_row(name)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(inputs, training=False), model(inputs, training=False))
    before, after = dqat.ranges(model), dqat.ranges(loaded)
    assert before.keys() == after.keys()
    for path, range_ in before.items():
        np.testing.assert_array_equal(range_, after[path])
    assert str(dqat.coverage(loaded)) == str(dqat.coverage(model))


@pytest.mark.parametrize("name", ROWS)
def test_the_integer_file_is_what_was_simulated(trained_row, tmp_path, name):
    model, inputs = trained_row(name)
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    assert Flatbuffer(report.path.read_bytes()).float_tensors() == []
    parity = dqat.verify(model, report.path, inputs)
    assert parity.within_1_lsb >= ROWS[name].least
    assert parity.max_lsb <= ROWS[name].largest
    assert len(np.unique(parity.integer)) > 5


def test_ranges_that_cannot_be_one_are_named_at_once():
    first, second = keras.Input((4,)), keras.Input((4,))
    softmax = keras.layers.Softmax(name="chances")(first)
    dense = keras.layers.Dense(4, name="features")(second)
    model = keras.Model([first, second], keras.layers.Concatenate(name="together")([softmax, dense]))
    with pytest.raises(dqat.UnsupportedLayerError) as error:
        dqat.quantize_model(model)
    for words in ("chances", "features", "together", "need one scale", "found in training", "QuantizePoint"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    "layer, shape, reason",
    [
        (keras.layers.Conv3D(2, 3), (4, 4, 4, 2), "CONV_3D computes in float only"),
        (keras.layers.MaxPooling3D(), (4, 4, 4, 2), "no pooling in three dimensions"),
        (keras.layers.AveragePooling3D(), (4, 4, 4, 2), "no pooling in three dimensions"),
        (keras.layers.Dot(1, normalize=True), None, "normalize must be False"),
        (keras.layers.Activation("softplus"), (4,), "activation 'softplus' is not supported yet"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.layers.Layer) else "",
)
def test_what_tflite_cannot_run_in_integers_is_refused_with_the_reason(layer, shape, reason):
    inputs = [keras.Input((4,)), keras.Input((4,))] if shape is None else keras.Input(shape)
    with pytest.raises(dqat.UnsupportedLayerError, match=reason):
        dqat.quantize_model(keras.Model(inputs, layer(inputs)))


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
