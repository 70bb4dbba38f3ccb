"""TFLite's fixed point outside training: whole numbers times a factor of 31 bits, as its builtin kernels round it."""

import tensorflow as tf


def rescaled(levels: tf.Tensor, ratio: tf.Tensor, *, ties_upwards: bool = False, count: int = 1) -> tf.Tensor:
    """Whole numbers times a factor, rounded twice.

    Args:
        levels: float32, whole numbers, which float32 holds up to 2^24.
        ratio: float64 scalar, positive.
        ties_upwards: whether the second rounding takes halves upwards, as products of matrices do, or away from zero.
        count: divides the result, as MEAN does: by a factor that is cut, not rounded.

    Returns:
        float32, whole numbers.
    """
    # As C's frexp has them: ratio = fraction * 2 ** exponent, and the fraction from a half to 1.
    exponent = tf.bitwise.right_shift(tf.bitcast(ratio, tf.int64), 52) - 1022
    fraction = ratio * tf.pow(tf.constant(2.0, tf.float64), -tf.cast(exponent, tf.float64))
    factor = tf.cast(tf.floor(fraction * 2.0**31 + 0.5), tf.int64)
    is_one = tf.equal(factor, 2**31)
    factor, exponent = tf.where(is_one, factor // 2, factor), tf.where(is_one, exponent + 1, exponent)
    if count > 1:
        shift = tf.minimum(tf.constant(min(count.bit_length() - 1, 32), tf.int64), 31 + exponent)
        factor, exponent = tf.bitwise.left_shift(factor, shift) // count, exponent - shift
    left, right = tf.maximum(exponent, 0), tf.maximum(-exponent, 0)
    products = tf.bitwise.left_shift(tf.cast(levels, tf.int64), left) * factor
    products += tf.where(products >= 0, tf.constant(2**30, tf.int64), tf.constant(1 - 2**30, tf.int64))
    high = tf.sign(products) * tf.bitwise.right_shift(tf.abs(products), tf.constant(31, tf.int64))
    if ties_upwards:
        half = tf.bitwise.right_shift(tf.bitwise.left_shift(tf.constant(1, tf.int64), right), tf.constant(1, tf.int64))
        return tf.cast(tf.bitwise.right_shift(high + half, right), tf.float32)
    mask = tf.bitwise.left_shift(tf.constant(1, tf.int64), right) - 1
    threshold = mask // 2 + tf.cast(high < 0, tf.int64)
    rounded_up = tf.cast(tf.bitwise.bitwise_and(high, mask) > threshold, tf.int64)
    return tf.cast(tf.bitwise.right_shift(high, right) + rounded_up, tf.float32)
