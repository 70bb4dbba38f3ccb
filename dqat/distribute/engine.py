"""What an engine must be able to do, and the engine of a single process."""

from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from dqat.keras_api import keras


class Engine(Protocol):
    """Runs the replicas. dqat has no transport of its own: an engine passes on to one that does."""

    name: str
    rank: int
    size: int

    def all_reduce_max(self, vector: tf.Tensor, name: str) -> tf.Tensor:
        """The elementwise largest of a float32 vector over all replicas, in eager mode and in graphs."""

    def all_reduce_sum(self, vector: tf.Tensor, name: str) -> tf.Tensor:
        """The elementwise sum of an int64 vector over all replicas, in eager mode and in graphs."""

    def all_gather(self, array: np.ndarray, name: str) -> list[np.ndarray]:
        """Every replica's array, by rank; all must have one shape and dtype."""

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """Gives all replicas the values of rank 0."""

    def optimizer(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """The optimizer, averaging gradients over the replicas."""

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """What `fit` needs on every replica."""


class SingleProcess:
    """One process, one replica."""

    name = "none"
    rank = 0
    size = 1

    def all_reduce_max(self, vector: tf.Tensor, name: str) -> tf.Tensor:
        """The vector itself."""
        return vector

    def all_reduce_sum(self, vector: tf.Tensor, name: str) -> tf.Tensor:
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


def as_bits(arrays: list[Any]) -> np.ndarray:
    """float32 arrays as one vector of their bits, for comparing without tolerance."""
    flat = [np.asarray(array, np.float32).reshape(-1) for array in arrays]
    return np.concatenate(flat).view(np.int32) if flat else np.zeros([0], np.int32)
