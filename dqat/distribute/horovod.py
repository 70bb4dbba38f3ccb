"""Horovod: the only file that imports it."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from dqat.distribute.engine import OneReplicaPerProcess
from dqat.keras_api import keras

try:
    import horovod.tensorflow.keras as hvd
    from horovod.tensorflow import Average, Max, Sum, allgather, allreduce, broadcast_variables
except ImportError as error:
    raise ImportError(
        "Horovod can't be used here: it is not installed, or was built without TensorFlow. Install TensorFlow "
        "first, then build Horovod against it:\n"
        "    HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_GLOO=1 HOROVOD_CPU_OPERATIONS=GLOO "
        "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps horovod==0.28.1\n"
        f"Horovod's own words: {error}"
    ) from error


class Horovod(OneReplicaPerProcess):
    """The processes that `horovodrun` started, one replica each.

    Args:
        timeout: seconds after which a collective that misses a rank fails on the others; the variables
            HOROVOD_STALL_CHECK_TIME_SECONDS and HOROVOD_STALL_SHUTDOWN_TIME_SECONDS, where set, go before it.
    """

    name = "horovod"

    def __init__(self, timeout: float) -> None:
        seconds = max(2, round(timeout))
        # Horovod warns first, and shuts down only after a warning.
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", str(min(60, seconds // 2)))
        os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(seconds))
        hvd.init()
        self.elastic = os.environ.get("HOROVOD_ELASTIC") == "1"
        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            tf.config.set_visible_devices(gpus[hvd.local_rank() % len(gpus)], "GPU")

    @property
    def rank(self) -> int:
        """Asked anew each time: an elastic job renumbers its processes."""
        return hvd.rank()

    @property
    def size(self) -> int:
        """Like `rank`."""
        return hvd.size()

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
        """The optimizer, whose `apply_gradients` averages first.

        Horovod's own DistributedOptimizer averages in `minimize` alone with Keras' optimizers of today: a loop
        that calls `apply_gradients` would train each rank for itself, without a word.
        """
        base = type(optimizer)
        # A subclass of the same name: what Keras saves names the optimizer that a process without Horovod loads.
        names = ("__module__", "__qualname__", "__doc__", "_keras_api_names", "_keras_api_names_v1")
        attributes = {name: vars(base)[name] for name in names if name in vars(base)}
        averaging = type(base.__name__, (_Averaging, base), attributes)
        return averaging.from_config(optimizer.get_config())

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """Metrics averaged over the ranks."""
        return [hvd.callbacks.MetricAverageCallback()]

    def reduce_loss(self, loss: Any) -> tf.Tensor:
        """The mean over the ranks."""
        return allreduce(tf.convert_to_tensor(loss), op=Average, name="dqat.loss", ignore_name_scope=True)


class _Averaging:
    """Put before an optimizer's class, averages gradients over the ranks before they are applied."""

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, tf.Variable]], *args: Any, **kwargs: Any) -> Any:
        averaged = [
            (gradient if gradient is None else self._average(gradient, f"{index}.{variable.name}"), variable)
            for index, (gradient, variable) in enumerate(grads_and_vars)
        ]
        return super().apply_gradients(averaged, *args, **kwargs)

    @staticmethod
    def _average(gradient: Any, name: str) -> Any:
        # One name on all ranks, whatever the graph around it.
        name = "dqat.gradient." + name.replace("/", ".").replace(":", ".")
        return allreduce(gradient, op=Average, name=name, ignore_name_scope=True)
