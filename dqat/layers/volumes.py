"""Layers over three dimensions, as the two-dimensional operations that TFLite has integer kernels for."""

import math
from collections.abc import Callable

import tensorflow as tf

from dqat.keras_api import keras
from dqat.layers.points import Point

layers = keras.layers


def convolution(layer: layers.Conv3D, inputs: tf.Tensor) -> tf.Tensor:
    """A Conv3D as one CONV_2D: the planes that a kernel sees lie in one another's channels.

    The same sums of the same products, so no rounding is added.

    Args:
        layer: its kernel [depth, height, width, in, out] may be a constant.
        inputs: [1, depth, height, width, in], static shape.
    """
    size, stride, dilation = layer.kernel_size[0], layer.strides[0], layer.dilation_rate[0]
    depth, reach = inputs.shape[1], (size - 1) * dilation + 1
    if layer.padding == "same":
        planes = -(-depth // stride)
        padding = max((planes - 1) * stride + reach - depth, 0)
        inputs = tf.pad(inputs, [[0, 0], [padding // 2, padding - padding // 2], [0, 0], [0, 0], [0, 0]])
    else:
        planes = (depth - reach) // stride + 1
    stacked = tf.reshape(inputs, inputs.shape[1:])
    starts = [tap * dilation for tap in range(size)]
    seen = [stacked[start : start + (planes - 1) * stride + 1 : stride] for start in starts]
    kernel = tf.transpose(layer.kernel, (1, 2, 0, 3, 4))
    kernel = tf.reshape(kernel, [*kernel.shape[:2], -1, kernel.shape[-1]])
    outputs = tf.nn.conv2d(
        tf.concat(seen, -1), kernel, layer.strides[1:], layer.padding.upper(), dilations=layer.dilation_rate[1:]
    )
    if layer.use_bias:
        outputs = tf.nn.bias_add(outputs, layer.bias)
    return tf.expand_dims(layer.activation(outputs), 0)


def _pooled(layer: layers.Layer, inputs: tf.Tensor, pool: Callable, between: Callable) -> tf.Tensor:
    """Pools within the planes, then over them."""
    padding, (size, *in_plane), (stride, *steps) = layer.padding.upper(), layer.pool_size, layer.strides
    planes = pool(tf.reshape(inputs, [-1, *inputs.shape[2:]]), in_plane, steps, padding)
    planes = between(planes)
    height, width, channels = planes.shape[1:]
    columns = tf.reshape(planes, [-1, inputs.shape[1], height * width, channels])
    outputs = pool(columns, [size, 1], [stride, 1], padding)
    return tf.reshape(outputs, [-1, outputs.shape[1], height, width, channels])


def maximum(layer: layers.MaxPooling3D, inputs: tf.Tensor) -> tf.Tensor:
    """A MaxPooling3D as two MAX_POOL_2D, exactly."""
    return _pooled(layer, inputs, tf.nn.max_pool2d, lambda planes: planes)


def average(layer: layers.AveragePooling3D, inputs: tf.Tensor, point: Point) -> tf.Tensor:
    """An AveragePooling3D as two AVERAGE_POOL_2D; the first one rounds to the input's scale."""
    size, *in_plane = layer.pool_size

    def between(planes: tf.Tensor) -> tf.Tensor:
        return point("planes", point.mean("planes", planes, math.prod(in_plane)))

    return point.mean("output", _pooled(layer, inputs, tf.nn.avg_pool2d, between), size)


def global_average(
    layer: layers.GlobalAveragePooling1D | layers.GlobalAveragePooling3D, inputs: tf.Tensor
) -> tf.Tensor:
    """A mean over two dimensions, which XNNPACK has a kernel for: in one or three, TFLite's own rounds twice."""
    *places, channels = inputs.shape[1:]
    if None in places:
        return layer.call(inputs)
    places = [1, *places] if len(places) == 1 else [places[0], math.prod(places[1:])]
    outputs = tf.reduce_mean(tf.reshape(inputs, [-1, *places, channels]), [1, 2])
    return tf.reshape(outputs, [-1, *[1] * (inputs.shape.rank - 2), channels]) if layer.keepdims else outputs


#: Layers that the file has in another form, which gives the same integers.
REARRANGED: dict[type, Callable[[layers.Layer, tf.Tensor], tf.Tensor]] = {
    layers.GlobalAveragePooling1D: global_average,
    layers.GlobalAveragePooling3D: global_average,
    layers.Conv3D: convolution,
    layers.MaxPooling3D: maximum,
}
