"""One wrapper around whatever runs the replicas, so that a training script has no branch on it."""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from dqat.distribute.engine import Engine, OneReplicaPerProcess, as_bits
from dqat.distribute.fingerprint import compare, fingerprint
from dqat.distribute.sharding import with_weights
from dqat.distribute.tensorflow import TensorFlow, active_strategy, cluster_strategy, runs_on_several_workers
from dqat.keras_api import keras
from dqat.model import named_quantizers, ranges
from dqat.range_sync import Reductions, reductions_scope

_log = logging.getLogger("dqat")

ENGINES = ("auto", "none", "tf", "horovod")


def _pick(engine: str, timeout: float) -> Engine:
    if engine == "auto":
        engine = os.environ.get("DQAT_ENGINE", "auto")
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    active = active_strategy()
    if engine == "tf" or (engine == "auto" and active is not None):
        return TensorFlow(active or cluster_strategy(timeout))
    if engine == "horovod" or (engine == "auto" and "HOROVOD_RANK" in os.environ):
        from dqat.distribute.horovod import Horovod

        return Horovod(timeout)
    if engine == "auto" and runs_on_several_workers():
        return TensorFlow(cluster_strategy(timeout))
    return OneReplicaPerProcess()


class Strategy:
    """Where training runs, and what that asks of a script.

    Example:
        >>> strategy = dqat.distribute.Strategy()
        >>> with strategy.scope():
        ...     model = dqat.quantize_model(float_model)
        ...     model.compile(strategy.optimizer(tf.keras.optimizers.Adam(1e-4)), loss)
        >>> model.fit(
        ...     **strategy.fit_data(dataset), epochs=10, callbacks=strategy.callbacks(), verbose=strategy.verbose()
        ... )

        A loop of your own, with the same words on every engine:

        >>> @tf.function
        ... def step(samples, labels):
        ...     def replica(samples, labels):
        ...         with tf.GradientTape() as tape:
        ...             loss = strategy.loss(losses_of_rows(labels, model(samples, training=True)))
        ...         gradients = tape.gradient(loss, model.trainable_variables)
        ...         gradients = model.range_sync.hold_back(gradients)  # until no NaN is known on any replica
        ...         optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        ...         return loss
        ...     return strategy.reduce_loss(strategy.run(replica, (samples, labels)))
        >>> strategy.start(model, optimizer)
        >>> for samples, labels in strategy.shard(dataset):
        ...     loss = step(samples, labels)

    Args:
        engine: "horovod"; "tf": the `tf.distribute` strategy in whose scope this is called, else the workers of
            TF_CONFIG or of a Slurm step, else a MirroredStrategy over all GPUs, or over all logical CPUs where
            there is none; "none": one process. "auto" takes what the environment variable DQAT_ENGINE says, else
            finds out: the active `tf.distribute` strategy, `horovodrun`, TF_CONFIG, Slurm, or else one process.
        timeout: seconds after which a collective that misses a replica fails on the others.

    Attributes:
        rank: of this process' first replica, 0 to size - 1.
        size: number of replicas.

    Raises:
        ValueError: for another engine, or a TF_CONFIG that can't be read.
        TypeError: for a `tf.distribute` strategy whose replicas don't step together.
        ImportError: for Horovod where it is missing or was built without TensorFlow.
    """

    def __init__(self, engine: str = "auto", *, timeout: float = 600.0) -> None:
        self._engine = _pick(engine, timeout)

    @property
    def engine(self) -> str:
        """The engine's name."""
        return self._engine.name

    @property
    def rank(self) -> int:
        """The number of this process' first replica, from 0."""
        return self._engine.rank

    @property
    def size(self) -> int:
        """The number of replicas."""
        return self._engine.size

    @property
    def is_elastic(self) -> bool:
        """Whether replicas may die or join while it runs; see `dqat.distribute.ElasticState`."""
        return self._engine.elastic

    @property
    def is_chief(self) -> bool:
        """True in the one process that writes files and messages."""
        return self.rank == 0

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Models that are made inside, and compiled, train on these replicas with the same ranges on all."""
        with self._engine.scope():
            if self.size == 1 and not self.is_elastic:
                yield
                return
            engine = self._engine
            reductions = Reductions(engine.all_reduce_max, engine.all_reduce_sum, engine.all_reduce_total)
            with reductions_scope(reductions):
                yield

    def optimizer(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """The optimizer, averaging gradients over the replicas; Keras', Keras' legacy ones or tensorflow-addons'."""
        return self._engine.optimizer(optimizer)

    def shard(self, dataset: tf.data.Dataset, *, weighted: bool = False) -> Any:
        """The replicas' parts of each batch.

        Args:
            dataset: batches of the whole (global) batch size, the same in all processes: shuffle with a seed.
            weighted: gives (x, y, sample_weight), such that the mean of the replicas' weighted means is the mean
                over the whole batch also where it doesn't divide.

        Returns:
            For a loop (`fit` takes `fit_data`): batches of consecutive rows; the parts of all replicas, in rank
            order, are the global batch. Sizes differ by one where it does not divide; there are no rows for some
            replicas where the batch has fewer than replicas. With tf.distribute, a dataset of one part a device.
        """
        if weighted:
            dataset = dataset.map(functools.partial(with_weights, size=self.size))
        return self._engine.shard(dataset)

    def fit_data(
        self, dataset: tf.data.Dataset, *, weighted: bool = False, steps: int | None = None, skip: int = 0
    ) -> dict[str, Any]:
        """`shard`, as arguments of `model.fit`, which is told the steps of an epoch on every engine.

        Args:
            dataset: see `shard`; it is repeated.
            weighted: see `shard`.
            steps: of an epoch; None for the number of batches in `dataset`.
            skip: steps that an earlier run has done already, for resuming in the order of the data.

        Returns:
            {"x": …, "steps_per_epoch": …}

        Raises:
            ValueError: where the number of batches is not known and `steps` is not given.
        """
        if steps is None:
            steps = int(tf.data.experimental.cardinality(dataset))
            if steps < 0:
                raise ValueError("the dataset does not know its number of batches: give the steps of an epoch as steps")
        return {"x": self.shard(dataset.repeat().skip(skip), weighted=weighted), "steps_per_epoch": steps}

    def run(self, step: Callable, arguments: tuple) -> Any:
        """Runs `step(*arguments)` on each replica of this process; call it inside a `tf.function`.

        Args:
            step: the training step of a replica.
            arguments: what iterating over `shard` gave.
        """
        return self._engine.run(step, arguments)

    def loss(self, losses: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
        """A replica's loss, whose gradients add up to those of the mean over the replicas; 0 without rows.

        Args:
            losses: one for each row, any shape.
            weights: like `losses`, from `shard(weighted=True)`.
        """
        total = tf.reduce_sum(losses if weights is None else losses * weights)
        mean = tf.math.divide_no_nan(total, tf.cast(tf.size(losses), total.dtype))
        return mean * self._engine.loss_scale

    def reduce_loss(self, loss: Any) -> tf.Tensor:
        """The mean over the replicas, from what `run` gave for a step that returns `loss(…)`."""
        return self._engine.reduce_loss(loss)

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """Gives all replicas the values of rank 0; `start` and `fit` do it."""
        self._engine.broadcast(variables)

    def start(self, model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None) -> None:
        """The same beginning on all replicas, for custom loops; `fit` does it through `callbacks`.

        Args:
            model: built.
            optimizer: its variables are made and made the same too.

        Raises:
            RuntimeError: in every process, where the model is not the same in all; names the first difference.
        """
        compare(self._engine, fingerprint(model))
        if self.engine == "horovod" and self.size > 1:
            norms = [layer.name for layer in model._flatten_layers() if not getattr(layer, "synchronized", True)]
            if norms and self.is_chief:
                _log.warning(
                    "each rank has the statistics of its own rows in %s: write BatchNormalization(synchronized=True), "
                    "or freeze them (dqat.callbacks.RangeSchedule(freeze_batch_norm=…))",
                    ", ".join(norms),
                )
        self._engine.broadcast([*model.variables, *self.build_optimizer(model, optimizer)])

    def build_optimizer(self, model: keras.Model, optimizer: keras.optimizers.Optimizer | None) -> list[tf.Variable]:
        """Makes the optimizer's variables for the model where they aren't there, and gives them."""
        if optimizer is None:
            return []
        with self._engine.scope():
            if hasattr(optimizer, "build"):
                optimizer.build(model.trainable_variables)
            elif hasattr(optimizer, "_create_all_weights"):
                optimizer._create_all_weights(model.trainable_variables)
        found = optimizer.variables
        return list(found() if callable(found) else found)

    def gather(self, variable: tf.Variable) -> np.ndarray:
        """The variable on every replica, by rank: [size, ...]. All processes must call it."""
        copies = np.stack(self._engine.copies(variable))
        return np.concatenate(self._engine.all_gather(copies, "dqat.gather"))

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """What `fit` needs: the same beginning, and metrics averaged over the replicas."""
        return [_Start(self), *self._engine.callbacks()]

    def verbose(self, verbose: int | str = 1) -> int | str:
        """`verbose` on the chief, 0 elsewhere."""
        return verbose if self.is_chief else 0

    def print(self, *values: Any) -> None:
        """Prints on the chief."""
        if self.is_chief:
            print(*values, flush=True)

    def ranges_identical(self, model: keras.Model) -> bool:
        """Whether all replicas hold the same bits in all ranges of `model`. All processes must call it.

        Raises:
            TypeError: for a model that is not quantized.
        """
        of_weights = [part for _, range_ in sorted(ranges(model).items()) for part in range_]
        states = [
            self._engine.copies(variable) for _, quantizer in named_quantizers(model) for variable in quantizer.weights
        ]
        replicas = [as_bits([*copies, *of_weights]) for copies in zip(*states, strict=True)] or [as_bits(of_weights)]
        gathered = self._engine.all_gather(np.stack(replicas), "dqat.ranges_identical")
        return bool((np.concatenate(gathered) == gathered[0][0]).all())


class _Start(keras.callbacks.Callback):
    """Before the first step. Horovod's own callback broadcasts after it, when the ranks' first forward passes
    have already run on different weights."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__()
        self._strategy = strategy

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._strategy.start(self.model, self.model.optimizer)
