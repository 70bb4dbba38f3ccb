"""TFLite's int8 RSQRT, which rounds an approximation: where it lies near the edge of two levels, it takes the other."""

import tensorflow as tf

_FRACTION = 20  # bits of the inverse square root before it is scaled


def int8_rsqrt(x: tf.Tensor, scale: tf.Tensor, output_scale: tf.Tensor, highest: tf.Tensor) -> tf.Tensor:
    """What TFLite's kernel gives for quantized values; after `lite/kernels/elementwise.cc`.

    Args:
        x: float32, any shape: multiples of `scale`, not negative.
        scale: float32 scalar, positive.
        output_scale: float32 scalar, positive; of the output, whose range begins at 0.
        highest: float32 scalar, the largest value that the output can hold: the result for 0.

    Returns:
        float32 like `x`, multiples of `output_scale`; without a gradient.
    """
    wide = tf.float64
    steps = tf.round(tf.cast(x / scale, wide))
    inverse = tf.floor(2.0**_FRACTION / tf.sqrt(tf.maximum(steps, 1.0)) + 0.5)
    # The factor as TFLite stores it: a fraction of 31 bits, and a shift.
    factor = 1.0 / tf.cast(tf.sqrt(scale) * output_scale, wide)
    shift = tf.floor(tf.math.log(factor) / tf.math.log(tf.constant(2.0, wide))) + 1.0
    multiplier = tf.floor(factor * 2.0 ** (31.0 - shift) + 0.5)
    left, right = tf.maximum(shift - _FRACTION, 0.0), tf.maximum(_FRACTION - shift, 0.0)
    high = tf.floor(inverse * 2.0**left * multiplier / 2.0**31 + 0.5)
    level = tf.cast(tf.floor(high / 2.0**right + 0.5), tf.float32)
    return tf.stop_gradient(tf.where(steps > 0.0, tf.minimum(level * output_scale, highest), highest))
