"""The integer arithmetic of TFLite's default kernels (XNNPACK), in which the simulation computes outside training.

Float32 arithmetic on quantized values gives another level than the kernel does in one case of 100,000, where a value
lies between two levels: a network has some of those for each sample, and its depth makes a third of all values of one.

Tensors are *levels* here: whole numbers as float32, a value over its scale. Sums of products are exact up to 2^24.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from dqat import serving
from dqat.keras_api import keras
from dqat.layers.fixed_point import rescaled
from dqat.layers.hard_swish import HardSwish, int8_hard_swish
from dqat.quantizers import Quantizer

layers = keras.layers

#: Takes levels and scales of the inputs, and the output's scale; gives the output's levels.
Kernel = Callable[[list[tf.Tensor], list[tf.Tensor], tf.Tensor], tf.Tensor]


_is_plain: contextvars.ContextVar[bool] = contextvars.ContextVar("dqat_is_plain", default=False)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """While inside, calls that run eagerly compute in float32 up to each quantizer, as they do in training.

    For those who look at what a quantizer changes: values moved to the file's integers are on its grid already.
    """
    token = _is_plain.set(True)
    try:
        yield
    finally:
        _is_plain.reset(token)


def is_training(training: bool | tf.Tensor | None) -> bool:
    """Whether `training` is known to be true."""
    return training is not None and not tf.is_tensor(training) and bool(training)


def is_followed(
    training: bool | tf.Tensor | None, dtype: Any, *quantizers: Quantizer | None, bits: tuple[int, ...] = (8,)
) -> bool:
    """Whether a call is to give the file's integers: one outside training, in float32, between quantizers of `bits`.

    A SavedModel stays plain, so that other tools read it as they read any quantization-aware model.
    """
    quantized = all(one is not None and one.has_range and one.spec.num_bits in bits for one in quantizers)
    is_plain = _is_plain.get() or serving.is_saving()
    return not is_training(training) and quantized and dtype == tf.float32 and not is_plain


def is_known(scale: tf.Tensor) -> tf.Tensor:
    """Whether a scale is that of a range which was found."""
    return tf.math.is_finite(scale) & (scale > 0.0)


def moved(y: tf.Tensor, as_in_file: tf.Tensor, known: tf.Tensor, training: bool | tf.Tensor | None) -> tf.Tensor:
    """A result with its gradient, moved to what the file has where that is `known`, and not `training`."""
    difference = tf.stop_gradient(tf.where(known, as_in_file - y, 0.0))
    if tf.is_tensor(training):
        difference = tf.where(tf.cast(training, tf.bool), 0.0, difference)
    return y + difference


def followed(
    kernel: Kernel,
    inputs: list[tf.Tensor],
    outputs: tf.Tensor,
    scales: list[tf.Tensor],
    output_scale: tf.Tensor,
    training: bool | tf.Tensor | None,
) -> tf.Tensor:
    """The outputs of an operation, moved to the file's.

    Args:
        kernel: computes them there.
        inputs: quantized.
        outputs: in float.
        scales: of the inputs, float32 scalars.
        output_scale: of the output's quantizer.
        training: see `is_followed`.
    """
    known = functools.reduce(tf.logical_and, map(is_known, (*scales, output_scale)))
    safe, output_scale = [tf.where(known, scale, 1.0) for scale in scales], tf.where(known, output_scale, 1.0)
    steps = [levels(x, scale) for x, scale in zip(inputs, safe, strict=True)]
    return moved(outputs, kernel(steps, safe, output_scale) * output_scale, known, training)


def levels(x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """The levels of values that are quantized already."""
    return tf.round(x / scale)


def requantized(sums: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Integers times a float32 factor, halves to the even level.

    Args:
        sums: float32, whole numbers.
        factor: float32, what it multiplies must broadcast.
    """
    return tf.round(sums * factor)


def added(inputs: list[tf.Tensor], scales: list[tf.Tensor], output_scale: tf.Tensor) -> tf.Tensor:
    """The sum of two, in fixed point with factors of 21 bits, halves upwards; a `Kernel`."""
    ratios = [scale / output_scale for scale in scales]
    largest = tf.maximum(*map(tf.abs, ratios))
    exponent = tf.bitwise.right_shift(tf.bitcast(largest, tf.int32), 23) - 127
    shift = tf.clip_by_value(20 - exponent, 1, 30)
    one = tf.bitwise.left_shift(1, shift)
    factors = [tf.cast(tf.round(ratio * tf.cast(one, tf.float32)), tf.int32) for ratio in ratios]
    total = sum(tf.cast(x, tf.int32) * factor for x, factor in zip(inputs, factors, strict=True))
    return tf.cast(tf.bitwise.right_shift(total + tf.bitwise.right_shift(one, 1), shift), tf.float32)


def subtracted(inputs: list[tf.Tensor], scales: list[tf.Tensor], output_scale: tf.Tensor) -> tf.Tensor:
    """The first less the second; a `Kernel`."""
    return added(inputs, [scales[0], -scales[1]], output_scale)


def multiplied(inputs: list[tf.Tensor], scales: list[tf.Tensor], output_scale: tf.Tensor) -> tf.Tensor:
    """The product of two; a `Kernel`."""
    return requantized(inputs[0] * inputs[1], scales[0] * scales[1] / output_scale)


def averaged(inputs: list[tf.Tensor], scales: list[tf.Tensor], output_scale: tf.Tensor, keepdims: bool) -> tf.Tensor:
    """The mean over all axes but the first and the last; a `Kernel`."""
    (x,), (scale,) = inputs, scales
    count = tf.cast(tf.reduce_prod(tf.shape(x)[1:-1]), tf.float32)
    total = tf.reduce_sum(x, list(range(1, x.shape.rank - 1)), keepdims=keepdims)
    return requantized(total, scale / (output_scale * count))


def leaky_relu(inputs: list[tf.Tensor], scales: list[tf.Tensor], output_scale: tf.Tensor, slope: float) -> tf.Tensor:
    """The input, times a slope where it is negative, with factors of 8 bits behind the point; a `Kernel`."""
    (x,), (scale,) = inputs, scales
    ratio = scale / output_scale
    factor = tf.where(x > 0.0, tf.round(256.0 * ratio), tf.round(256.0 * (ratio * slope)))
    return tf.floor(x * factor / 256.0 + 0.5)


def hard_swish(inputs: list[tf.Tensor], scales: list[tf.Tensor], output_scale: tf.Tensor) -> tf.Tensor:
    """x * relu6(x + 3) / 6, TFLite's own kernel, since XNNPACK has none; a `Kernel`."""
    return int8_hard_swish(*inputs, *scales, output_scale)


def matrix_product(
    inputs: list[tf.Tensor], scales: list[tf.Tensor], output_scale: tf.Tensor, product: Callable[..., tf.Tensor]
) -> tf.Tensor:
    """A product of two tensors' rows, TFLite's own kernel, since XNNPACK has none of integers; a `Kernel`.

    Args:
        inputs: see `Kernel`.
        scales: see `Kernel`.
        output_scale: see `Kernel`.
        product: computes it of two float32 tensors; sums are exact up to 2^24.
    """
    factor = tf.cast(scales[0] * scales[1], tf.float64) / tf.cast(output_scale, tf.float64)
    return rescaled(product(*inputs), factor, ties_upwards=True)


def averaged_over(
    inputs: list[tf.Tensor], scales: list[tf.Tensor], output_scale: tf.Tensor, axes: list[int]
) -> tf.Tensor:
    """The mean over axes that do not lie together, which stay with size 1: TFLite's own kernel; a `Kernel`."""
    (x,), (scale,) = inputs, scales
    ratio = tf.cast(scale, tf.float64) / tf.cast(output_scale, tf.float64)
    count = math.prod(x.shape[axis] for axis in axes)
    return rescaled(tf.reduce_sum(x, axes, keepdims=True), ratio, count=count)


def kernel_of(layer: layers.Layer) -> Kernel | None:
    """What computes a layer's output; None for one that has no such kernel, or of which float gives the levels."""
    if type(layer) in (
        layers.GlobalAveragePooling1D,
        layers.GlobalAveragePooling2D,
        layers.GlobalAveragePooling3D,
    ):
        return functools.partial(averaged, keepdims=layer.keepdims)
    if type(layer) is layers.LeakyReLU:
        return functools.partial(leaky_relu, slope=float(layer.alpha))
    if type(layer) is layers.ReLU and layer.negative_slope:
        return functools.partial(leaky_relu, slope=float(layer.negative_slope))
    if type(layer) is layers.Dot:
        return functools.partial(matrix_product, product=lambda a, b: layer.call([a, b]))
    return _KERNELS.get(type(layer))


_KERNELS: dict[type, Kernel] = {
    layers.Add: added,
    layers.Subtract: subtracted,
    layers.Multiply: multiplied,
    HardSwish: hard_swish,
}
