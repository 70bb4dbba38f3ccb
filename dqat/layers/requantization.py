"""Where tensors of 16 bits and of 8 bits meet: the same values with another number of bits."""

from typing import Any

import tensorflow as tf

from dqat.keras_api import keras, register
from dqat.layers import xnnpack
from dqat.layers.wrapper import QuantizeWrapper


@register("dqat")
class ChangeBits(keras.layers.Layer):
    """Gives its input on; `dqat.quantize_model` puts one wherever layers of other bits read a tensor."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The input."""
        return tf.identity(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the input."""
        return input_shape


@register("dqat")
class Requantization(QuantizeWrapper):
    """A `ChangeBits` with its quantizer: outside training, to the bit what TFLite's QUANTIZE gives."""

    def call(self, inputs: tf.Tensor, training: bool | tf.Tensor | None = None) -> tf.Tensor:
        """The input in the output's range."""
        (before,), behind = self.before, self.behind
        if xnnpack.is_followed(training, self.compute_dtype, before, behind, bits=(8, 16)):
            scale, output_scale = before.scale(), behind.scale()
            known = xnnpack.is_known(scale) & xnnpack.is_known(output_scale)
            scale, output_scale = tf.where(known, scale, 1.0), tf.where(known, output_scale, 1.0)
            levels = requantized(xnnpack.levels(inputs, scale), scale, output_scale)
            inputs = xnnpack.moved(inputs, levels * output_scale, known, training)
        return self.output_quantizer(inputs, training=training)


def requantized(levels: tf.Tensor, scale: tf.Tensor, output_scale: tf.Tensor) -> tf.Tensor:
    """Levels on another scale, as TFLite's fixed point rounds them: twice, halves away from zero at last.

    Args:
        levels: float32, whole numbers of at most 16 bits.
        scale: float32 scalar, of those.
        output_scale: float32 scalar.

    Returns:
        float32, whole numbers, before they saturate.
    """
    ratio = tf.cast(scale, tf.float64) / tf.cast(output_scale, tf.float64)
    # As C's frexp has them: ratio = fraction * 2 ** exponent, and the fraction from a half to 1.
    exponent = tf.bitwise.right_shift(tf.bitcast(ratio, tf.int64), 52) - 1022
    fraction = ratio * tf.pow(tf.constant(2.0, tf.float64), -tf.cast(exponent, tf.float64))
    factor = tf.cast(tf.floor(fraction * 2.0**31 + 0.5), tf.int64)
    is_one = tf.equal(factor, 2**31)
    factor, exponent = tf.where(is_one, factor // 2, factor), tf.where(is_one, exponent + 1, exponent)
    left, right = tf.maximum(exponent, 0), tf.maximum(-exponent, 0)
    products = tf.bitwise.left_shift(tf.cast(levels, tf.int64), left) * factor
    products += tf.where(products >= 0, tf.constant(2**30, tf.int64), tf.constant(1 - 2**30, tf.int64))
    high = tf.sign(products) * tf.bitwise.right_shift(tf.abs(products), tf.constant(31, tf.int64))
    mask = tf.bitwise.left_shift(tf.constant(1, tf.int64), right) - 1
    threshold = mask // 2 + tf.cast(high < 0, tf.int64)
    rounded_up = tf.cast(tf.bitwise.bitwise_and(high, mask) > threshold, tf.int64)
    return tf.cast(tf.bitwise.right_shift(high, right) + rounded_up, tf.float32)
