"""Callbacks for `fit`: when ranges and BatchNormalization stand still, and how far replicas lie apart."""

import pathlib
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from dqat.distribute import Strategy
from dqat.distribute.checkpoints import Checkpoints
from dqat.keras_api import keras
from dqat.model import QuantizedModel, require_quantized
from dqat.quantizers import PER_REPLICA
from dqat.range_watch import RangeWatch


class RangeSchedule(keras.callbacks.Callback):
    """Observes ranges from a start step on, up to a freeze step. Steps are counted over the model's whole life.

    The schedule and the count are kept with the model's weights: they are in every checkpoint.

    Args:
        start: the first step whose values enter the ranges; before it, a quantizer without a range passes values
            through.
        freeze: the first step from which on ranges stand still, or None for never.
        freeze_batch_norm: the first step from which on BatchNormalization layers run as in inference, with their
            moving statistics; gamma and beta are trained no more. None for never.

    Raises:
        ValueError: for a negative step, or a freeze step not after the start.
        TypeError: at the start of training, for a model that is not quantized.
    """

    def __init__(self, start: int = 0, freeze: int | None = None, *, freeze_batch_norm: int | None = None) -> None:
        super().__init__()
        if start < 0 or (freeze is not None and freeze <= start):
            raise ValueError(f"start must be at least 0 and freeze more than start, got start={start}, freeze={freeze}")
        if freeze_batch_norm is not None and freeze_batch_norm < 0:
            raise ValueError(f"freeze_batch_norm must be at least 0, got {freeze_batch_norm}")
        self.start, self.freeze, self.freeze_batch_norm = start, freeze, freeze_batch_norm
        self._steps = 0

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Sets the model's schedule."""
        require_quantized(self.model)
        self.model.range_sync.schedule.set_window(self.start, self.freeze)
        self._steps = self.model.range_sync.schedule.steps
        self._freeze_batch_norm()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Freezes BatchNormalization when its step has come."""
        self._steps += 1
        self._freeze_batch_norm()

    def _freeze_batch_norm(self) -> None:
        if self.freeze_batch_norm is None or self._steps < self.freeze_batch_norm:
            return
        norms = [layer for layer in _leaves(self.model) if isinstance(layer, keras.layers.BatchNormalization)]
        if any(norm.trainable for norm in norms):
            for norm in norms:
                norm.trainable = False
            self.model.make_train_function(force=True)


def _leaves(model: keras.Model) -> list[keras.layers.Layer]:
    return list(model._flatten_layers(include_self=False))


@dataclass(frozen=True)
class ReplicaRow:
    """How far the replicas' records of one quantizer lay apart, over the steps that were watched.

    Attributes:
        quantizer: its path.
        spread: the largest distance between the replicas' extremes in a step, over the width of their common range.
        outlier: the rank whose record was farthest from the median of all, in that step; of two, the wider one.
        clipping: by rank, the share of the watched steps in which some value lay outside of the range in use.
    """

    quantizer: str
    spread: float
    outlier: int
    clipping: tuple[float, ...]


class ReplicaWatch(keras.callbacks.Callback):
    """Watches how far each replica's records lie from the others': a replica with bad data shows.

    A step leaves each replica's own record, before it is reduced, in a variable; every so many steps the records
    are gathered, beside the training step.

    Args:
        strategy: the replicas.
        every: steps between two looks.
        log_dir: where TensorBoard's files go, on the chief: `replicas/spread/PATH`, `replicas/outlier/PATH` and
            `replicas/clipping/PATH` (of the outlier). None for none.

    Attributes:
        rows: of the last look, the largest spread first.

    Raises:
        ValueError: for `every` less than 1.
        TypeError: at the start of training, for a model that is not quantized.
    """

    def __init__(self, strategy: Strategy, *, every: int = 100, log_dir: str | pathlib.Path | None = None) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.strategy, self.every = strategy, every
        self.rows: list[ReplicaRow] = []
        chief = log_dir is not None and strategy.is_chief
        self._writer = tf.summary.create_file_writer(str(log_dir)) if chief else None
        self._looks = 0
        self._clipped = np.zeros([0])

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Makes the variable that records are left in."""
        require_quantized(self.model)
        sync = self.model.range_sync
        if sync.local is None:
            length = 2 * sum(quantizer.min.shape.num_elements() for quantizer in sync.quantizers)
            with self.strategy.scope():
                start = tf.fill([length], np.float32(-np.inf))
                sync.local = tf.Variable(start, name="dqat_local_records", **PER_REPLICA)
            self.model.make_train_function(force=True)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Looks, every so many steps."""
        steps = self.model.range_sync.schedule.steps
        if steps % self.every == 0:
            self._look(self.model, steps)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Closes TensorBoard's file."""
        if self._writer is not None:
            self._writer.flush()

    def _look(self, model: QuantizedModel, step: int) -> None:
        sync = model.range_sync
        records = self.strategy.gather(sync.local)  # [replicas, 2 * elements]: max..., -min...
        high, low = records[:, : records.shape[1] // 2], -records[:, records.shape[1] // 2 :]
        sizes = [quantizer.min.shape.num_elements() for quantizer in sync.quantizers]
        bounds = np.cumsum([0, *sizes])
        self._looks += 1
        if not self._clipped.size:
            self._clipped = np.zeros([len(sizes), len(records)])
        rows = []
        for index, quantizer in enumerate(sync.quantizers):
            part = slice(bounds[index], bounds[index + 1])
            in_use = [end.numpy().reshape(-1) for end in quantizer.range()]
            outside = (low[:, part] < in_use[0]) | (high[:, part] > in_use[1])
            self._clipped[index] += outside.any(axis=1)
            rows.append(_row(quantizer.path, low[:, part], high[:, part], self._clipped[index] / self._looks))
        self.rows = sorted(rows, key=lambda row: -row.spread)
        if self._writer is not None:
            with self._writer.as_default(step=step):
                for row in self.rows:
                    tf.summary.scalar(f"replicas/spread/{row.quantizer}", row.spread)
                    tf.summary.scalar(f"replicas/outlier/{row.quantizer}", row.outlier)
                    tf.summary.scalar(f"replicas/clipping/{row.quantizer}", row.clipping[row.outlier])


def _row(path: str, low: np.ndarray, high: np.ndarray, clipping: np.ndarray) -> ReplicaRow:
    """`low` and `high`: [replicas, channels]; empty records, and those of NaN or Inf, count as far as can be."""
    seen = low <= high
    rates = tuple(float(rate) for rate in clipping)
    if not seen.any():
        return ReplicaRow(path, 0.0, 0, rates)
    width = np.where(seen, high, -np.inf).max() - np.where(seen, low, np.inf).min()
    if not np.isfinite(width):
        return ReplicaRow(path, float("inf"), int(np.argmax(~np.isfinite(np.where(seen, high, 0)).all(axis=1))), rates)
    distances = np.zeros(len(low))
    spread = 0.0
    for ends in (low, high):
        known = np.where(seen, ends, np.nan)
        apart = np.abs(known - np.nanmedian(known, axis=0))
        distances = np.maximum(distances, np.nan_to_num(apart).max(axis=1))
        spread = max(spread, float(np.nanmax(np.nanmax(known, axis=0) - np.nanmin(known, axis=0))))
    # Two lie equally far from their median, but for rounding.
    farthest = np.flatnonzero(distances >= distances.max() * (1 - 1e-5))
    widths = np.where(seen, high - low, 0.0).max(axis=1)
    outlier = farthest[widths[farthest].argmax()]
    return ReplicaRow(path, spread / width if width else 0.0, int(outlier), rates)


__all__ = ["Checkpoints", "RangeSchedule", "RangeWatch", "ReplicaRow", "ReplicaWatch"]
