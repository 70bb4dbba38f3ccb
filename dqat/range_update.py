"""How reduced records enter the observers: all quantizers at once.

A model has hundreds of ranges, each of two numbers. Updated one by one they would cost a dozen operations a
quantizer; here each kind of observer updates the ranges of all its quantizers as one vector, elementwise, and
so to the same bits.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from dqat.observers import EMPTY, LearnedStep, Observer, Range, Record


class Observing(Protocol):
    """What a quantizer looks like from here."""

    path: str
    observer: Observer
    min: tf.Variable
    max: tf.Variable

    def empty_record(self) -> Record:
        """A record of nothing, in the shape of this quantizer's range."""

    def observe(self, record: Record) -> Range:
        """Updates the range with a record that contains 0, or an empty one, and returns the new one."""

    def count_skipped(self, bad: tf.Tensor) -> None:
        """Counts a record that was left out."""


class Extremes(NamedTuple):
    """The smallest and largest values of several quantizers, float32 [n], one quantizer after the other."""

    low: tf.Tensor
    high: tf.Tensor


def _flat(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """One vector of them all; in one operation where all are scalars."""
    if all(tensor.shape.rank == 0 for tensor in tensors):
        return tf.stack(tensors)
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)


def _parts(vector: tf.Tensor, shapes: Sequence[tf.TensorShape]) -> list[tf.Tensor]:
    """The inverse of `_flat`."""
    if all(shape.rank == 0 for shape in shapes):
        return tf.unstack(vector, len(shapes))
    parts = tf.split(vector, [shape.num_elements() for shape in shapes])
    return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]


def pack(records: Sequence[Record]) -> tf.Tensor:
    """The extremes of records as one vector [max..., -min...]."""
    return tf.concat([_flat([record[1] for record in records]), -_flat([record[0] for record in records])], axis=0)


def unpack(vector: tf.Tensor) -> Extremes:
    """The inverse of `pack`."""
    high, negated = tf.split(vector, 2)
    return Extremes(-negated, high)


def pack_counts(records: Sequence[Record]) -> tf.Tensor | None:
    """The counts of the records that have them, one after the other; None where none has."""
    counts = [part for record in records for part in record[2:]]
    return tf.concat(counts, axis=0) if counts else None


def owners(quantizers: Sequence[Observing]) -> np.ndarray:
    """The index of the quantizer that each element of `Extremes` belongs to."""
    sizes = [quantizer.min.shape.num_elements() for quantizer in quantizers]
    return np.repeat(np.arange(len(quantizers), dtype=np.int32), sizes)


def emptied(extremes: Extremes, where: tf.Tensor) -> Extremes:
    """The extremes, empty where `where` (bool, a scalar or [n])."""
    return Extremes(*(tf.where(where, nothing, part) for nothing, part in zip(EMPTY, extremes, strict=True)))


def update(quantizers: Sequence[Observing], extremes: Extremes, counts: tf.Tensor | None) -> list[Range]:
    """Updates all ranges with the records of a step.

    Args:
        quantizers: in the order of the records.
        extremes: over all replicas; empty elements change nothing.
        counts: int64, over all replicas: of the quantizers that need them, in order; zeros where the extremes
            are empty.

    Returns:
        The new ranges, unfitted, in the quantizers' order.
    """
    empty = extremes.low > extremes.high
    low = tf.where(empty, extremes.low, tf.minimum(extremes.low, 0.0))
    high = tf.where(empty, extremes.high, tf.maximum(extremes.high, 0.0))
    shapes = [quantizer.min.shape for quantizer in quantizers]
    records: list[Record] = list(zip(_parts(low, shapes), _parts(high, shapes), strict=True))
    updated: dict[int, Range] = {}
    together: dict[tuple[Observer, bool], list[int]] = {}
    counted = 0
    for index, quantizer in enumerate(quantizers):
        if quantizer.observer.needs_counts:
            bins = quantizer.counts.shape[0]
            part = counts[counted : counted + bins]
            counted += bins
            updated[index] = quantizer.observe((*records[index], part))
        elif isinstance(quantizer.observer, LearnedStep):
            updated[index] = quantizer.observe(records[index])
        else:
            together.setdefault((quantizer.observer, shapes[index].rank == 0), []).append(index)
    for (observer, _), indices in together.items():
        ends = [[quantizers[index].min for index in indices], [quantizers[index].max for index in indices]]
        before = tuple(_flat([end.read_value() for end in variables]) for variables in ends)
        record = tuple(_flat([records[index][end] for index in indices]) for end in (0, 1))
        after = observer.update(before, record)
        values = [_parts(part, [shapes[index] for index in indices]) for part in after]
        for variables, parts in zip(ends, values, strict=True):
            for variable, part in zip(variables, parts, strict=True):
                variable.assign(part)
        updated |= dict(zip(indices, zip(*values, strict=True), strict=True))
    return [updated[index] for index in range(len(quantizers))]
