"""The activations of cc/core/lstm_element.h in plain TensorFlow ops, each of which rounds on its own: the same bits."""

import numpy as np
import tensorflow as tf


def _exp(x):
    """lstm_element.h's, each operation rounded on its own."""
    shifted = x * np.float32(1.44269504) + np.float32(12582912.0)
    n = shifted - np.float32(12582912.0)
    r = (x - n * np.float32(0.693359375)) - n * np.float32(-2.12194440e-4)
    q = tf.fill(tf.shape(x), np.float32(0.0013813147))
    for factor in (0.008369419, 0.041668456, 0.16666515, 0.49999994):
        q = q * r + np.float32(factor)
    power = tf.bitcast(tf.bitwise.left_shift(tf.bitcast(shifted, tf.int32), 23) + 0x3F800000, tf.float32)
    return (1.0 + (r + r * r * q)) * power


@tf.custom_gradient
def sigmoid(x):
    """lstm_element.h's Sigmoid."""
    y = 1.0 / (1.0 + _exp(-x))
    return y, lambda slope: slope * (y * (1.0 - y))


@tf.custom_gradient
def tanh(x):
    """lstm_element.h's Tanh."""
    size, square = tf.abs(x), x * x
    far = 1.0 - 2.0 / (_exp(size + size) + 1.0)
    q = tf.fill(tf.shape(x), np.float32(-0.005704987))
    for factor in (0.020639086, -0.053739715, 0.13331442, -0.3333328):
        q = q * square + np.float32(factor)
    y = tf.where(size < 0.625, x + x * square * q, tf.sign(x) * far)
    return y, lambda slope: slope * (1.0 - y * y)
