"""How a quantizer's range is found from its records: pure functions from (range, record) to range.

A range and a record are pairs (min, max) of float32 tensors, scalar or [channels]. The empty range
(+inf, -inf) stands for "nothing seen": updating with an empty record changes nothing, and updating an empty
range takes the record over, so that a moving average starts from the first record and not from a guess.
"""

from dataclasses import asdict, dataclass
from typing import Any

import tensorflow as tf

from dqat.keras_api import register

Range = tuple[tf.Tensor, tf.Tensor]

#: The range of a quantizer that has seen nothing.
EMPTY = (float("inf"), float("-inf"))


def is_empty(range_: Range) -> tf.Tensor:
    """True, per channel, where nothing was seen."""
    return range_[0] > range_[1]


@dataclass(frozen=True)
class Observer:
    """Base class of observers."""

    def update(self, range_: Range, record: Range) -> Range:
        """The range after a record of one step, all replicas' values included.

        Args:
            range_: the present range, scalar or [channels]; empty before the first record.
            record: the smallest and largest value of the step; empty where there was no value.
        """
        seen = is_empty(record)
        low, high = self._merge(range_, record)
        first = is_empty(range_)
        low, high = tf.where(first, record[0], low), tf.where(first, record[1], high)
        return tf.where(seen, range_[0], low), tf.where(seen, range_[1], high)

    def _merge(self, range_: Range, record: Range) -> Range:
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The fields, as Keras serialises them."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Observer":
        """The inverse of `get_config`."""
        return cls(**config)


@register("dqat")
@dataclass(frozen=True)
class LastValue(Observer):
    """The range of the last step."""

    def _merge(self, range_: Range, record: Range) -> Range:
        return record


@register("dqat")
@dataclass(frozen=True)
class AllValues(Observer):
    """The range of all values seen so far: it only grows."""

    def _merge(self, range_: Range, record: Range) -> Range:
        return tf.minimum(range_[0], record[0]), tf.maximum(range_[1], record[1])


@register("dqat")
@dataclass(frozen=True)
class MovingAverage(Observer):
    """An exponential moving average of the steps' extremes, starting at the first.

    Attributes:
        decay: the share of the old range that a step keeps, 0 to 1.

    Raises:
        ValueError: where decay is out of bounds.
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        """Validates the fields."""
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be at least 0 and less than 1, got {self.decay}")

    def _merge(self, range_: Range, record: Range) -> Range:
        rate = 1.0 - self.decay
        return tuple(old + rate * (new - old) for old, new in zip(range_, record, strict=True))


@register("dqat")
@dataclass(frozen=True)
class Fixed(Observer):
    """A range that is known beforehand, such as that of a softmax; records change nothing.

    Attributes:
        min: at most 0.
        max: at least 0.

    Raises:
        ValueError: where the range doesn't contain 0 or is a single point.
    """

    min: float = 0.0
    max: float = 1.0

    def __post_init__(self) -> None:
        """Validates the fields."""
        if not self.min <= 0.0 <= self.max or self.min == self.max:
            raise ValueError(f"a fixed range must contain 0 and be no single point, got [{self.min}, {self.max}]")

    def _merge(self, range_: Range, record: Range) -> Range:
        return range_
