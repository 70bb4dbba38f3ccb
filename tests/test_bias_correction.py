import numpy as np
import pytest

import dqat
from dqat.algorithms import calibrate, correct_biases, mean_shifts
from dqat.keras_api import keras

layers = keras.layers
FOUR_BITS = dqat.Scheme.with_bits(4, 8, per_channel=False)


@pytest.fixture(scope="module")
def quantized(digits, digit_network):
    """The network with 4-bit weights, one range per tensor, without training. Do not change it."""
    model = dqat.quantize_model(digit_network, scheme=FOUR_BITS)
    calibrate(model, [digits[0][0][:256]])
    return model


@pytest.fixture(scope="module")
def corrected(digits, quantized):
    return correct_biases(quantized, digits[0][0][:256])


def accuracy(model, digits):
    images, classes = digits[1]
    return float((model.predict(images, verbose=0).argmax(-1) == classes).mean())


def largest_shift(shifts):
    return max(np.abs(shift).max() for shift in shifts.values())


def test_correction_gives_back_most_of_what_four_bits_cost(digits, digit_network, quantized, corrected):
    exact, before, after = (accuracy(model, digits) for model in (digit_network, quantized, corrected))
    assert before < exact - 0.05, "four bits cost something, or this test shows nothing"
    assert after - before > 0.4 * (exact - before)


def test_mean_shifts_vanish_on_images_that_were_not_seen(digits, quantized, corrected):
    unseen = digits[0][0][512:1024]
    before = mean_shifts(quantized, unseen)
    after = mean_shifts(corrected, unseen, reference=quantized)
    assert list(before) == ["first", "depthwise_0", "pointwise_0", "depthwise_1", "pointwise_1", "last"]
    assert largest_shift(after) < 0.25 * largest_shift(before)


def test_biases_alone_change_and_the_original_stays(digits, quantized, corrected):
    for variable, before, after in zip(
        corrected.weights, quantized.get_weights(), corrected.get_weights(), strict=True
    ):
        is_bias = "/bias" in variable.name or "/beta" in variable.name
        # Those of a convolution whose BatchNormalization has a beta are in that one.
        assert np.array_equal(before, after) != is_bias, variable.name
    again = correct_biases(quantized, digits[0][0][:256])
    for one, other in zip(again.get_weights(), corrected.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_file_has_the_corrected_biases(digits, digit_network, tmp_path):
    model = dqat.quantize_model(digit_network)
    calibrate(model, [digits[0][0][:256]])
    model = correct_biases(model, digits[0][0][:256])
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    assert dqat.verify(model, report.path, digits[1][0][:64]).within_1_lsb >= 0.99


@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.Conv1D(5, 3), (8, 3)),
        (layers.Conv2DTranspose(5, 3), (4, 4, 3)),
        (layers.SeparableConv2D(5, 3, activation="relu"), (6, 6, 3)),
        (layers.Dense(5, activation="tanh"), (6,)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_layers_of_every_kind_are_corrected_before_their_activation(layer, shape, rng):
    model = dqat.quantize_model(keras.Sequential([keras.Input(shape), layer]), scheme=FOUR_BITS)
    samples = np.abs(rng.normal(size=(64, *shape))).astype(np.float32)
    calibrate(model, [samples])
    before = largest_shift(mean_shifts(model, samples))
    after = largest_shift(mean_shifts(correct_biases(model, samples), samples, reference=model))
    assert before > 0.01
    assert after < 0.1 * before, "what is left is the rounding of biases to the file's int32"


def test_layers_without_a_bias_and_shared_layers_stay_as_they_are(rng):
    inputs = keras.Input((6,))
    shared = layers.Dense(6)
    model = keras.Model(inputs, layers.Dense(3, use_bias=False)(shared(shared(inputs))))
    quantized = dqat.quantize_model(model)
    samples = rng.normal(size=(8, 6)).astype(np.float32)
    calibrate(quantized, [samples])
    assert mean_shifts(quantized, samples) == {}


def test_calibration_changes_no_weight_and_drops_nothing_out(rng):
    stack = [keras.Input((6,)), layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.9), layers.Dense(2)]
    model = dqat.quantize_model(keras.Sequential(stack))
    before = {weight.name: weight.numpy() for weight in model.get_layer(stack[2].name).weights}
    samples = rng.normal(size=(64, 6)).astype(np.float32)
    calibrate(model, [samples])
    for weight in model.get_layer(stack[2].name).weights:
        np.testing.assert_array_equal(weight.numpy(), before[weight.name])
    first, last = stack[1], stack[4]
    low, high = dqat.ranges(model)[f"{last.name}/output"]
    outputs = stack[4](stack[2](first(samples), training=False)).numpy()
    np.testing.assert_allclose([low, high], [outputs.min(), outputs.max()], rtol=0.01)


def test_what_cannot_be_corrected_is_refused(rng):
    model = dqat.quantize_model(keras.Sequential([keras.Input((6,)), layers.Dense(4, name="dense")]))
    with pytest.raises(ValueError, match="no range recorded yet for .*dense/output"):
        correct_biases(model, np.zeros((2, 6), np.float32))
    with pytest.raises(TypeError, match="is not quantized"):
        correct_biases(keras.Sequential([keras.Input((6,)), layers.Dense(4)]), np.zeros((2, 6), np.float32))
    with pytest.raises(ValueError, match="batches is empty"):
        calibrate(model, [])
    recurrent = dqat.quantize_model(keras.Sequential([keras.Input((5, 6)), layers.GRU(4, dropout=0.1, name="gru")]))
    with pytest.raises(ValueError, match="'gru' has dropout inside its recurrence"):
        calibrate(recurrent, [np.zeros((2, 5, 6), np.float32)])
