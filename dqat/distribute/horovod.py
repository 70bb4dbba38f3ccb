"""Horovod: the only file that imports it."""

import logging
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from dqat.distribute.engine import OneReplicaPerProcess
from dqat.distribute.stall import StallWatch
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


_log = logging.getLogger("dqat")

#: Seconds that Gloo waits for a rank that doesn't answer at all, where nobody says otherwise; Horovod's own default.
_GLOO_TIMEOUT = 30


class Horovod(OneReplicaPerProcess):
    """The processes that `horovodrun` started, one replica each.

    Args:
        timeout: seconds after which a collective that misses a rank fails on the others: one that lives, but doesn't
            come. One that doesn't answer at all (its process is stopped, its host or the link is lost) is missed by
            Gloo after 30 seconds, or `timeout` where that is less; HOROVOD_GLOO_TIMEOUT_SECONDS, where set, goes
            before it.
    """

    name = "horovod"

    def __init__(self, timeout: float) -> None:
        os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(min(_GLOO_TIMEOUT, math.ceil(timeout))))
        hvd.init()
        self._first_rank, self._first_size = hvd.rank(), hvd.size()
        self.elastic = os.environ.get("HOROVOD_ELASTIC") == "1"
        self._watch = StallWatch(timeout, self._give_up)
        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            tf.config.set_visible_devices(gpus[hvd.local_rank() % len(gpus)], "GPU")

    # An elastic job renumbers its processes. Any other must be able to say its rank after a failure, too.
    @property
    def rank(self) -> int:
        """Of this process."""
        return hvd.rank() if self.elastic else self._first_rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return hvd.size() if self.elastic else self._first_size

    def forget_collectives(self) -> None:
        """What was awaited has failed, and is awaited no more."""
        self._watch.forget()

    def _give_up(self, name: str, seconds: float) -> None:
        _log.error(
            "dqat: rank %d has waited %.0f s in %s for a rank that does not come, and ends the collectives of all "
            "ranks (Strategy(timeout=...)). A rank that prints no such line is one that was missed",
            self.rank,
            seconds,
            name,
        )
        hvd.shutdown()

    def all_reduce_max(self, vector: tf.Tensor, name: str) -> tf.Tensor:
        """One plain all-reduce; Horovod matches it between ranks by its name, whatever the graph around it."""
        return self._all_reduce(vector, Max, name)

    def all_reduce_sum(self, vector: tf.Tensor, name: str) -> tf.Tensor:
        """Like `all_reduce_max`."""
        return self._all_reduce(vector, Sum, name)

    def all_reduce_total(self, vector: tf.Tensor, name: str) -> tf.Tensor:
        """A Sum of floats; what each rank's loss owes to the sum is summed for the gradient."""

        @tf.custom_gradient
        def total(vector: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            return self._all_reduce(vector, Sum, name), lambda upstream: self._all_reduce(
                upstream, Sum, f"{name}.gradient"
            )

        return total(vector)

    def _all_reduce(self, tensor: tf.Tensor, op: Any, name: str) -> tf.Tensor:
        name = _horovods_name(name)
        return self._watch.awaited(
            name, [tensor], lambda: [allreduce(tensor, op=op, name=name, ignore_name_scope=True)]
        )[0]

    def all_gather(self, array: np.ndarray, name: str) -> list[np.ndarray]:
        """Every rank's array."""
        with self._watch.awaiting(name):
            return list(allgather(tf.constant(array[np.newaxis]), name=name).numpy())

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """Gives all ranks the values of rank 0."""
        with self._watch.awaiting("the first broadcast"):
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
        attributes["_average"] = staticmethod(self._average)
        averaging = type(base.__name__, (_Averaging, base), attributes)
        return averaging.from_config(optimizer.get_config())

    def _average(self, gradients: list[Any], variables: list[tf.Variable]) -> list[Any]:
        """The mean of each gradient over the ranks; they are started one by one, as they come."""
        names = [f"dqat.gradient.{index}.{variable.name}" for index, variable in enumerate(variables)]

        def average() -> list[Any]:
            return [
                allreduce(gradient, op=Average, name=_horovods_name(name), ignore_name_scope=True)
                for gradient, name in zip(gradients, names, strict=True)
                if gradient is not None
            ]

        there = tf.nest.flatten([gradient for gradient in gradients if gradient is not None], expand_composites=True)
        averaged = iter(self._watch.awaited("the gradients' averages", there, average))
        return [gradient if gradient is None else next(averaged) for gradient in gradients]

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """Metrics averaged over the ranks."""
        return [_AverageMetrics(self._watch)]

    def reduce_loss(self, loss: Any) -> tf.Tensor:
        """The mean over the ranks."""
        return self._all_reduce(tf.convert_to_tensor(loss), Average, "dqat.loss")


def _horovods_name(name: str) -> str:
    # One name on all ranks, whatever the graph around it; ignoring its scope, Horovod keeps what follows a slash.
    return name.replace("/", ".").replace(":", ".")


class _AverageMetrics(hvd.callbacks.MetricAverageCallback):
    def __init__(self, watch: StallWatch) -> None:
        super().__init__()
        self._watch = watch

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        with self._watch.awaiting("the metrics' averages"):
            super().on_epoch_end(epoch, logs)


class _Averaging:
    """Put before an optimizer's class, averages gradients over the ranks before they are applied."""

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, tf.Variable]], *args: Any, **kwargs: Any) -> Any:
        pairs = list(grads_and_vars)
        variables = [variable for _, variable in pairs]
        averaged = self._average([gradient for gradient, _ in pairs], variables)
        return super().apply_gradients(list(zip(averaged, variables, strict=True)), *args, **kwargs)
