"""Biases as TFLite stores them: int32 on the product of the scales of inputs and weights.

A step of that grid is a hundredth of an output's LSB or so. Rounding to it moves one output in some hundreds to the
next level, and fifty layers amplify that to a third of the values of a network.
"""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from dqat import serving
from dqat.keras_api import keras
from dqat.quantizers import Quantizer


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


def outside_training(rounding: Callable[[], tf.Tensor], training: bool | tf.Tensor | None) -> tf.Tensor | None:
    """A rounding where `training` is a tensor that is false, else 0; None where it is known to be true.

    In training the statistics are those of the batch, and nothing is folded that could be rounded.
    """
    if isinstance(training, (bool, int)) and training:
        return None
    value = serving.as_constant(rounding)
    return tf.where(tf.cast(training, tf.bool), 0.0, value) if tf.is_tensor(training) else value


def norm_factor(norm: keras.layers.BatchNormalization) -> tf.Tensor:
    """What the layer multiplies each channel with at inference: gamma / sqrt(moving variance + epsilon)."""
    factor = tf.math.rsqrt(norm.moving_variance + norm.epsilon)
    return tf.stop_gradient(factor if norm.gamma is None else factor * norm.gamma)


def round_shift(norm: keras.layers.BatchNormalization, inputs: Quantizer) -> None:
    """A layer that no other takes in is a depthwise convolution of the file: what it adds is rounded as there.

    Args:
        norm: over the last axis.
        inputs: quantizes what goes into it.
    """
    call = functools.partial(type(norm).call, norm)

    def rounding() -> tf.Tensor:
        factor = norm_factor(norm)
        shift = (0.0 if norm.beta is None else norm.beta) - norm.moving_mean * factor
        return bias_rounding(shift, inputs.scale() * tf.abs(factor) / 127.0)  # the factor itself is the integer 127

    def rounded(inputs: tf.Tensor, training: Any = None, mask: Any = None) -> tf.Tensor:
        outputs = call(inputs, training=training, mask=mask)
        added = outside_training(rounding, norm._get_training_value(training))
        return outputs if added is None else outputs + tf.cast(added, outputs.dtype)

    object.__setattr__(norm, "call", rounded)  # not tracked, and not part of what is saved
