"""Biases as TFLite stores them: int32 on the product of the scales of inputs and weights.

A step of that grid is a hundredth of an output's LSB or so. Rounding to it moves one output in some hundreds to the
next level, and fifty layers amplify that to a third of the values of a network.
"""

import tensorflow as tf


def bias_rounding(bias: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """What rounding to whole steps adds to a bias, float32, without a gradient; 0 where the step is not known yet.

    Args:
        bias: any shape.
        step: float32, scalar or like `bias`: scale of the inputs times scale of the weights.
    """
    known = tf.math.is_finite(step) & (step > 0.0)
    exact = tf.cast(bias, tf.float32)  # from mixed precision
    rounded = tf.round(exact / tf.where(known, step, 1.0)) * step
    return tf.stop_gradient(tf.where(known, rounded - exact, 0.0))
