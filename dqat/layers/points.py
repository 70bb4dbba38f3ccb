"""Where a layer quantizes what it computes."""

from typing import Any, Protocol

import tensorflow as tf

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


class Quantizing:
    """The points of a layer that trains, or simulates."""

    is_export = False

    def __init__(self, quantizers: dict[str, Quantizer], training: bool | tf.Tensor | None) -> None:
        self._quantizers, self.training = quantizers, training

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
