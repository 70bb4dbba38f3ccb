"""What an engine must be able to do, and the engine of a single process."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from dqat.distribute.sharding import rows_of_part
from dqat.keras_api import keras


class Engine(Protocol):
    """Runs the replicas. dqat has no transport of its own: an engine passes on to one that does.

    Attributes:
        name: "none", "tf" or "horovod".
        rank: of this process' first replica, from 0.
        size: number of replicas.
        processes: number of processes, each with as many replicas.
        loss_scale: what a replica's mean loss is multiplied with, so that gradients come out as a mean.
        elastic: whether replicas may die or join while it runs; rank and size change then, and size may be 1.
    """

    name: str
    rank: int
    size: int
    processes: int
    loss_scale: float
    elastic: bool

    def scope(self) -> contextlib.AbstractContextManager:
        """Where variables must be made."""

    def all_reduce_max(self, vector: tf.Tensor, name: str) -> tf.Tensor:
        """The elementwise largest of a float32 vector over all replicas, in eager mode and in graphs."""

    def all_reduce_sum(self, vector: tf.Tensor, name: str) -> tf.Tensor:
        """The elementwise sum of an int64 vector over all replicas, in eager mode and in graphs."""

    all_reduce_total: Callable[[tf.Tensor, str], tf.Tensor] | None
    """The sum of a float32 vector over all replicas, with its gradient; None where Keras synchronizes itself."""

    def all_gather(self, array: np.ndarray, name: str) -> list[np.ndarray]:
        """Every process' array; all must have one shape and dtype (float32, float64, int32 or int64)."""

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """Gives all replicas the values of rank 0."""

    def optimizer(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """The optimizer, averaging gradients over the replicas."""

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """What `fit` needs on every replica."""

    def shard(self, dataset: tf.data.Dataset) -> Any:
        """The parts of this process' replicas."""

    def run(self, step: Callable, arguments: tuple) -> Any:
        """The step on each replica of this process."""

    def reduce_loss(self, loss: Any) -> tf.Tensor:
        """The mean loss, from what `run` gave for losses scaled by `loss_scale`."""

    def copies(self, variable: tf.Variable) -> list[np.ndarray]:
        """The variable on each replica of this process."""


class OneReplicaPerProcess:
    """What engines share whose processes are one replica each, and the engine of a single process."""

    name = "none"
    rank = 0
    size = 1
    loss_scale = 1.0
    elastic = False

    @property
    def processes(self) -> int:
        """As many as replicas."""
        return self.size

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Anywhere."""
        yield

    def all_reduce_max(self, vector: tf.Tensor, name: str) -> tf.Tensor:
        """The vector itself."""
        return vector

    def all_reduce_sum(self, vector: tf.Tensor, name: str) -> tf.Tensor:
        """The vector itself."""
        return vector

    def all_reduce_total(self, vector: tf.Tensor, name: str) -> tf.Tensor:
        """The vector itself."""
        return vector

    def all_gather(self, array: np.ndarray, name: str) -> list[np.ndarray]:
        """The array alone."""
        return [array]

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """Nothing to do."""

    def optimizer(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """The optimizer itself."""
        return optimizer

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """None needed."""
        return []

    def shard(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """This rank's rows of each batch."""
        if self.size == 1:
            return dataset
        return dataset.map(lambda *batch: rows_of_part(batch if len(batch) > 1 else batch[0], self.rank, self.size))

    def run(self, step: Callable, arguments: tuple) -> Any:
        """The step itself."""
        return step(*arguments)

    def reduce_loss(self, loss: Any) -> tf.Tensor:
        """The loss itself."""
        return tf.convert_to_tensor(loss)

    def copies(self, variable: tf.Variable) -> list[np.ndarray]:
        """The variable alone."""
        return [variable.numpy()]


def as_bits(arrays: list[Any]) -> np.ndarray:
    """Arrays of 4 or 8 bytes an element as one vector of their bits, for comparing without tolerance."""
    flat = [np.ascontiguousarray(array).reshape(-1).view(np.int32) for array in arrays]
    return np.concatenate(flat) if flat else np.zeros([0], np.int32)
