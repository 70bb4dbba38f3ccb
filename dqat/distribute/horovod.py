"""Horovod: the only file that imports it."""

import numpy as np
import tensorflow as tf

from dqat.keras_api import keras

try:
    import horovod.tensorflow.keras as hvd
    from horovod.tensorflow import Max, Sum, allgather, allreduce, broadcast_variables
except ImportError as error:
    raise ImportError(
        "Horovod can't be used here: it is not installed, or was built without TensorFlow. Install TensorFlow "
        "first, then build Horovod against it:\n"
        "    HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_GLOO=1 HOROVOD_CPU_OPERATIONS=GLOO "
        "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps horovod==0.28.1\n"
        f"Horovod's own words: {error}"
    ) from error


class Horovod:
    """The processes that `horovodrun` started, one replica each."""

    name = "horovod"

    def __init__(self) -> None:
        hvd.init()
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()
        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            tf.config.set_visible_devices(gpus[hvd.local_rank() % len(gpus)], "GPU")

    def all_reduce_max(self, vector: tf.Tensor, name: str) -> tf.Tensor:
        """One plain all-reduce; Horovod matches it between ranks by its name, whatever the graph around it."""
        # Ignoring the name scope, Horovod keeps what follows the last slash.
        return allreduce(vector, op=Max, name=name.replace("/", "."), ignore_name_scope=True)

    def all_reduce_sum(self, vector: tf.Tensor, name: str) -> tf.Tensor:
        """Like `all_reduce_max`."""
        return allreduce(vector, op=Sum, name=name.replace("/", "."), ignore_name_scope=True)

    def all_gather(self, array: np.ndarray, name: str) -> list[np.ndarray]:
        """Every rank's array."""
        return list(allgather(tf.constant(array[np.newaxis]), name=name).numpy())

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """Gives all ranks the values of rank 0."""
        broadcast_variables(variables, root_rank=0)

    def optimizer(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """Horovod's DistributedOptimizer."""
        return hvd.DistributedOptimizer(optimizer)

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """The initial broadcast, before the first step, and metrics averaged over the ranks."""
        return [_InitialBroadcast(self), hvd.callbacks.MetricAverageCallback()]


class _InitialBroadcast(keras.callbacks.Callback):
    """Broadcasts before the first step. Horovod's own callback does so after it, when the ranks' first
    forward passes have already run on different weights."""

    def __init__(self, engine: Horovod) -> None:
        super().__init__()
        self._engine = engine

    def on_train_begin(self, logs: dict | None = None) -> None:
        optimizer = self.model.optimizer
        if hasattr(optimizer, "build"):
            optimizer.build(self.model.trainable_variables)
        variables = optimizer.variables
        self._engine.broadcast([*self.model.variables, *(variables() if callable(variables) else variables)])
