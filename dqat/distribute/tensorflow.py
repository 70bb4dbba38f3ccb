"""tf.distribute: MirroredStrategy and MultiWorkerMirroredStrategy as an engine."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from dqat import replica_context
from dqat.distribute.sharding import rows_of_part
from dqat.keras_api import keras


class TensorFlow:
    """The replicas of a tf.distribute strategy: devices of this process, and of other processes.

    Args:
        strategy: a synchronous one, which has one variable copy a replica.

    Raises:
        TypeError: for a strategy whose replicas don't step together.
    """

    name = "tf"
    elastic = False

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        supported = (
            tf.distribute.MirroredStrategy,
            tf.distribute.MultiWorkerMirroredStrategy,
            tf.distribute.OneDeviceStrategy,
        )
        if not isinstance(strategy, supported):
            names = ", ".join(kind.__name__ for kind in supported)
            raise TypeError(f"the strategy must be one of {names}, got {type(strategy).__name__}")
        self.strategy = strategy
        resolver = strategy.cluster_resolver
        self.size: int = strategy.num_replicas_in_sync
        self.processes: int = 1
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and resolver is not None:
            jobs = resolver.cluster_spec().as_dict()
            self.processes = max(1, sum(len(jobs.get(job, [])) for job in ("chief", "worker")))
        self.local_replicas = self.size // self.processes
        task = 0
        if self.processes > 1:
            chiefs = len(resolver.cluster_spec().as_dict().get("chief", []))
            task = resolver.task_id + (chiefs if resolver.task_type == "worker" else 0)
        self.rank: int = task * self.local_replicas
        # In a graph that is kept: each eager collective is traced anew, which takes a hundred times as long.
        self._gather = tf.function(self._gather_rows, reduce_retracing=True)

    all_reduce_max = staticmethod(replica_context.all_reduce_max)
    all_reduce_sum = staticmethod(replica_context.all_reduce_sum)
    all_reduce_total = None  # Keras' BatchNormalization knows tf.distribute

    def _gather_rows(self, array: tf.Tensor) -> Any:
        def gather(array: tf.Tensor) -> tf.Tensor:
            return tf.distribute.get_replica_context().all_gather(array[tf.newaxis], axis=0)

        return self.strategy.run(gather, args=(array,))

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """The strategy's own."""
        if tf.distribute.get_strategy() is self.strategy:
            yield
            return
        with self.strategy.scope():
            yield

    def all_gather(self, array: np.ndarray, name: str) -> list[np.ndarray]:
        """Every process' array."""
        if self.processes == 1:
            return [array]

        rows = self.strategy.experimental_local_results(self._gather(tf.constant(array)))[0].numpy()
        return list(rows[:: self.local_replicas])

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """Nothing to do: variables made in the strategy's scope start with the first replica's values."""

    def optimizer(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """The optimizer, made in the strategy's scope: Keras' `apply_gradients` sums over the replicas there."""
        variables = optimizer.variables() if callable(optimizer.variables) else optimizer.variables
        if all(self.strategy.extended.variable_created_in_scope(variable) for variable in variables):
            return optimizer
        with self.scope():
            return type(optimizer).from_config(optimizer.get_config())

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """None needed: Keras averages the metrics itself."""
        return []

    def shard(self, dataset: tf.data.Dataset) -> Any:
        """The replicas' parts of each batch, each part on its device."""

        def parts(*batch: Any) -> tf.data.Dataset:
            return tf.data.Dataset.range(self.local_replicas).map(
                lambda index: rows_of_part(batch if len(batch) > 1 else batch[0], self.rank + index, self.size)
            )

        def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
            flat = dataset.flat_map(parts)
            count = tf.data.experimental.cardinality(dataset)
            if count >= 0:
                flat = flat.apply(tf.data.experimental.assert_cardinality(count * self.local_replicas))
            elif count == tf.data.experimental.INFINITE_CARDINALITY:
                flat = flat.apply(tf.data.experimental.assert_cardinality(tf.data.experimental.INFINITE_CARDINALITY))
            return flat.prefetch(self.local_replicas)

        return self.strategy.distribute_datasets_from_function(of_worker)

    def run(self, step: Callable, arguments: tuple) -> Any:
        """The step on every replica."""
        return self.strategy.run(step, args=arguments)

    @property
    def loss_scale(self) -> float:
        """Gradients are summed over the replicas: each replica's loss is its share of the mean."""
        return 1.0 / self.size

    def reduce_loss(self, loss: Any) -> tf.Tensor:
        """The sum of the replicas' shares."""
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, loss, axis=None)

    def copies(self, variable: tf.Variable) -> list[np.ndarray]:
        """The variable on each replica of this process."""
        return [part.numpy() for part in self.strategy.experimental_local_results(variable)]


def active_strategy() -> tf.distribute.Strategy | None:
    """The strategy in whose scope this is called, if any."""
    return tf.distribute.get_strategy() if tf.distribute.has_strategy() else None


def _workers_in_tf_config() -> int:
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG", "") or "{}").get("cluster", {})
        return sum(len(cluster.get(job, [])) for job in ("chief", "worker"))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"TF_CONFIG is not what TensorFlow expects: {os.environ['TF_CONFIG']!r} ({error})") from error


def runs_on_several_workers() -> bool:
    """Whether TF_CONFIG or Slurm's variables say that this process is one of several."""
    return _workers_in_tf_config() > 1 or _slurm_tasks() > 1


def _slurm_tasks() -> int:
    # Set inside a job step (srun); a script that sbatch starts directly runs alone.
    if "SLURM_PROCID" not in os.environ or "SLURM_STEP_ID" not in os.environ:
        return 1
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1)


def _slurm_resolver(tasks: int) -> tf.distribute.cluster_resolver.ClusterResolver:
    resolvers = tf.distribute.cluster_resolver
    gpus = len(tf.config.list_physical_devices("GPU"))
    if gpus:
        return resolvers.SlurmClusterResolver(gpus_per_node=gpus, gpus_per_task=1, auto_set_gpu=True)
    # Slurm's resolver deals out GPUs and can't do without: it is promised one a task, and the strategy hears of none.
    slurm = resolvers.SlurmClusterResolver(gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False)
    workers = slurm.cluster_spec()  # finds the task, too
    return resolvers.SimpleClusterResolver(workers, task_type=slurm.task_type, task_id=slurm.task_id, rpc_layer="grpc")


def cluster_strategy(timeout: float) -> tf.distribute.Strategy:
    """The strategy for where this process runs: TF_CONFIG, Slurm, or the devices of this machine.

    Args:
        timeout: seconds after which a collective that misses a worker fails.
    """
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=timeout)
    if _workers_in_tf_config() > 1:
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    if _slurm_tasks() > 1:
        resolver = _slurm_resolver(_slurm_tasks())
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver, communication_options=options)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])
