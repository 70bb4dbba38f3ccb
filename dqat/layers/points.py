"""Where a layer quantizes what it computes."""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import tensorflow as tf

from dqat.layers import xnnpack
from dqat.layers.product_grid import ProductGrid
from dqat.quantizers import Quantizer


class Point(Protocol):
    """Quantizes what a layer computes."""

    is_export: bool  # whether the graph for the file is being made, from constant weights

    def __call__(self, role: str, value: tf.Tensor, *, between: tuple[Any, Any] | None = None) -> tf.Tensor:
        """The value as the quantizer of that role leaves it.

        Args:
            role: of the quantizer.
            value: float32.
            between: what lies outside does not widen the range in training; it saturates.
        """

    def mean(self, role: str, value: tf.Tensor, count: int) -> tf.Tensor:
        """A mean of at most so many values of the range that it is quantized to, with TFLite's rounding of halves.

        AVERAGE_POOL_2D rounds them away from the integer 0, where fake-quant rounds them up. A mean of four integers
        lies in the middle of two levels in a quarter of all cases.

        Args:
            role: of the quantizer, which comes yet.
            value: float32.
            count: of values.
        """

    def product(self, role: str, a: tf.Tensor, b: tf.Tensor, of: tuple[str | int, str | int], **options: Any) -> Any:
        """A product of matrices, tf.matmul(a, b, **options), with TFLite's rounding outside training.

        Args:
            role: of the quantizer, which comes yet.
            a: float32, quantized.
            b: float32, quantized.
            of: what has quantized them: a role, or the place of an input of the layer.
            **options: of `tf.matmul`.
        """

    def followed(
        self, role: str, value: tf.Tensor, kernel: xnnpack.Kernel, operands: list[tf.Tensor], of: tuple[str | int, ...]
    ) -> tf.Tensor:
        """What an operation gives, outside training as TFLite's kernel gives it.

        Args:
            role: of the quantizer, which comes yet.
            value: float32, in float.
            kernel: computes it there.
            operands: float32, quantized.
            of: what has quantized each: a role, or the place of an input of the layer.
        """

    def dense(
        self, role: str, sums: tf.Tensor, weight_scale: tf.Tensor, bias: tf.Tensor | None, of: str | int
    ) -> tf.Tensor:
        """A FULLY_CONNECTED, or a depthwise convolution: sums + bias, with TFLite's rounding outside training.

        Args:
            role: of the quantizer, which comes yet.
            sums: float32 [..., channels], products of quantized values and weights.
            weight_scale: float32, of the weights: a scalar, or [channels]; see `scale_of`.
            bias: float32 [channels], or None.
            of: what has quantized the values: a role, or the place of an input of the layer.
        """


def scale_of(weights: Any, *, per_channel: bool = False) -> tf.Tensor:
    """The scale of weights whose largest has level 127: of all, or of each channel that has one weight alone."""
    largest = tf.abs(tf.stop_gradient(weights))
    return (largest if per_channel else tf.reduce_max(largest)) / 127.0


class Quantizing:
    """The points of a layer that trains, or simulates."""

    is_export = False

    def __init__(
        self,
        quantizers: dict[str, Quantizer],
        training: bool | tf.Tensor | None,
        before: Sequence[Quantizer | None] = (),
    ) -> None:
        self._quantizers, self.training, self._before = quantizers, training, before

    def __call__(self, role: str, value: tf.Tensor, *, between: tuple[Any, Any] | None = None) -> tf.Tensor:
        """See `Point`."""
        if between is not None and self.training is not None and self.training is not False:
            value = tf.clip_by_value(value, *between)
        return self._quantizers[role](value, training=self.training)

    def mean(self, role: str, value: tf.Tensor, count: int) -> tf.Tensor:
        """See `Point`: decides the halves and nothing else, by a part of the distance to the next other mean."""
        quantizer = self._quantizers.get(role)
        if quantizer is None or not quantizer.has_range:  # while a model is loaded
            return value
        (low, _), scale, spec = quantizer.range(), quantizer.scale(), quantizer.spec
        known = tf.math.is_finite(scale) & (scale > 0.0)
        scale = tf.where(known, scale, 1.0)
        level = tf.floor((1.0 if spec.narrow_range else 0.0) - low / scale + 0.5)  # of the value 0, from the lowest
        middle = (2.0 ** (spec.num_bits - 1) - level) * scale  # where the signed integer 0 lies
        nudge = tf.sign(tf.cast(value, tf.float32) - middle) * scale / (4.0 * count)
        return value + tf.cast(tf.stop_gradient(tf.where(known, nudge, 0.0)), value.dtype)

    def product(self, role: str, a: tf.Tensor, b: tf.Tensor, of: tuple[str | int, str | int], **options: Any) -> Any:
        """See `Point`."""
        products = tf.matmul(a, b, **options)
        kernel = functools.partial(xnnpack.matrix_product, product=functools.partial(tf.matmul, **options))
        return self.followed(role, products, kernel, [a, b], of)

    def followed(
        self, role: str, value: tf.Tensor, kernel: xnnpack.Kernel, operands: list[tf.Tensor], of: tuple[str | int, ...]
    ) -> tf.Tensor:
        """See `Point`."""
        found, result = [self._made_by(one) for one in of], self._quantizers.get(role)
        if not xnnpack.is_followed(self.training, value.dtype, *found, result):
            return value
        scales = [one.scale() for one in found]
        return xnnpack.followed(kernel, operands, value, scales, result.scale(), self.training)

    def dense(
        self, role: str, sums: tf.Tensor, weight_scale: tf.Tensor, bias: tf.Tensor | None, of: str | int
    ) -> tf.Tensor:
        """See `Point`."""
        outputs = sums if bias is None else sums + bias
        inputs, result = self._made_by(of), self._quantizers.get(role)
        if not xnnpack.is_followed(self.training, sums.dtype, inputs, result):
            return outputs
        shift = tf.constant(0.0) if bias is None else tf.stop_gradient(bias)
        grid, scale = ProductGrid(inputs.scale(), weight_scale, tf.constant(1.0), shift), result.scale()
        known = grid.is_known & xnnpack.is_known(scale)
        return xnnpack.moved(outputs, grid.folded(sums, scale), known, self.training)

    def _made_by(self, one: str | int) -> Quantizer | None:
        if isinstance(one, str):
            return self._quantizers.get(one)
        return self._before[one] if one < len(self._before) else None  # not known before the model is whole
