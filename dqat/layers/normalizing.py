"""Layers that normalise each sample on its own: the operations that TFLite runs for them, one by one."""

import functools

import numpy as np
import tensorflow as tf

from dqat.keras_api import keras
from dqat.layers import xnnpack
from dqat.layers.affine import affine
from dqat.layers.points import Point, scale_of

#: Points of `_standardized`, in order.
STANDARDIZING = ("mean", "centred", "squares", "mean_square", "variance", "inverse")
#: An inverse deviation is kept up to so many times the smallest one of the batch. A wider range would leave the
#: samples that vary most too few of its 255 levels; samples that vary less than a sixteenth of them saturate.
_INVERSE_RATIO = 4.0


def is_affine(layer: keras.layers.Layer) -> bool:
    """Whether the layer has weights that it multiplies with or adds."""
    return bool(layer.scale or layer.center)


def _standardized(layer: keras.layers.Layer, x: tf.Tensor, axes: list[int], point: Point, role: str) -> tf.Tensor:
    """(x - mean) / deviation over some axes, which the quantizer of a role quantizes."""
    factors = _centred_and_inverse(layer, x, axes, point)
    return point.followed(role, factors[0] * factors[1], xnnpack.multiplied, list(factors), ("centred", "inverse"))


def _centred_and_inverse(
    layer: keras.layers.Layer, x: tf.Tensor, axes: list[int], point: Point
) -> tuple[tf.Tensor, tf.Tensor]:
    """x - mean, and one over the deviation."""
    mean = point("mean", _mean(x, axes, point, "mean", 0))
    centred = point("centred", point.followed("centred", x - mean, xnnpack.subtracted, [x, mean], (0, "mean")))
    squared = [centred, centred], ("centred", "centred")
    squares = point("squares", point.followed("squares", centred * centred, xnnpack.multiplied, *squared))
    variance = point("mean_square", _mean(squares, axes, point, "mean_square", "squares"))
    variance = point("variance", variance + layer.epsilon)
    # A variance of 0 gives the operator's largest output, and here what saturates too.
    inverse = tf.math.rsqrt(variance if point.is_export else tf.maximum(variance, 1e-12))
    limit = _INVERSE_RATIO * tf.stop_gradient(tf.reduce_min(inverse))
    return centred, point("inverse", inverse, between=(0.0, limit))


def _mean(x: tf.Tensor, axes: list[int], point: Point, role: str, of: str | int) -> tf.Tensor:
    """The mean over some axes, which stay with size 1, of what one quantizer gives, for another."""
    mean = tf.reduce_mean(x, axes, keepdims=True)
    if axes != [-1]:
        return point.followed(role, mean, functools.partial(xnnpack.averaged_over, axes=axes), [x], (of,))
    # FULLY_CONNECTED rounds once. MEAN loses bits of the sum where its output's scale is finer than its input's.
    count = x.shape[-1]
    kernel = np.full([count, 1], 1.0 / count, np.float32)
    if point.is_export:
        return tf.reshape(tf.matmul(tf.reshape(x, [-1, count]), kernel), [*x.shape[:-1], 1])
    return point.dense(role, mean, scale_of(kernel), None, of)


def _scaled(layer: keras.layers.Layer, normalized: tf.Tensor, point: Point) -> tf.Tensor:
    gamma = layer.gamma if layer.scale else tf.ones([normalized.shape[-1]])
    beta = layer.beta if layer.center else tf.zeros([normalized.shape[-1]])
    if point.is_export:
        return affine(normalized, gamma, beta)
    return point.dense("output", normalized * gamma, scale_of(gamma, per_channel=True), beta, "normalized")


def layer_normalization(layer: keras.layers.LayerNormalization, inputs: tf.Tensor, point: Point) -> tf.Tensor:
    """Over the last axis."""
    if not is_affine(layer):
        return _standardized(layer, inputs, [-1], point, "output")
    return _scaled(layer, point("normalized", _standardized(layer, inputs, [-1], point, "normalized")), point)


def group_normalization(layer: keras.layers.Layer, inputs: tf.Tensor, point: Point) -> tf.Tensor:
    """Over groups of channels and all places, of Keras' layer or tensorflow-addons'."""
    channels, groups = inputs.shape[-1], layer.groups
    places = int(np.prod(inputs.shape[1:-1]))
    grouped = tf.reshape(inputs, [-1, places, groups, channels // groups])
    normalized = point("normalized", _standardized(layer, grouped, [1, 3], point, "normalized"))
    return _scaled(layer, tf.reshape(normalized, [-1, *inputs.shape[1:]]), point)
