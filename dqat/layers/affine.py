"""Layers that multiply each channel with a constant and add another: a depthwise convolution of 1x1 in the file."""

import numpy as np
import tensorflow as tf

from dqat.keras_api import keras
from dqat.layers.quantize_point import QuantizePoint

layers = keras.layers
#: Those layers, where nothing takes them in.
AFFINE = (layers.BatchNormalization, layers.Rescaling, layers.Normalization, QuantizePoint)


def factor_and_shift(layer: layers.Layer) -> tuple[tf.Tensor, tf.Tensor]:
    """What a layer of `AFFINE` multiplies each channel with at inference, and adds to it: float32, without gradient."""
    if isinstance(layer, QuantizePoint):  # the converter would merge two quantizations without an operation between
        return tf.constant(1.0), tf.constant(0.0)
    if isinstance(layer, layers.Rescaling):
        return tf.constant(layer.scale, tf.float32), tf.constant(layer.offset, tf.float32)
    if isinstance(layer, layers.Normalization):
        factor = 1.0 / tf.maximum(tf.sqrt(tf.cast(layer.variance, tf.float32)), keras.backend.epsilon())
        return factor, -tf.cast(layer.mean, tf.float32) * factor
    factor = tf.math.rsqrt(layer.moving_variance + layer.epsilon)
    factor = factor if layer.gamma is None else factor * layer.gamma
    shift = (0.0 if layer.beta is None else layer.beta) - layer.moving_mean * factor
    return tf.stop_gradient(factor), tf.stop_gradient(shift)


def affine(x: tf.Tensor, factor: np.ndarray, shift: np.ndarray) -> tf.Tensor:
    """x * factor + shift per channel, as TFLite computes it exactly: a depthwise convolution of 1x1.

    Args:
        x: float32 [1, ..., channels].
        factor: float32, [channels] or scalar.
        shift: like `factor`.
    """
    channels, shape = x.shape[-1], x.shape.as_list()
    factor, shift = (np.broadcast_to(np.float32(part).reshape(-1), [channels]) for part in (factor, shift))
    x = x if len(shape) == 4 else tf.reshape(x, [-1, 1, 1, channels] if shape[0] is None else [1, -1, 1, channels])
    x = tf.nn.depthwise_conv2d(x, factor.reshape(1, 1, channels, 1), [1, 1, 1, 1], "VALID")
    x = tf.nn.bias_add(x, shift)
    return x if len(shape) == 4 else tf.reshape(x, [-1 if size is None else size for size in shape])
