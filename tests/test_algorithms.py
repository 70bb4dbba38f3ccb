import numpy as np
import pytest

import dqat
from dqat.keras_api import keras

layers = keras.layers
PER_TENSOR = dqat.Scheme.with_bits(per_channel=False)


def network(*, norm):
    """Convolutions, one of them depthwise, whose channels differ by three orders of magnitude."""
    keras.utils.set_random_seed(0)
    after = [layers.BatchNormalization()] if norm else []
    stack = [
        keras.Input((12, 12, 3)),
        layers.Conv2D(16, 3, name="first"),
        *after,
        layers.ReLU(),
        layers.DepthwiseConv2D(3, activation="relu", name="depthwise"),
        layers.MaxPooling2D(),
        layers.Conv2D(8, 3, activation="relu", name="second"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(5),
    ]
    model = keras.Sequential(stack)
    spread = (10.0 ** np.random.default_rng(0).uniform(-1.5, 1.5, 16)).astype(np.float32)
    first, depthwise = model.get_layer("first"), model.get_layer("depthwise")
    if norm:
        stack[2].gamma.assign(spread)
        stack[2].moving_variance.assign(np.full(16, 0.5, np.float32))
    else:
        first.kernel.assign(first.kernel * spread)
    depthwise.depthwise_kernel.assign(depthwise.depthwise_kernel / spread[:, None])
    return model


def error_of_quantized(model, samples):
    """Of the weights alone: no range of activations is known yet."""
    quantized = dqat.quantize_model(model, scheme=PER_TENSOR)
    return float(np.mean((quantized(samples).numpy() - model(samples).numpy()) ** 2))


@pytest.mark.parametrize("norm", [False, True])
def test_equalized_models_compute_the_same_and_lose_less_when_quantized_per_tensor(norm, rng):
    model = network(norm=norm)
    samples = rng.normal(size=(32, 12, 12, 3)).astype(np.float32)
    before = [weight.copy() for weight in model.get_weights()]
    equalized = dqat.algorithms.equalize(model)
    np.testing.assert_allclose(equalized(samples), model(samples), rtol=1e-3, atol=1e-5)
    assert error_of_quantized(equalized, samples) < 0.3 * error_of_quantized(model, samples)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_channels_of_a_pair_end_with_like_ranges():
    equalized = dqat.algorithms.equalize(network(norm=False), rounds=30)
    first = np.abs(equalized.get_layer("first").kernel).max(axis=(0, 1, 2))
    depthwise = np.abs(equalized.get_layer("depthwise").depthwise_kernel).max(axis=(0, 1, 3))
    np.testing.assert_allclose(first, depthwise, rtol=0.05)


@pytest.mark.parametrize(
    "between",
    [layers.ReLU(6.0), layers.Activation("tanh"), layers.LayerNormalization()],
    ids=lambda layer: type(layer).__name__,
)
def test_what_would_notice_a_factor_keeps_a_pair_apart(between):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5), between, layers.Dense(4)])
    for old, new in zip(model.get_weights(), dqat.algorithms.equalize(model).get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_tensor_that_others_read_too_is_left_alone():
    inputs = keras.Input((6,))
    hidden = layers.Dense(5, activation="relu")(inputs)
    model = keras.Model(inputs, [layers.Dense(4)(hidden), hidden])
    for old, new in zip(model.get_weights(), dqat.algorithms.equalize(model).get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_rounds_are_at_least_one():
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        dqat.algorithms.equalize(network(norm=False), rounds=0)
