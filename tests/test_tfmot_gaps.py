"""What tfmot gets wrong in layers, done right: one test a claim."""

import numpy as np
import pytest
import tensorflow as tf

import dqat
from dqat import quantizers
from dqat.keras_api import keras
from dqat.specs import QuantizerSpec

layers = keras.layers


def quantized(outputs, inputs):
    return dqat.quantize_model(keras.Model(inputs, outputs))


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_kernels_of_any_rank_have_a_range_a_channel(rank, rng):
    kernel = rng.normal(size=(*range(2, 2 + rank - 1), 6)).astype(np.float32) * np.arange(1, 7, dtype=np.float32)
    spec = QuantizerSpec(symmetric=True, narrow_range=True, axis=-1)
    low, high = quantizers.weight_range(tf.constant(kernel), spec)
    expected = np.abs(kernel.reshape(-1, 6)).max(0)
    np.testing.assert_array_equal(high, expected)
    np.testing.assert_array_equal(low, -expected)
    steps = quantizers.quantize_weight(tf.constant(kernel), spec).numpy() / (expected / 127)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)


@pytest.mark.parametrize(
    "layer, shape",
    [(layers.Conv1D(6, 3), (8, 2)), (layers.Conv3D(6, 2), (4, 4, 4, 2))],
    ids=["Conv1D, rank 3", "Conv3D, rank 5"],
)
def test_convolutions_of_one_and_three_dimensions_are_quantized_per_channel(layer, shape):
    inputs = keras.Input(shape)
    model = quantized(layer(inputs), inputs)
    low, high = dqat.ranges(model)[f"{layer.name}/kernel"]
    np.testing.assert_array_equal(high, np.abs(layer.kernel.numpy().reshape(-1, 6)).max(0))
    np.testing.assert_array_equal(low, -high)


def test_a_depthwise_convolution_has_a_range_a_channel():
    inputs = keras.Input((6, 6, 3))
    layer = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")
    model = quantized(layer(inputs), inputs)
    _, high = dqat.ranges(model)["depthwise/depthwise_kernel"]
    assert high.shape == (6,)
    np.testing.assert_array_equal(high, np.abs(layer.depthwise_kernel.numpy()).max((0, 1)).reshape(-1))


@pytest.mark.parametrize("name", ["elu", "hard_sigmoid", "swish", "gelu", "mish", "tanh"])
def test_an_activation_inside_a_layer_is_quantized_on_both_sides(name, rng):
    inputs = keras.Input((6, 6, 3))
    model = quantized(layers.Conv2D(4, 3, activation=name, name="conv")(inputs), inputs)
    images = rng.normal(size=(8, 6, 6, 3)).astype(np.float32)
    model(images, training=True)
    found = dqat.ranges(model)
    before, after = found["conv/output"], found[f"conv_{name}/output"]
    function = keras.activations.get(name)
    outputs = model(images, training=False).numpy()
    assert len(np.unique(outputs)) <= 256
    assert before[0] < 0.0 < before[1], "the sum has a range of its own"
    if name in ("hard_sigmoid", "tanh"):
        np.testing.assert_allclose(after, {"hard_sigmoid": (0.0, 1.0), "tanh": (-1.0, 127 / 128)}[name])
    else:
        assert after[1] == pytest.approx(float(tf.reduce_max(function(before[1]))), rel=0.05)


def test_a_layer_with_several_outputs_is_quantized_at_each(rng):
    inputs = keras.Input((5, 8))
    attended, weights = layers.MultiHeadAttention(2, 4, name="heads")(inputs, inputs, return_attention_scores=True)
    sequence, *states = layers.LSTM(6, return_sequences=True, return_state=True, name="lstm")(attended)
    model = quantized([sequence, *states, weights], inputs)
    samples = rng.normal(size=(8, 5, 8)).astype(np.float32)
    model(samples, training=True)
    outputs = model(samples, training=False)
    assert len(outputs) == 4
    for output, levels in zip(outputs, (256, 256, 65536, 256), strict=True):
        assert len(np.unique(output)) <= levels
    assert {"heads/output", "heads/weights", "lstm/hidden"} <= dqat.ranges(model).keys()


def residual(inputs):
    """A concatenation of four, of which two are made by a pooling and a reshape; and a residual sum."""
    first, second = layers.Conv2D(4, 1, name="first")(inputs), layers.Conv2D(4, 1, name="second")(inputs)
    pooled = layers.AveragePooling2D(1, name="pooled")(first)
    reshaped = layers.Reshape((6, 6, 4), name="reshaped")(second)
    together = layers.Concatenate(name="together")([first, second, pooled, reshaped])
    return layers.Add(name="sum")([together, layers.Conv2D(16, 1, name="third")(together)])


def test_tensors_that_need_one_scale_are_one_group_before_training():
    inputs = keras.Input((6, 6, 3))
    model = quantized(residual(inputs), inputs)
    coverage = str(dqat.coverage(model))
    owners = {name for name in ("first", "second", "pooled") if f"shares the range of {name}/output" in coverage}
    assert len(owners) == 1, "one quantizer has the range of the whole group"
    found = dqat.ranges(model)
    model(np.random.default_rng(0).normal(size=(4, 6, 6, 3)), training=True)
    found = dqat.ranges(model)
    for name in ("second", "pooled"):
        np.testing.assert_array_equal(found[f"{name}/output"], found["first/output"])
    assert not np.array_equal(found["sum/output"], found["first/output"]), "an addition has a scale of its own"
    assert not np.array_equal(found["third/output"], found["first/output"])


def test_an_impossible_group_is_named_before_training():
    inputs = keras.Input((6,))
    chances = layers.Softmax(name="chances")(inputs)
    angles = layers.Activation("tanh", name="angles")(inputs)
    model = keras.Model(inputs, layers.Concatenate(name="together")([chances, angles]))
    with pytest.raises(dqat.UnsupportedLayerError) as error:
        dqat.quantize_model(model)
    for words in ("'angles'", "'chances'", "together", "need one scale", "[0, 0.996094]", "[-1, 0.992188]"):
        assert words in str(error.value)
