"""Making ranges the same on all replicas: what is packed, when it is reduced, what is refused.

All records of a step travel as one vector [max, -min], for which one Max all-reduce is exact: min and max
over the values of all replicas, to the bit. The histograms of observers that need counts travel as a second
vector, of integers, in one Sum all-reduce, which is exact too; without such observers there is none. Who
reduces is not known here: `dqat.distribute` brings the functions.
"""

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import tensorflow as tf

from dqat.observers import Range, Record, merge_records

MODES = ("delayed", "exact", "off")
ON_NONFINITE = ("raise", "skip")

#: Takes a vector of the same length on all replicas and a name, the same on all replicas and different for
#: each collective of a step.
AllReduce = Callable[[tf.Tensor, str], tf.Tensor]


class Reductions(NamedTuple):
    """The collectives that range sync asks an engine for: elementwise Max of float32, and Sum of int64."""

    all_reduce_max: AllReduce
    all_reduce_sum: AllReduce


_current: contextvars.ContextVar[Reductions | None] = contextvars.ContextVar("dqat_reductions", default=None)


class Observing(Protocol):
    """What a quantizer looks like from here."""

    path: str

    def empty_record(self) -> Record:
        """A record of nothing, in the shape of this quantizer's range."""

    def observe(self, record: Record) -> Range:
        """Updates the range with a record and returns the new one."""

    def count_skipped(self, bad: tf.Tensor) -> None:
        """Counts a record that was left out."""


@contextlib.contextmanager
def all_reduce_scope(all_reduce_max: AllReduce, all_reduce_sum: AllReduce) -> Iterator[None]:
    """Models that are quantized inside use these reductions."""
    token = _current.set(Reductions(all_reduce_max, all_reduce_sum))
    try:
        yield
    finally:
        _current.reset(token)


def _current_reductions() -> Reductions | None:
    """None where this is the only replica."""
    current = _current.get()
    if current is not None:
        return current
    processes = int(os.environ.get("HOROVOD_SIZE", "1"))
    if processes > 1:
        raise RuntimeError(
            f"this process is one of {processes} that horovodrun started, but the model is quantized outside a "
            "dqat strategy, so its ranges would differ from process to process. Write:\n"
            "    strategy = dqat.distribute.Strategy()\n"
            "    with strategy.scope():\n"
            "        model = dqat.quantize_model(...)"
        )
    if tf.distribute.has_strategy() and tf.distribute.get_strategy().num_replicas_in_sync > 1:
        raise NotImplementedError(
            "range sync over tf.distribute strategies is not there yet: use Horovod (horovodrun -np N)"
        )
    return None


def pack(records: Sequence[Record]) -> tf.Tensor:
    """The extremes of records as one vector [max..., -min...] per quantizer, one after the other."""
    return tf.concat([tf.reshape(part, [-1]) for low, high, *_ in records for part in (high, -low)], axis=0)


def unpack(vector: tf.Tensor, like: Sequence[Record]) -> list[Range]:
    """The inverse of `pack`; `like` gives the shapes."""
    sizes = [low.shape.num_elements() for low, *_ in like for _ in range(2)]
    parts = iter(tf.split(vector, sizes))
    records = []
    for low, *_ in like:
        high = tf.reshape(next(parts), low.shape)
        records.append((-tf.reshape(next(parts), low.shape), high))
    return records


def pack_counts(records: Sequence[Record]) -> tf.Tensor | None:
    """The counts of the records that have them, one after the other; None where none has."""
    counts = [part for record in records for part in record[2:]]
    return tf.concat(counts, axis=0) if counts else None


def unpack_counts(vector: tf.Tensor | None, like: Sequence[Record]) -> list[tuple[tf.Tensor, ...]]:
    """The inverse of `pack_counts`: per record, its counts, or () where it has none."""
    sizes = [part.shape.num_elements() for record in like for part in record[2:]]
    parts = iter(tf.split(vector, sizes) if sizes else [])
    return [tuple(next(parts) for _ in record[2:]) for record in like]


class RangeSync:
    """Collects the records of a model's quantizers and brings them, reduced, to the observers.

    Args:
        mode: "delayed": one collective at the end of the forward pass, for the next step's ranges. "exact":
            one collective per quantizer, before its range is used; states of a recurrence stay delayed.
            "off": no collective, for debugging. Where observers need counts, there is a Sum beside each Max.
        on_nonfinite: what a NaN or an Inf on any replica does: "raise" stops the step on all replicas with an
            error that names the quantizers; "skip" leaves their ranges as they are for that step.

    Raises:
        ValueError: for another mode or policy.
    """

    def __init__(self, mode: str = "delayed", on_nonfinite: str = "raise") -> None:
        if mode not in MODES:
            raise ValueError(f"range_sync must be one of {', '.join(MODES)}, got {mode!r}")
        if on_nonfinite not in ON_NONFINITE:
            raise ValueError(f"on_nonfinite must be one of {', '.join(ON_NONFINITE)}, got {on_nonfinite!r}")
        self.mode = mode
        self.on_nonfinite = on_nonfinite
        self.quantizers: list[Observing] = []
        #: Collectives in the training step that was traced last.
        self.collectives_per_step = 0
        #: True while a SavedModel is traced: training changes no range then.
        self.frozen = False
        self._collectives = 0
        self._reductions = None if mode == "off" else _current_reductions()
        self._records: dict[int, Record] | None = None

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around a forward pass; at its end the records that were submitted inside are reduced together."""
        if self._records is not None:  # a model called inside its own forward pass
            yield
            return
        self._records, self._collectives = {}, 0
        try:
            yield
            waiting = self._records
        finally:
            self._records = None
        if waiting:
            # Every quantizer has its place whether it was called or not: the length never changes.
            records = [waiting.get(id(quantizer)) or quantizer.empty_record() for quantizer in self.quantizers]
            self._reduce_and_observe(self.quantizers, records, "dqat.ranges")
        if self._collectives:
            self.collectives_per_step = self._collectives

    @contextlib.contextmanager
    def freeze(self) -> Iterator[None]:
        """Records that are submitted inside are dropped, and nothing is reduced."""
        self.frozen = True
        try:
            yield
        finally:
            self.frozen = False

    def submit(self, quantizer: Observing, record: Record) -> None:
        """Leaves a record for the end of the step."""
        if self.frozen:
            return
        if self._records is None:
            self._reduce_and_observe([quantizer], [record], f"dqat.range.{quantizer.path}")
            return
        earlier = self._records.get(id(quantizer))
        if earlier is not None:  # a shared layer
            record = merge_records(earlier, record)
        self._records[id(quantizer)] = record

    def reduce_now(self, quantizer: Observing, record: Record) -> Range:
        """Reduces one record at once and returns the range that results."""
        return self._reduce_and_observe([quantizer], [record], f"dqat.range.{quantizer.path}")[0]

    def _reduce_and_observe(self, quantizers: Sequence[Observing], records: Sequence[Record], name: str) -> list[Range]:
        vector, counts = tf.stop_gradient(pack(records)), pack_counts(records)
        if self._reductions is not None:
            vector = self._reductions.all_reduce_max(vector, name)
            self._collectives += 1
            if counts is not None:
                counts = self._reductions.all_reduce_sum(counts, f"{name}.counts")
                self._collectives += 1
        extremes = unpack(vector, records)
        reduced = [(*range_, *part) for range_, part in zip(extremes, unpack_counts(counts, records), strict=True)]
        reduced = self._without_nonfinite(quantizers, reduced)
        return [quantizer.observe(record) for quantizer, record in zip(quantizers, reduced, strict=True)]

    def _without_nonfinite(self, quantizers: Sequence[Observing], records: Sequence[Record]) -> list[Record]:
        # The kernels record a NaN or an Inf as (-inf, +inf), which no all-reduce by Max loses.
        bad = tf.stack([tf.reduce_any(low == -float("inf")) for low, *_ in records])
        if self.on_nonfinite == "raise":
            names = tf.boolean_mask(tf.constant([quantizer.path for quantizer in quantizers]), bad)
            message = tf.strings.join(
                ["dqat: NaN or Inf in the values of ", tf.strings.reduce_join(names, separator=", ")]
            )
            check = tf.debugging.Assert(tf.logical_not(tf.reduce_any(bad)), [message])
            with tf.control_dependencies([check] if check is not None else []):
                return [tuple(tf.identity(part) for part in record) for record in records]
        for index, quantizer in enumerate(quantizers):
            quantizer.count_skipped(bad[index])
        return [
            tuple(
                tf.where(bad[index], nothing, part)
                for part, nothing in zip(record, quantizer.empty_record(), strict=True)
            )
            for index, (quantizer, record) in enumerate(zip(quantizers, records, strict=True))
        ]
