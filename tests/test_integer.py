import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import dqat
from dqat import integer
from dqat.export.flatbuffer import Flatbuffer
from dqat.keras_api import keras


def test_it_works_without_importing_tensorflow(run_python):
    script = """
import sys, numpy as np
from dqat import integer
print(integer.quantize(np.float32([-1, 0.5]), scale=0.5, zero_point=3).tolist(), "tensorflow" in sys.modules)
"""
    assert run_python("-c", script).split("\n")[0] == "[1, 4] False"


def test_operations_can_still_be_loaded_after_it(run_python):
    script = """
from dqat import integer
integer.quantize_multiplier(0.5)
import dqat, numpy as np
print(dqat.ops.fake_quant(np.float32([-5, 5]), -1.0, 1.0).numpy().tolist())
"""
    expected = dqat.ops.fake_quant(np.float32([-5, 5]), -1.0, 1.0).numpy().tolist()
    assert run_python("-c", script).split("\n")[0] == str(expected)


@given(st.floats(1e-8, 1e8), st.lists(st.integers(-(2**20), 2**20), min_size=1))
def test_requantize_is_the_product_within_one(factor, values):
    multiplier, shift = integer.quantize_multiplier(factor)
    assert 2**30 <= multiplier < 2**31
    assert multiplier * 2.0 ** (shift - 31) == pytest.approx(factor, rel=2**-30)
    exact = np.float64(values) * factor
    values = np.int32(values)[np.abs(exact) < 2**30]
    got = integer.requantize(values, multiplier=multiplier, shift=shift)
    exact = values * factor
    assert (np.abs(got - exact) <= 1 + np.abs(exact) * 2**-29).all()


@pytest.mark.parametrize("value, shift, expected", [(5, 0, 3), (-5, 0, -2), (10, -1, 3), (-10, -1, -3), (7, 2, 14)])
def test_ties_go_up_in_the_product_and_away_from_zero_in_the_shift(value, shift, expected):
    """The multiplier 2^30 stands for a half."""
    assert integer.requantize(np.int32([value]), multiplier=2**30, shift=shift).tolist() == [expected]


@pytest.mark.parametrize(
    "low, high, values",
    [
        (-1.3, 2.1, np.random.default_rng(0).normal(size=10_000)),
        (-1.0, 1.0, np.arange(256) / 127.5 - 1.0),  # each in the middle of two levels
        (0.0, 1.0, np.arange(256) / 255.0),
    ],
)
def test_quantize_rounds_as_fake_quant_does(low, high, values):
    x = values.astype(np.float32)
    parameters = integer.quantization_parameters(np.float32(low), np.float32(high))
    scale, zero_point = float(parameters["scale"]), int(parameters["zero_point"])
    codes = integer.quantize(x, scale=scale, zero_point=zero_point)
    assert (codes.min(), codes.max()) == (-128, 127)
    faked = dqat.ops.fake_quant(x, low, high).numpy()
    np.testing.assert_array_equal(codes, np.rint(faked / scale) + zero_point)


def test_quantize_puts_the_middle_of_two_levels_where_fake_quant_does(rng):
    """Pixels of images that were resized, or scaled from 0 to 255, lie there, and float32 decides."""
    for _ in range(200):
        low, high = np.float32(rng.uniform([-2.0, 0.5], [-0.5, 2.0]))
        parameters = integer.quantization_parameters(low, high)
        scale, zero_point = float(parameters["scale"]), int(parameters["zero_point"])
        x = np.float32((np.arange(-130, 130) + 0.5) * scale)
        expected = np.rint(dqat.ops.fake_quant(x, low, high).numpy() / scale) + zero_point
        np.testing.assert_array_equal(integer.quantize(x, scale=scale, zero_point=zero_point), expected)


def test_fully_connected_is_the_interpreter_bit_for_bit(speech, tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(40, activation="relu"), keras.layers.Dense(9)])
    quantized = dqat.quantize_model(model)
    for layer in quantized.layers[2:]:
        layer.layer.bias.assign(np.random.default_rng(1).normal(size=layer.layer.bias.shape) / 10)
    frames = speech[0][0].reshape(-1, 12)[-2000:]
    quantized(frames, training=True)
    path = dqat.export_tflite(quantized, tmp_path / "dense.tflite").path
    flatbuffer = Flatbuffer(path.read_bytes())
    interpreter = tf.lite.Interpreter(
        str(path), experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_REF
    )
    interpreter.allocate_tensors()
    scale, zero_point = flatbuffer.parameters(flatbuffer.graph.inputs[0])
    codes = integer.quantize(frames, scale=scale, zero_point=zero_point).astype(np.int8)
    expected = []
    for code in codes:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], code[np.newaxis])
        interpreter.invoke()
        expected.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    values = codes
    for operator in flatbuffer.graph.operators:
        source, weight, bias = operator.inputs
        (scale_in, zero_in), (scale_out, zero_out) = map(flatbuffer.parameters, (source, operator.outputs[0]))
        fused_relu = operator.builtinOptions.fusedActivationFunction == 1
        values = integer.fully_connected(
            values,
            flatbuffer.constant(weight),
            flatbuffer.constant(bias),
            input_scale=scale_in,
            input_zero_point=zero_in,
            weight_scale=flatbuffer.parameters(weight)[0],
            output_scale=scale_out,
            output_zero_point=zero_out,
            lowest=zero_out if fused_relu else -128,
        )
    np.testing.assert_array_equal(values, expected)
    assert len(np.unique(values)) > 100


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: integer.quantize(np.float32([1]), scale=0.0, zero_point=0),
            ValueError,
            "scale must be finite and pos",
        ),
        (lambda: integer.requantize(np.int32([1]), multiplier=1, shift=31), ValueError, "shift must be -31 to 30"),
        (lambda: integer.requantize(np.float32([1]), multiplier=1, shift=0), TypeError, "incompatible"),
    ],
)
def test_wrong_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
