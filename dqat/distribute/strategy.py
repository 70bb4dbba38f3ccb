"""One wrapper around whatever runs the replicas, so that a training script has no branch on it."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from dqat import range_sync
from dqat.distribute.engine import Engine, SingleProcess, as_bits
from dqat.keras_api import keras
from dqat.model import ranges

ENGINES = ("auto", "none", "tf", "horovod")


class Strategy:
    """Where training runs, and what that asks of a script.

    Example:
        >>> strategy = dqat.distribute.Strategy()
        >>> with strategy.scope():
        ...     model = dqat.quantize_model(float_model)
        ...     model.compile(strategy.optimizer(tf.keras.optimizers.Adam(1e-4)), loss)
        >>> model.fit(strategy.shard(dataset), callbacks=strategy.callbacks(), verbose=strategy.verbose())

    Args:
        engine: "horovod", "none" (one process), or "auto": Horovod under `horovodrun`, else one process.

    Attributes:
        rank: 0 to size - 1.
        size: number of replicas.

    Raises:
        ValueError: for another engine.
        ImportError: for Horovod where it is missing or was built without TensorFlow.
        NotImplementedError: for "tf", which is not there yet.
    """

    def __init__(self, engine: str = "auto") -> None:
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        if engine == "tf":
            raise NotImplementedError("engine 'tf' (tf.distribute) is not there yet: use 'horovod' or 'none'")
        if engine == "horovod" or (engine == "auto" and "HOROVOD_RANK" in os.environ):
            from dqat.distribute.horovod import Horovod

            self._engine: Engine = Horovod()
        else:
            self._engine = SingleProcess()

    @property
    def engine(self) -> str:
        """The engine's name."""
        return self._engine.name

    @property
    def rank(self) -> int:
        """This replica's number, from 0."""
        return self._engine.rank

    @property
    def size(self) -> int:
        """The number of replicas."""
        return self._engine.size

    @property
    def is_chief(self) -> bool:
        """True on the one replica that writes files and messages."""
        return self.rank == 0

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Models that are quantized (or loaded) inside make their ranges the same over these replicas."""
        if self.size == 1:
            yield
            return
        with range_sync.all_reduce_scope(self._engine.all_reduce_max, self._engine.all_reduce_sum):
            yield

    def optimizer(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """The optimizer, averaging gradients over the replicas."""
        return self._engine.optimizer(optimizer)

    def shard(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """This replica's part of each batch.

        Args:
            dataset: batches of the whole (global) batch size, the same on all replicas: shuffle with a seed.

        Returns:
            Batches of consecutive rows; the parts of all replicas, in rank order, are the global batch. Sizes
            differ by one where it does not divide.
        """
        if self.size == 1:
            return dataset

        def part(*batch: Any) -> Any:
            count = tf.shape(tf.nest.flatten(batch)[0])[0]
            begin, end = self.rank * count // self.size, (self.rank + 1) * count // self.size
            return tf.nest.map_structure(lambda rows: rows[begin:end], batch)

        return dataset.map(part)

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """Gives all replicas the values of rank 0; for custom loops, `fit` does it through `callbacks`."""
        self._engine.broadcast(variables)

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """What `fit` needs: the initial broadcast, and metrics averaged over the replicas."""
        return self._engine.callbacks()

    def verbose(self, verbose: int | str = 1) -> int | str:
        """`verbose` on the chief, 0 elsewhere."""
        return verbose if self.is_chief else 0

    def print(self, *values: Any) -> None:
        """Prints on the chief."""
        if self.is_chief:
            print(*values, flush=True)

    def ranges_identical(self, model: keras.Model) -> bool:
        """Whether all replicas hold the same bits in all ranges of `model`. All replicas must call it.

        Raises:
            TypeError: for a model that is not quantized.
        """
        found = ranges(model)
        bits = as_bits([part for path in sorted(found) for part in found[path]])
        gathered = self._engine.all_gather(bits, "dqat.ranges_identical")
        return all((other == gathered[0]).all() for other in gathered)
