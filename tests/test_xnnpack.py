"""The arithmetic that the simulation follows is that of the interpreter's default kernels, at any scale."""

import numpy as np
import pytest
import tensorflow as tf

import dqat
from dqat.export.flatbuffer import Flatbuffer
from dqat.keras_api import keras
from dqat.layers import HardSwish, xnnpack

layers = keras.layers
SHAPE = (16, 16, 8)


def _hard_swish(x):
    return layers.Multiply()([x, layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)])


#: By operator: a model of it, the shapes of its inputs, and the layer whose kernel is asked.
OPERATORS = {
    "ADD": (lambda a, b: layers.Add()([a, b]), [SHAPE, SHAPE], layers.Add()),
    "SUB": (lambda a, b: layers.Subtract()([a, b]), [SHAPE, SHAPE], layers.Subtract()),
    "MUL": (lambda a, b: layers.Multiply()([a, b]), [SHAPE, (1, 1, 8)], layers.Multiply()),
    "MEAN": (layers.GlobalAveragePooling2D(), [(7, 7, 64)], layers.GlobalAveragePooling2D()),
    "LEAKY_RELU": (layers.LeakyReLU(0.2), [SHAPE], layers.LeakyReLU(0.2)),
    "HARD_SWISH": (_hard_swish, [SHAPE], HardSwish()),
}


def _ran(content, codes):
    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    for end, code in zip(interpreter.get_input_details(), codes, strict=True):
        interpreter.set_tensor(end["index"], code)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_kernel_gives_the_integers_of_the_interpreter(operator, tmp_path, rng):
    make, shapes, layer = OPERATORS[operator]
    inputs = [keras.Input(shape) for shape in shapes]
    model = dqat.quantize_model(keras.Model(inputs, make(*inputs)))
    samples = [rng.normal(size=(4, *shape)).astype(np.float32) for shape in shapes]
    model(samples if len(samples) > 1 else samples[0], training=True)
    content = dqat.export_tflite(model, tmp_path / "model.tflite").path.read_bytes()
    kernel, saturated = xnnpack.kernel_of(layer), 0.0
    for _ in range(12):
        file = Flatbuffer(content)
        assert file.operator_names() == [operator]
        ends = [int(index) for index in (*file.graph.inputs, *file.graph.outputs)]
        for index in ends:
            file.set_scale(index, float(np.exp(rng.normal(-4.0, 0.5))))
            file.tensor(index).quantization.zeroPoint = np.array([rng.integers(-128, 128)])
        scales, zero_points = zip(*(file.parameters(index) for index in ends), strict=True)
        codes = [rng.integers(-128, 128, (1, *shape)).astype(np.int8) for shape in shapes]
        levels = [
            tf.constant(code.astype(np.float32) - zero_point)
            for code, zero_point in zip(codes, zero_points, strict=False)
        ]
        *before, behind = map(tf.constant, scales)
        expected = np.clip(kernel(levels, before, behind).numpy() + zero_points[-1], -128, 127).astype(np.int8)
        saturated += np.isin(expected, (-128, 127)).mean() / 12
        np.testing.assert_array_equal(_ran(file.to_bytes(), codes), expected)
    assert saturated < 0.9


def test_both_products_of_a_separable_convolution_are_the_files(tmp_path, rng):
    """In float32 a handful of these 590,000 depthwise sums go to another level."""
    inputs = keras.Input((24, 24, 16))
    model = dqat.quantize_model(keras.Model(inputs, layers.SeparableConv2D(16, 5, padding="same")(inputs)))
    model.layers[-1].layer.depthwise_kernel.assign(rng.normal(size=(5, 5, 16, 1)))
    samples = rng.normal(size=(64, 24, 24, 16)).astype(np.float32)
    model(samples, training=True)
    file = dqat.export_tflite(model, tmp_path / "model.tflite")
    assert dqat.verify(model, file.path, samples, layer_samples=0).max_lsb == 0


def test_a_float_gradient_goes_through_what_is_moved_to_the_files_integers(rng):
    inputs = keras.Input(SHAPE)
    model = dqat.quantize_model(keras.Model(inputs, layers.Conv2D(4, 3, activation="relu")(inputs)))
    samples = tf.constant(rng.normal(size=(4, *SHAPE)).astype(np.float32))
    model(samples, training=True)
    samples *= 0.9  # off the ends of the ranges, where rounding decides whether a value is clipped
    gradients = []
    for training in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(samples)
            loss = tf.reduce_sum(model(samples, training=training))
        gradients.append(tape.gradient(loss, samples).numpy())
    np.testing.assert_allclose(*gradients, atol=1e-5)
