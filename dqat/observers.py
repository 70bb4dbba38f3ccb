"""How a quantizer's range is found from its records: pure functions from (range, record) to range.

A range and a record are pairs (min, max) of float32 tensors, scalar or [channels]. The empty range
(+inf, -inf) stands for "nothing seen": updating with an empty record changes nothing, and updating an empty
range takes the record over, so that a moving average starts from the first record and not from a guess.

Observers that need more than the extremes of a step say so with `needs_counts`: their records have a third
part, int64 counts of all values on a grid of bins that every replica shares (`dqat.ops.fake_quant_histogram`).
"""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol

import tensorflow as tf

from dqat import ops
from dqat.keras_api import register

Range = tuple[tf.Tensor, tf.Tensor]
#: (min, max), or (min, max, counts) where the observer needs counts.
Record = tuple[tf.Tensor, ...]

#: The range of a quantizer that has seen nothing.
EMPTY = (float("inf"), float("-inf"))


def is_empty(range_: Range) -> tf.Tensor:
    """True, per channel, where nothing was seen."""
    return range_[0] > range_[1]


def merge_records(record: Record, other: Record) -> Record:
    """The record of both records' values together."""
    return tf.minimum(record[0], other[0]), tf.maximum(record[1], other[1]), *map(tf.add, record[2:], other[2:])


class Spec(Protocol):
    """What an observer asks of a quantizer: the fields of `dqat.QuantizerSpec`."""

    num_bits: int
    symmetric: bool
    narrow_range: bool
    axis: int | None
    power_of_two: bool


@dataclass(frozen=True)
class Observer:
    """Base class of observers.

    Attributes:
        needs_counts: whether records must hold counts beside the extremes.
    """

    needs_counts: ClassVar[bool] = False

    def suited_to(self, spec: Spec) -> "Observer":
        """The observer that a quantizer with this spec gets where this one is asked for.

        Raises:
            ValueError: where there is none.
        """
        return self

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


@dataclass(frozen=True)
class HistogramObserver(Observer):
    """Base of the observers that keep a histogram of the values; per tensor only.

    The histogram is int64 in units of 1/1024 of a value, and forgetting is integer arithmetic too: replicas
    that add the same reduced counts hold the same bits, on any hardware, and N replicas hold those of one that
    sees the whole batch. In float32 that would end at 2^24 values a bin.

    Attributes:
        decay: the share of the old counts that a step keeps, 0 to 1, rounded to 1/65536; 1 counts all values
            since the start. Keyword only.

    Raises:
        ValueError: where decay is out of bounds.
    """

    UNIT: ClassVar[int] = 1024
    needs_counts: ClassVar[bool] = True

    decay: float = field(default=0.99, kw_only=True)

    def __post_init__(self) -> None:
        """Validates the fields."""
        if not 0.0 <= self.decay <= 1.0:
            raise ValueError(f"decay must be 0 to 1, got {self.decay}")

    def suited_to(self, spec: Spec) -> Observer:
        """This one, per tensor only."""
        _require_per_tensor(self, spec)
        return self

    def accumulate(self, counts: tf.Tensor, record: Record) -> tf.Tensor:
        """The histogram after a record; an empty record changes nothing.

        Args:
            counts: int64 [HISTOGRAM_BINS], in units of 1/1024.
            record: (min, max, counts) of one step, all replicas' values included.
        """
        bits = 16
        kept = tf.constant(round(self.decay * 2**bits), tf.int64)
        # counts * kept / 2^16, rounded down, without a product that overflows.
        high = tf.bitwise.right_shift(counts, tf.constant(bits, tf.int64)) * kept
        low = tf.bitwise.bitwise_and(counts, tf.constant(2**bits - 1, tf.int64)) * kept
        faded = high + tf.bitwise.right_shift(low, tf.constant(bits, tf.int64))
        return tf.where(is_empty(record), counts, faded + self.UNIT * record[2])

    def range_of(self, counts: tf.Tensor, extremes: Range, spec: Spec) -> Range:
        """The range that a histogram gives.

        Args:
            counts: int64 [HISTOGRAM_BINS], in any unit.
            extremes: the exact smallest and largest value, float32 scalars, with 0 between them.
            spec: how the tensor is quantized.

        Returns:
            float32 scalars (min, max), not wider than `extremes`; not fitted.
        """
        raise NotImplementedError


def _require_per_tensor(observer: Observer, spec: Spec) -> None:
    if spec.axis is not None:
        raise ValueError(
            f"{type(observer).__name__} finds one range per tensor: axis must be None, got {spec.axis}. "
            "Use MovingAverage per channel"
        )


@register("dqat")
@dataclass(frozen=True)
class Percentile(HistogramObserver):
    """The range that all but a small share of the values lie in; what lies outside is clipped.

    The calibration that Wu et al., "Integer Quantization for Deep Learning Inference", 2020
    (arXiv:2004.09602), compare with others, here on a histogram that goes on through training. The ends stand
    on bin edges, at most 3% outside of the exact percentile, and never outside of the values themselves.

    Attributes:
        percentile: at most 100 - `percentile` percent of the values lie above the range; more than 50, to 100.
        lower: at most so many percent lie below; 0 to less than 50. None stands for 100 - `percentile`.
        decay: see `HistogramObserver`.

    Raises:
        ValueError: where a field is out of bounds.
    """

    percentile: float = 99.99
    lower: float | None = None

    def __post_init__(self) -> None:
        """Validates the fields."""
        super().__post_init__()
        if not 50.0 < self.percentile <= 100.0:
            raise ValueError(f"percentile must be more than 50 and at most 100, got {self.percentile}")
        if self.lower is not None and not 0.0 <= self.lower < 50.0:
            raise ValueError(f"lower must be at least 0 and less than 50, got {self.lower}")

    def range_of(self, counts: tf.Tensor, extremes: Range, spec: Spec) -> Range:
        """See `HistogramObserver.range_of` and `dqat.ops.percentile_range`."""
        lower = 100.0 - self.percentile if self.lower is None else self.lower
        return ops.percentile_range(counts, *extremes, lower=lower, upper=self.percentile)


@register("dqat")
@dataclass(frozen=True)
class MSE(HistogramObserver):
    """The range with the smallest mean squared quantization error for the quantizer's bits.

    The criterion of Sung, Shin and Hwang, "Resiliency of Deep Neural Networks under Quantization", 2015
    (arXiv:1511.06488); see `dqat.ops.minimum_error_range` for how it is searched. The search takes about half
    a millisecond of one core per quantizer and step, a fifth of that where the range is symmetric.

    Attributes:
        decay: see `HistogramObserver`.
    """

    def range_of(self, counts: tf.Tensor, extremes: Range, spec: Spec) -> Range:
        """See `HistogramObserver.range_of` and `dqat.ops.minimum_error_range`."""
        return ops.minimum_error_range(
            counts,
            *extremes,
            num_bits=spec.num_bits,
            narrow_range=spec.narrow_range,
            symmetric=spec.symmetric,
            power_of_two=spec.power_of_two,
        )


@register("dqat")
@dataclass(frozen=True)
class LearnedStep(AllValues):
    """A step that is trained with the weights: LSQ, Esser et al. 2020 ("Learned Step Size Quantization").

    0 is a level, the lowest one as long as no negative value was seen (behind a ReLU), else the middle one.
    The step starts from the first record, all replicas' values included: the extremes fit just in. (The paper
    starts at 2 mean|x| / sqrt(highest level), which at 8 bits is a range several times as wide.) It can't
    become negative: the weight has a constraint, which Keras' optimizers apply.

    The gradient's scale counts the elements of one sample, the paper's "number of features", not those of a
    batch: so the averaged gradient of N replicas is that of one process with the whole batch. The scale is made
    for plain gradient descent; Adam divides by the gradient's size and so undoes it: keep its learning rate
    well below the steps.

    Per tensor only. A scale that must be a power of two (TFLite's int16 cell state) can't be learned: such
    quantizers get MovingAverage(), and `dqat.coverage` says so.
    """

    def suited_to(self, spec: Spec) -> Observer:
        """This one, but a moving average for a power-of-two scale."""
        _require_per_tensor(self, spec)
        return MovingAverage() if spec.power_of_two else self
