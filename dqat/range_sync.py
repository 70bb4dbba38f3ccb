"""Making ranges the same on all replicas: what is packed, when it is reduced, what is refused.

All records of a step travel as one vector [max, -min], for which one Max all-reduce is exact: min and max
over the values of all replicas, to the bit. The histograms of observers that need counts travel as a second
vector, of integers, in one Sum all-reduce, which is exact too; without such observers there is none. Who
reduces is not known here: `dqat.distribute` brings the functions.

The reduction starts when the forward pass has its records. Only the observers wait for it, and the weights'
update, which a NaN on any replica must hold back; the backward pass runs beside it.
"""

import collections
import contextlib
import contextvars
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from dqat import replica_context
from dqat.observers import Range, Record, merge_records
from dqat.range_update import Extremes, Observing, emptied, owners, pack, pack_counts, unpack, update
from dqat.schedule import Schedule

MODES = ("delayed", "exact", "off")
ON_NONFINITE = ("raise", "skip")

#: Takes a vector of the same length on all replicas and a name, the same on all replicas and different for
#: each collective of a step.
AllReduce = Callable[[tf.Tensor, str], tf.Tensor]


class Reductions(NamedTuple):
    """The collectives that a model asks an engine for.

    Attributes:
        all_reduce_max: elementwise, of float32.
        all_reduce_sum: of int64.
        all_reduce_total: the sum of float32, with its gradient, for BatchNormalization; None where Keras asks the
            engine itself.
    """

    all_reduce_max: AllReduce
    all_reduce_sum: AllReduce
    all_reduce_total: AllReduce | None = None


_current: contextvars.ContextVar[Reductions | None] = contextvars.ContextVar("dqat_reductions", default=None)


@contextlib.contextmanager
def reductions_scope(reductions: Reductions) -> Iterator[None]:
    """Models that are quantized inside use these reductions."""
    token = _current.set(reductions)
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
        # A plain tf.distribute script: its strategy is all that is needed.
        return Reductions(replica_context.all_reduce_max, replica_context.all_reduce_sum)
    return None


class _Held(NamedTuple):
    """A tensor that waits, in exact mode, to be quantized with a range that is not reduced yet."""

    quantizer: Observing
    record: Record
    tensor: tf.Tensor
    quantize: Callable[[Range], tf.Tensor]


class _Step(threading.local):
    """What a forward pass under way has collected: MirroredStrategy traces each replica in a thread of its own.

    `records` wait for the end of the step; those in `reduced` are on their way. `check` is the operation that
    fails at a NaN or an Inf. In exact mode `held` are waiting, and `may_wait` is the quantizer that may join them.
    """

    def __init__(self) -> None:
        self.reduced: dict[int, Record] = {}
        self.held: list[_Held] = []
        self.quantized: dict[int, tf.Tensor] = {}
        self.totals: collections.Counter = collections.Counter()

    records: dict[int, Record] | None = None
    may_wait: Observing | None = None
    levels: int = 0
    collectives: int = 0
    check: Any = None


class RangeSync:
    """Collects the records of a model's quantizers and brings them, reduced, to the observers.

    Args:
        mode: "delayed": one collective at the end of the forward pass, for the next step's ranges. "exact":
            before ranges are used, one collective for all quantizers that don't depend on one another (see
            `dqat.levels`); states of a recurrence stay delayed, and go with the last. "off": no collective, for
            debugging. Where observers need counts, there is a Sum beside each Max.
        on_nonfinite: what a NaN or an Inf on any replica does: "raise" stops the step on all replicas with an
            error that names the quantizers; "skip" leaves their ranges as they are for that step.

    Attributes:
        quantizers: of the model, in its order.
        schedule: when ranges are observed; None stands for always.
        local: float32 variable that takes each step's vector [max, -min] before it is reduced, or None.
        collectives_per_step: in the training step that was traced last.
        frozen: True while a SavedModel is traced: training changes no range then.

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
        self.schedule: Schedule | None = None
        self.local: tf.Variable | None = None
        self.collectives_per_step = 0
        self.frozen = False
        self._reductions = None if mode == "off" else _current_reductions()
        #: See `Reductions`; in every mode, for it has nothing to do with ranges.
        self.all_reduce_total = getattr(_current.get(), "all_reduce_total", None)
        self._step = _Step()

    @contextlib.contextmanager
    def step(self, training: bool | tf.Tensor = True) -> Iterator[None]:
        """Around a forward pass; at its end the records that were submitted inside are reduced together."""
        if self._step.records is not None:  # a model called inside its own forward pass
            yield
            return
        self._step.records, self._step.collectives, self._step.check, self._step.reduced = {}, 0, None, {}
        self._step.levels, self._step.held, self._step.quantized = 0, [], {}
        self._step.totals.clear()
        try:
            yield
            waiting = self._step.records
        finally:
            self._step.records = None
        if waiting:
            # Every quantizer has its place whether it was called or not: the length never changes.
            records = [waiting.get(id(quantizer)) or quantizer.empty_record() for quantizer in self.quantizers]
            self._reduce_and_observe(self.quantizers, records, "dqat.ranges")
        if self._step.reduced:
            self._end_step(training)
        if self._step.collectives:
            self.collectives_per_step = self._step.collectives

    def _end_step(self, training: bool | tf.Tensor) -> None:
        if self.local is not None:
            found = self._step.reduced
            mine = [found.get(id(quantizer)) or quantizer.empty_record() for quantizer in self.quantizers]
            self.local.assign(tf.stop_gradient(pack(mine)))
        if self.schedule is not None:
            with tf.control_dependencies([self._step.check] if self._step.check is not None else []):
                self.schedule.advance(training)

    def orders_levels(self, training: bool | tf.Tensor | None) -> bool:
        """Whether a forward pass must go in levels: see `dqat.levels`."""
        return self.mode == "exact" and not self.frozen and training is not None and training is not False

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
        if self._step.records is None:
            self._reduce_and_observe([quantizer], [record], f"dqat.range.{quantizer.path}")
            return
        earlier = self._step.records.get(id(quantizer))
        if earlier is not None:  # a shared layer
            record = merge_records(earlier, record)
        self._step.records[id(quantizer)] = record

    def quantize_exactly(
        self, quantizer: Observing, record: Record, x: tf.Tensor, quantize: Callable[[Range], tf.Tensor]
    ) -> tf.Tensor:
        """What `quantize` makes of the range that results from the record, reduced: at once, or after `release`.

        Returns:
            The quantized tensor, or, where the quantizer may wait, one that stands for it.
        """
        if self._step.records is None:
            return quantize(self._reduce_and_observe([quantizer], [record], f"dqat.range.{quantizer.path}")[0])
        waits = self._step.may_wait is quantizer
        held = _Held(quantizer, record, tf.identity(x) if waits else x, quantize)
        self._step.held.append(held)
        return held.tensor if waits else self._reduce_level()[id(x)]

    @contextlib.contextmanager
    def may_wait(self, quantizer: Observing | None) -> Iterator[list[tf.Tensor]]:
        """Around a layer whose output is the quantizer's, and is not used before `release`.

        Yields:
            A list that holds, at the end, the tensors that wait.
        """
        waiting: list[tf.Tensor] = []
        self._step.may_wait = quantizer
        try:
            yield waiting
        finally:
            self._step.may_wait = None
        waiting += [held.tensor for held in self._step.held if held.quantizer is quantizer]

    def release(self, *, last: bool) -> dict[int, tf.Tensor]:
        """Reduces all records that wait, in one collective.

        Args:
            last: whether no other record comes in this step: those that wait for its end go, too.

        Returns:
            The quantized tensors, by the id of the tensors that stood for them.
        """
        if self._step.held:
            self._reduce_level(last=last)
        return self._step.quantized

    def _reduce_level(self, *, last: bool = False) -> dict[int, tf.Tensor]:
        level, self._step.held = self._step.held, []
        records: dict[int, Record] = {}
        for held in level:  # one quantizer, several tensors: a shared layer
            earlier = records.get(id(held.quantizer))
            records[id(held.quantizer)] = held.record if earlier is None else merge_records(earlier, held.record)
        quantizers = {id(held.quantizer): held.quantizer for held in level}
        if last:
            for quantizer in self.quantizers:
                if id(quantizer) in self._step.records and id(quantizer) not in records:
                    quantizers[id(quantizer)] = quantizer
                    records[id(quantizer)] = self._step.records.pop(id(quantizer))
        self._step.levels += 1
        name = f"dqat.ranges.{self._step.levels}"
        ranges = self._reduce_and_observe(list(quantizers.values()), list(records.values()), name)
        results = dict(zip(quantizers, ranges, strict=True))
        self._step.quantized |= {id(held.tensor): held.quantize(results[id(held.quantizer)]) for held in level}
        return self._step.quantized

    def total(self, vector: tf.Tensor, layer: str) -> tf.Tensor:
        """The sum of a layer's statistics over the replicas, with its gradient; the layer's own in a SavedModel.

        Args:
            vector: float32.
            layer: the layer's name.
        """
        if self.frozen:
            return vector
        self._step.totals[layer] += 1
        return self.all_reduce_total(vector, f"dqat.statistics.{layer}.{self._step.totals[layer]}")

    def hold_back(self, gradients: Sequence[Any]) -> list[Any]:
        """The gradients of the step, which wait until no replica's values are known to be NaN or Inf.

        For custom loops; `fit` does it. In eager mode the forward pass has raised the error already.

        Args:
            gradients: tensors, IndexedSlices or None, made in the function that called the model.
        """
        check = self._step.check
        if check is None or check.graph is not tf.compat.v1.get_default_graph():
            return list(gradients)
        with tf.control_dependencies([check]):
            return [
                None if gradient is None else tf.nest.map_structure(tf.identity, gradient, expand_composites=True)
                for gradient in gradients
            ]

    @tf.autograph.experimental.do_not_convert  # no condition here depends on a tensor
    def _reduce_and_observe(self, quantizers: Sequence[Observing], records: Sequence[Record], name: str) -> list[Range]:
        vector, counts = tf.stop_gradient(pack(records)), pack_counts(records)
        self._step.reduced = dict(zip(map(id, quantizers), records, strict=True)) | self._step.reduced
        if self._reductions is not None:
            vector = self._reductions.all_reduce_max(vector, name)
            self._step.collectives += 1
            if counts is not None:
                counts = self._reductions.all_reduce_sum(counts, f"{name}.counts")
                self._step.collectives += 1
        extremes, counts = self._without_nonfinite(quantizers, unpack(vector), counts)
        if self.schedule is not None:
            extremes = emptied(extremes, tf.logical_not(self.schedule.active()))
        return update(quantizers, extremes, counts)

    def _without_nonfinite(
        self, quantizers: Sequence[Observing], extremes: Extremes, counts: tf.Tensor | None
    ) -> tuple[Extremes, tf.Tensor | None]:
        # The kernels record a NaN or an Inf as (-inf, +inf), which no all-reduce by Max loses.
        bad = tf.equal(extremes.low, -float("inf"))
        owner = owners(quantizers)
        if self.on_nonfinite == "raise":
            paths = tf.constant([quantizer.path for quantizer in quantizers])
            names = tf.gather(paths, tf.unique(tf.boolean_mask(owner, bad)).y)
            message = tf.strings.join(
                ["dqat: NaN or Inf in the values of ", tf.strings.reduce_join(names, separator=", ")]
            )
            check = tf.debugging.Assert(tf.logical_not(tf.reduce_any(bad)), [message])
            if check is None:  # eager: raised or passed
                return extremes, counts
            self._step.check = check
            with tf.control_dependencies([check]):
                return Extremes(*map(tf.identity, extremes)), None if counts is None else tf.identity(counts)
        skipped = tf.math.unsorted_segment_max(tf.cast(bad, tf.int32), owner, len(quantizers)) > 0
        for quantizer, flag in zip(quantizers, tf.unstack(skipped, len(quantizers)), strict=True):
            quantizer.count_skipped(flag)
        return emptied(extremes, tf.gather(skipped, owner)), counts
