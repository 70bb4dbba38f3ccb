"""Where tensors of 16 bits and of 8 bits meet: the same values with another number of bits."""

from typing import Any

import tensorflow as tf

from dqat.keras_api import keras, register
from dqat.layers import xnnpack
from dqat.layers.fixed_point import rescaled
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
    return rescaled(levels, tf.cast(scale, tf.float64) / tf.cast(output_scale, tf.float64))
