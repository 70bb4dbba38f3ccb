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


class Quantizing:
    """The points of a layer that trains, or simulates."""

    is_export = False

    def __init__(self, quantizers: dict[str, Quantizer], training: bool | tf.Tensor | None) -> None:
        self._quantizers, self._training = quantizers, training

    def __call__(self, role: str, value: tf.Tensor, *, between: tuple[Any, Any] | None = None) -> tf.Tensor:
        """See `Point`."""
        if between is not None and self._training is not None and self._training is not False:
            value = tf.clip_by_value(value, *between)
        return self._quantizers[role](value, training=self._training)
