"""Making ranges the same on all replicas: what is packed, when it is reduced, what is refused.

All records of a step travel as one vector [max, -min], for which one Max all-reduce is exact: min and max
over the values of all replicas, to the bit. Who reduces is not known here: `dqat.distribute` brings the
function.
"""

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import tensorflow as tf

from dqat.observers import Range

MODES = ("delayed", "exact", "off")
ON_NONFINITE = ("raise", "skip")

#: Takes a float32 vector of the same length on all replicas and a name, the same on all replicas and
#: different for each collective of a step; gives the elementwise largest.
AllReduceMax = Callable[[tf.Tensor, str], tf.Tensor]

_current: contextvars.ContextVar[AllReduceMax | None] = contextvars.ContextVar("dqat_all_reduce_max", default=None)


class Observing(Protocol):
    """What a quantizer looks like from here."""

    path: str

    def empty_record(self) -> Range:
        """A record of nothing, in the shape of this quantizer's range."""

    def observe(self, record: Range) -> Range:
        """Updates the range with a record and returns the new one."""

    def count_skipped(self, bad: tf.Tensor) -> None:
        """Counts a record that was left out."""


@contextlib.contextmanager
def all_reduce_scope(all_reduce_max: AllReduceMax) -> Iterator[None]:
    """Models that are quantized inside use this reduction."""
    token = _current.set(all_reduce_max)
    try:
        yield
    finally:
        _current.reset(token)


def _only_replica(vector: tf.Tensor, name: str) -> tf.Tensor:
    return vector


def _current_all_reduce_max() -> AllReduceMax:
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
    return _only_replica


def pack(records: Sequence[Range]) -> tf.Tensor:
    """Records as one vector [max..., -min...] per quantizer, one after the other."""
    return tf.concat([tf.reshape(part, [-1]) for low, high in records for part in (high, -low)], axis=0)


def unpack(vector: tf.Tensor, like: Sequence[Range]) -> list[Range]:
    """The inverse of `pack`; `like` gives the shapes."""
    sizes = [low.shape.num_elements() for low, _ in like for _ in range(2)]
    parts = iter(tf.split(vector, sizes))
    records = []
    for low, _ in like:
        high = tf.reshape(next(parts), low.shape)
        records.append((-tf.reshape(next(parts), low.shape), high))
    return records


class RangeSync:
    """Collects the records of a model's quantizers and brings them, reduced, to the observers.

    Args:
        mode: "delayed": one collective at the end of the forward pass, for the next step's ranges. "exact":
            one collective per quantizer, before its range is used; states of a recurrence stay delayed.
            "off": no collective, for debugging.
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
        self._all_reduce_max = _only_replica if mode == "off" else _current_all_reduce_max()
        self._records: dict[int, Range] | None = None

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

    def submit(self, quantizer: Observing, record: Range) -> None:
        """Leaves a record for the end of the step."""
        if self.frozen:
            return
        if self._records is None:
            self._reduce_and_observe([quantizer], [record], f"dqat.range.{quantizer.path}")
            return
        earlier = self._records.get(id(quantizer))
        if earlier is not None:  # a shared layer
            record = tf.minimum(earlier[0], record[0]), tf.maximum(earlier[1], record[1])
        self._records[id(quantizer)] = record

    def reduce_now(self, quantizer: Observing, record: Range) -> Range:
        """Reduces one record at once and returns the range that results."""
        return self._reduce_and_observe([quantizer], [record], f"dqat.range.{quantizer.path}")[0]

    def _reduce_and_observe(self, quantizers: Sequence[Observing], records: Sequence[Range], name: str) -> list[Range]:
        vector = tf.stop_gradient(pack(records))
        if self._all_reduce_max is not _only_replica:
            vector = self._all_reduce_max(vector, name)
            self._collectives += 1
        reduced = self._without_nonfinite(quantizers, unpack(vector, records))
        return [quantizer.observe(record) for quantizer, record in zip(quantizers, reduced, strict=True)]

    def _without_nonfinite(self, quantizers: Sequence[Observing], records: Sequence[Range]) -> list[Range]:
        # The kernels record a NaN or an Inf as (-inf, +inf), which no all-reduce by Max loses.
        bad = tf.stack([tf.reduce_any(low == -float("inf")) for low, _ in records])
        if self.on_nonfinite == "raise":
            names = tf.boolean_mask(tf.constant([quantizer.path for quantizer in quantizers]), bad)
            message = tf.strings.join(
                ["dqat: NaN or Inf in the values of ", tf.strings.reduce_join(names, separator=", ")]
            )
            check = tf.debugging.Assert(tf.logical_not(tf.reduce_any(bad)), [message])
            with tf.control_dependencies([check] if check is not None else []):
                return [(tf.identity(low), tf.identity(high)) for low, high in records]
        for index, quantizer in enumerate(quantizers):
            quantizer.count_skipped(bad[index])
        return [
            (tf.where(bad[index], float("inf"), low), tf.where(bad[index], -float("inf"), high))
            for index, (low, high) in enumerate(records)
        ]
