"""TFLite's integer RSQRT, after `lite/kernels/elementwise.cc`, where it is not the level next to the true value.

In 8 bits it rounds an approximation: near the edge of two levels it takes the other. In 16 bits it draws lines between
points 128 levels apart, which lie far from the curve for small inputs.
"""

import tensorflow as tf

#: Levels between two points of the 16-bit table, for inputs from 0 on.
_TABLE_STEP = 128
_FRACTION = 20  # bits of the inverse square root before it is scaled


def integer_rsqrt(
    x: tf.Tensor, scale: tf.Tensor, output_scale: tf.Tensor, highest: tf.Tensor, num_bits: int
) -> tf.Tensor:
    """What TFLite's kernel gives for quantized values.

    Args:
        x: float32, any shape: multiples of `scale`, not negative.
        scale: float32 scalar, positive.
        output_scale: float32 scalar, positive; of the output. With 8 bits its range begins at 0.
        highest: float32 scalar, the largest value that the output can hold: the result for 0.
        num_bits: 16 for the table; else the 8-bit kernel's arithmetic.

    Returns:
        float32 like `x`, multiples of `output_scale`; without a gradient.
    """
    kernel = _by_table if num_bits == 16 else _by_multiplier
    return tf.stop_gradient(kernel(x, scale, output_scale, highest))


def _by_table(x: tf.Tensor, scale: tf.Tensor, output_scale: tf.Tensor, highest: tf.Tensor) -> tf.Tensor:
    inverse_scale = 65536.0 / (output_scale * 32767.0 - output_scale * -32768.0)
    lowest, step = scale * -32768.0, (scale * 32767.0 - scale * -32768.0) / 512.0

    def output(value: tf.Tensor) -> tf.Tensor:
        positive = value > 0.0
        return tf.where(positive, 1.0 / tf.sqrt(tf.where(positive, value, 1.0)), highest) * inverse_scale

    start = lowest + tf.range(256.0, 513.0) * step
    here = _rounded(output(start))
    middle = _rounded((output(lowest + tf.range(257.0, 514.0) * step) + here) / 2.0)
    bias = _rounded((middle - _rounded(output(start + step / 2.0))) / 2.0)
    # The last point stands for the end of the last line, and has no middle.
    bias = bias * tf.cast(tf.range(257) < 256, tf.float32)
    table = tf.clip_by_value(here - bias, -32768.0, 32767.0)
    steps = tf.cast(tf.round(x / scale), tf.int32)
    place, along = steps // _TABLE_STEP, tf.cast(steps % _TABLE_STEP, tf.float32)
    base, end = tf.gather(table, place), tf.gather(table, place + 1)
    return (base + tf.floor(((end - base) * along + 64.0) / _TABLE_STEP)) * output_scale


def _rounded(x: tf.Tensor) -> tf.Tensor:
    """Halves away from zero."""
    return tf.sign(x) * tf.floor(tf.abs(x) + 0.5)


def _by_multiplier(x: tf.Tensor, scale: tf.Tensor, output_scale: tf.Tensor, highest: tf.Tensor) -> tf.Tensor:
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
    return tf.where(steps > 0.0, tf.minimum(level * output_scale, highest), highest)
