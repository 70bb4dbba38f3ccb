import numpy as np
import pytest
import tensorflow as tf
from conftest import compiled, speech_model

import dqat
from dqat.keras_api import keras
from dqat.layers import wrapper

layers = keras.layers


def model_of(*stack, shape=(29, 12)):
    return keras.Sequential([keras.Input(shape), *stack])


def test_the_copy_has_the_float_models_weights_and_leaves_it_alone(speech):
    model = speech_model()
    before = [weight.copy() for weight in model.get_weights()]
    quantized = dqat.quantize_model(model)
    compiled(quantized).fit(speech[0][0][:60], speech[0][1][:60], epochs=1, verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    again = dqat.quantize_model(model)
    for ours, theirs in zip(again.trainable_weights, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_without_ranges_the_model_differs_from_float_by_its_weights_alone(speech):
    model = speech_model()
    quantized = dqat.quantize_model(model)
    samples = speech[1][0][:32]
    # Weights on 255 levels: relative error of a weight up to 1/254 of the largest.
    np.testing.assert_allclose(quantized(samples), model(samples), atol=0.05)
    assert np.abs(quantized(samples) - model(samples)).max() > 0


def test_sequential_models_are_quantized_too(speech):
    model = model_of(layers.LSTM(8), layers.Dense(3, activation="relu"), layers.Dense(2))
    quantized = dqat.quantize_model(model)
    assert quantized(speech[1][0][:4]).shape == (4, 2)


@pytest.mark.parametrize(
    "layer, words",
    [
        (
            layers.EinsumDense("abc,cd->abd", (None, 4), name="mine"),
            ["'mine' (EinsumDense)", "not supported yet", "Supported: Activation, ActivityRegularization, Add"],
        ),
        (
            layers.ThresholdedReLU(name="mine"),
            ["'mine' (ThresholdedReLU)", "TFLite has no operator for it", "Use ReLU"],
        ),
        (
            layers.LSTM(4, activation="gelu", name="mine"),
            ["'mine' (LSTM)", "activation must be one of tanh, sigmoid, relu, linear, got gelu"],
        ),
        (
            layers.GRU(4, recurrent_activation="hard_sigmoid", name="mine"),
            ["'mine' (GRU)", "recurrent_activation must be one of sigmoid, got hard_sigmoid"],
        ),
        (
            layers.Dense(4, activation="softsign", name="mine"),
            ["activation 'softsign' can't run in integers", "DIV computes in float", "Use tanh"],
        ),
        (layers.Activation("softplus", name="mine"), ["'mine' (Activation)", "activation 'softplus'"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, layers.Layer) else "",
)
def test_a_layer_that_is_not_supported_is_named(layer, words):
    with pytest.raises(dqat.UnsupportedLayerError) as error:
        dqat.quantize_model(model_of(layer))
    for word in words:
        assert word in str(error.value)


def test_a_subclass_of_a_supported_layer_is_not_taken_for_it():
    class MyDense(layers.Dense):
        pass

    with pytest.raises(dqat.UnsupportedLayerError, match="MyDense"):
        dqat.quantize_model(model_of(MyDense(3)))


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def model_of_another_keras():
    """Keras 3 can't be installed beside TensorFlow 2.15: a class of its name and module stands for it."""
    return type("Model", (), {"__module__": "keras.src.models.model", "name": "mine"})()


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: Subclassed(), ValueError, "has no input shape yet: call it once"),
        (lambda: keras.Sequential([layers.Dense(3)]), ValueError, "has no input shape yet"),
        (lambda: dqat.quantize_model(speech_model()), ValueError, "is quantized already"),
        (lambda: layers.Dense(3), TypeError, r"model must be a .*Model, got .*Dense"),
        (model_of_another_keras, TypeError, r"is of another Keras \(keras.src.models.*build it with tf.keras"),
    ],
)
def test_a_model_that_cannot_be_quantized_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        dqat.quantize_model(make())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scheme": "int"}, "scheme must be a Scheme or a name such as .*w4a8.*, got 'int'"),
        ({"scheme": "int17"}, "num_bits must be 2 to 16, got 17"),
        ({"range_sync": "mean"}, "range_sync must be one of delayed, exact, off, got 'mean'"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite must be one of raise, skip, got 'ignore'"),
    ],
)
def test_wrong_options_are_refused_with_what_is_accepted(options, message):
    with pytest.raises(ValueError, match=message):
        dqat.quantize_model(speech_model(), **options)


def test_coverage_names_every_layer_and_every_reason():
    model = speech_model()
    report = dqat.coverage(dqat.quantize_model(model))
    named = {row.layer for row in report.rows}
    assert {layer.name for layer in model.layers} - named == {"speech"}
    assert {row.tensor for row in report.rows if row.layer == "lstm_0"} == {
        "kernel",
        "recurrent_kernel",
        "hidden",
        "cell_state",
        "bias",
    }
    assert [(row.layer, row.tensor) for row in report.unquantized] == [
        ("dropout_0", ""),
        ("features", "output"),
    ]
    assert all(row.how for row in report.rows)
    assert "| lstm_0 | LSTM | cell_state | int16 per tensor" in report.markdown() == str(report)
    lines = report.text().splitlines()
    assert lines[0].split() == ["layer", "kind", "tensor", "quantized"] and len(lines) == 2 + len(report.rows)
    column = lines[0].index("tensor")
    assert {line[column - 2 : column] for line in lines[2:]} == {"  "}


def test_coverage_and_ranges_refuse_a_float_model():
    for function in (dqat.coverage, dqat.ranges):
        with pytest.raises(TypeError, match="is not quantized: call dqat.quantize_model"):
            function(speech_model())


def test_prescribed_output_ranges_are_those_of_the_kernels():
    model = model_of(layers.Dense(3, activation="tanh"), layers.Flatten(), layers.Dense(3, activation="softmax"))
    found = dqat.ranges(dqat.quantize_model(model))
    by_suffix = {path.split("_")[-1]: tuple(map(float, value)) for path, value in found.items()}
    assert by_suffix["tanh/output"] == (-1.0, 127 / 128)
    assert by_suffix["softmax/output"] == (0.0, 255 / 256)


def test_other_bits_train_and_export_names_them(rng, tmp_path):
    model = dqat.quantize_model(model_of(layers.Dense(6, name="dense"), shape=(8,)), scheme="w4a6")
    samples = rng.normal(size=(64, 8)).astype(np.float32)
    model.compile("adam", "mse")
    model.fit(samples, np.ones((64, 6)), epochs=2, verbose=0)
    assert len(np.unique(model.get_layer("dense").quantized_weights()["kernel"])) <= 15
    assert len(np.unique(model.predict(samples, verbose=0))) <= 64
    with pytest.raises(dqat.ExportError, match=r'dense/output \(6 bits\), dense/kernel \(4 bits\).*scheme="int8"'):
        dqat.export_tflite(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["delayed", "exact"])
@pytest.mark.parametrize(
    ("layer", "operation"), [(lambda: layers.ReLU(6.0), "Relu6"), (lambda: layers.Activation("relu"), "Relu")]
)
def test_relu_within_the_quantizing_operation_trains_to_the_bits_of_relu_before_it(
    monkeypatch, rng, mode, layer, operation
):
    inputs = keras.Input((6, 6, 3))
    outputs = layers.BatchNormalization(name="norm")(layers.Conv2D(8, 3, name="conv", use_bias=False)(inputs))
    outputs = layers.Dense(2, name="dense")(layers.GlobalAveragePooling2D(name="pool")(layer()(outputs)))
    network = keras.Model(inputs, outputs)
    samples, targets = rng.normal(size=(32, 6, 6, 3)).astype(np.float32), rng.normal(size=(32, 2)).astype(np.float32)
    trained, operations = [], []
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(wrapper, "relu_of", lambda layer: None)
        model = dqat.quantize_model(network, range_sync=mode)
        model.compile(keras.optimizers.SGD(0.5), "mse")
        model.fit(samples, targets, batch_size=8, epochs=3, verbose=0, shuffle=False)
        trained.append([*model.get_weights(), *(end for range_ in dqat.ranges(model).values() for end in range_)])
        graph = tf.function(model).get_concrete_function(tf.TensorSpec([8, 6, 6, 3]), training=True).graph
        operations.append([each.type for each in graph.get_operations()])
    for together, apart in zip(*trained, strict=True):
        np.testing.assert_array_equal(together, apart)
    # In exact mode the range is made of the values that it is for: they must be there before.
    assert (operation in operations[0]) == (mode == "exact")
    assert operation in operations[1]
