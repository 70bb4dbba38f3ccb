"""x * relu6(x + 3) / 6: one operator of TFLite's, whose fixed-point arithmetic the simulation follows."""

from typing import Any

import tensorflow as tf

from dqat.keras_api import keras, register

_LOWEST, _HIGHEST = -(1 << 15), (1 << 15) - 1
#: Levels of an int8 tensor lie this far from its zero point at most.
_FARTHEST = 255


@register("dqat")
class HardSwish(keras.layers.Layer):
    """The activation of MobileNetV3 (Howard et al., 2019)."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """x * relu6(x + 3) / 6."""
        return inputs * tf.nn.relu6(inputs + 3.0) * (1.0 / 6.0)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the input."""
        return input_shape


def int8_hard_swish(levels: tf.Tensor, scale: tf.Tensor, output_scale: tf.Tensor) -> tf.Tensor:
    """What TFLite's HARD_SWISH gives for int8; after `lite/kernels/internal/reference/hard_swish.h`.

    Args:
        levels: float32, whole numbers: the input over its scale.
        scale: float32 scalar, of the input.
        output_scale: float32 scalar.

    Returns:
        The output over its scale, like `levels`.
    """
    x = tf.range(-_FARTHEST, _FARTHEST + 1) * 128  # in 128 times finer steps
    multiplier, exponent = _fixed_point(scale / 128.0 / output_scale)
    scaled = _high_product(x, multiplier)
    gate_multiplier, gate_exponent = _fixed_point(scale / 128.0 / (3.0 / 32768.0))
    left, right = tf.maximum(gate_exponent, 0), tf.maximum(-gate_exponent, 0)
    gate = _high_product(_shifted_left(x, tf.maximum(left - 1, 0)), gate_multiplier)
    gate = _shifted_right(_shifted_left(gate, tf.minimum(left, 1)), right)
    gate = tf.bitwise.right_shift(gate + (1 << 15), 1)  # from [-1, 1] to [0, 1]
    # Cut off towards zero, which makes up for the products before.
    product = tf.sign(scaled) * tf.bitwise.right_shift(gate * tf.abs(scaled), 15)
    table = _shifted_right(product, tf.maximum(-exponent, 0))
    return tf.gather(tf.cast(table, tf.float32), tf.cast(levels, tf.int32) + _FARTHEST)


def _fixed_point(factor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A float32 factor as a multiplier of 16 bits, in units of 2^-15, times two to the power of an exponent."""
    bits = tf.bitcast(factor, tf.int32)
    exponent = tf.bitwise.right_shift(bits, 23) - 126
    mantissa = tf.bitwise.bitwise_or(tf.bitwise.bitwise_and(bits, (1 << 23) - 1), 1 << 23)
    multiplier = tf.bitwise.right_shift(mantissa + (1 << 8), 9)
    return tf.minimum(multiplier, _HIGHEST), exponent


def _high_product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """2ab / 2^16, halves upwards."""
    return tf.bitwise.right_shift(a * b + (1 << 14), 15)


def _shifted_left(x: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """x * 2^bits, saturating at 16 bits."""
    return tf.clip_by_value(tf.bitwise.left_shift(x, tf.minimum(bits, 14)), _LOWEST, _HIGHEST)


def _shifted_right(x: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """x / 2^bits, halves away from zero."""
    half = tf.bitwise.right_shift(tf.bitwise.left_shift(1, bits), 1)
    return tf.sign(x) * tf.bitwise.right_shift(tf.abs(x) + half, bits)
