"""Training that outlives its workers: what is committed, and how it goes on from there.

Under elastic Horovod a worker may die (the machine is taken away, the process is killed) or join. The others
find out at their next collective, go back to what they committed last, number themselves anew, take over rank
0's state and go on. What must survive beside weights is what a range is made of: ranges, the observers' state
and the optimizer's, and the position in the data.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from dqat.distribute.strategy import Strategy
from dqat.keras_api import keras
from dqat.model import require_quantized

#: In the message of a collective that failed: Horovod's op, its libraries' source, or a name of ours.
_SIGNS = ("horovod", "gloo", "nccl", "dqat.")


class ElasticState:
    """A training run that workers may leave and join, from commit to commit.

    Outside of an elastic job (one process, plain `horovodrun`) the same script trains as ever.

    Example:
        >>> state = dqat.distribute.ElasticState(strategy, quantized)  # compiled
        >>> def batches(epoch):
        ...     return samples.shuffle(1000, seed=epoch, reshuffle_each_iteration=False).batch(32)
        >>> state.fit(batches, epochs=10, commit_every=10)

    A script that says more itself hands a function to `run`, and calls `advance` after every step:
        >>> def train(state):
        ...     for batch in strategy.shard(samples.skip(state.step).take(1000 - state.step)):
        ...         train_step(batch)
        ...         state.advance()
        ...         if state.step % 10 == 0:
        ...             state.commit()
        >>> state.run(train)

    A worker that joins runs the script from its start: no collective may stand before `fit` or `run`, and there
    may be one of them in a script.

    Args:
        strategy: where training runs.
        model: a quantized model, compiled with `strategy.optimizer(...)`. Its variables (weights, ranges, the
            observers' averages, histograms and counters) and its optimizer's are what is committed.

    Attributes:
        step: steps of training that are part of the state, each counted once.
        epoch: epochs that are complete.
        batch: steps of the present epoch.

    Raises:
        TypeError: for a model that is not quantized.
        ValueError: for a model that is not compiled.
    """

    def __init__(self, strategy: Strategy, model: keras.Model) -> None:
        require_quantized(model)
        optimizer = getattr(model, "optimizer", None)
        if optimizer is None:
            raise ValueError(f"model {model.name!r} is not compiled: its optimizer is part of what is committed")
        # Horovod commits the variables that exist: an optimizer makes its own in the first step, too late.
        with strategy.scope():
            if hasattr(optimizer, "build"):
                optimizer.build(model.trainable_variables)
            else:  # Keras' legacy optimizers, and tensorflow-addons'
                optimizer._create_all_weights(model.trainable_variables)
        self._strategy, self._model = strategy, model
        self.step = self.epoch = self.batch = 0
        self._horovod = _horovod_state(self) if strategy.is_elastic else None

    def advance(self, steps: int = 1) -> None:
        """Counts steps that were made."""
        self.step += steps
        self.batch += steps

    def end_epoch(self) -> None:
        """Counts an epoch that is complete."""
        self.epoch += 1
        self.batch = 0

    def commit(self) -> None:
        """Makes the present state the one that training goes back to. All replicas must call it.

        It copies the state within the memory of each worker, and looks whether workers have joined: if so, it
        leaves `run`'s function, which starts again with them.
        """
        if self._horovod is not None:
            self._horovod.commit()

    def run(self, function: Callable[["ElasticState"], Any]) -> Any:
        """Calls `function(state)` until it returns, anew whenever workers have died or joined.

        Args:
            function: goes on from `state.step`. What depends on rank or size (`strategy.shard`) belongs inside.

        Returns:
            What `function` returns.
        """
        if self._horovod is None:
            return function(self)
        from dqat.distribute.horovod import hvd

        @hvd.elastic.run
        def attempt(_: Any) -> Any:
            try:
                with _lost_collectives():
                    return function(self)
            finally:
                self._strategy._engine.forget_collectives()

        self._horovod.save()
        return attempt(self._horovod)

    def fit(
        self,
        batches: Callable[[int], tf.data.Dataset],
        *,
        epochs: int,
        commit_every: int = 10,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int | str = 1,
    ) -> None:
        """`model.fit`, elastic.

        Args:
            batches: gives an epoch's dataset, of global batches, from the epoch's number: the same on all
                replicas, for those that join later too, and each time it is read. Shuffle with the epoch as the
                seed and `reshuffle_each_iteration=False`.
            epochs: to train in all.
            commit_every: steps between commits; what was trained since the last one is trained again after a
                failure. Epochs end with a commit.
            callbacks: beside the strategy's own. `on_train_begin` and `on_train_end` come once an epoch, and
                once more after a reset.
            verbose: of the chief.

        Raises:
            ValueError: where commit_every is not positive or a dataset does not know its number of batches.
        """
        if commit_every < 1:
            raise ValueError(f"commit_every must be at least 1, got {commit_every}")

        def train(_: "ElasticState") -> None:
            while self.epoch < epochs:
                dataset = batches(self.epoch)
                steps = int(dataset.cardinality())
                if steps < 0:
                    raise ValueError(
                        "batches(epoch) gives a dataset of unknown or infinite length: "
                        "say how many batches an epoch has, by take() or tf.data.experimental.assert_cardinality()"
                    )
                if self.batch < steps:
                    self._model.fit(
                        **self._strategy.fit_data(dataset.skip(self.batch)),
                        initial_epoch=self.epoch,
                        epochs=self.epoch + 1,
                        callbacks=[
                            *self._strategy.callbacks(),
                            _Count(self),
                            *callbacks,
                            _Commit(self, commit_every, steps),
                        ],
                        verbose=self._strategy.verbose(verbose),
                    )
                self.end_epoch()
                self.commit()

        self.run(train)


class _Count(keras.callbacks.Callback):
    """Counts steps, before other callbacks look."""

    def __init__(self, state: ElasticState) -> None:
        super().__init__()
        self._state = state

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._state.advance()


class _Commit(keras.callbacks.Callback):
    """Commits within an epoch, after other callbacks, for a commit may leave `fit`.

    The last step of an epoch is committed with its end.
    """

    def __init__(self, state: ElasticState, every: int, steps: int) -> None:
        super().__init__()
        self._state, self._every, self._steps = state, every, steps

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self._state.step % self._every == 0 and self._state.batch < self._steps:
            self._state.commit()


@contextlib.contextmanager
def _lost_collectives() -> Iterator[None]:
    """Tells Horovod of its own failed collectives.

    TensorFlow reports them as UnknownError, as it does what Python functions in the data's way raise. Horovod
    knows those of its own names only, and not the ones that carry a name of ours.
    """
    from horovod.common.exceptions import HorovodInternalError

    try:
        yield
    except tf.errors.UnknownError as error:
        if not any(sign in str(error).lower() for sign in _SIGNS):
            raise
        raise HorovodInternalError(str(error)) from error


def _horovod_state(state: ElasticState) -> Any:
    """Horovod's own state of a Keras model, with the counters of `state`."""
    from dqat.distribute.horovod import hvd

    class CountedState(hvd.elastic.KerasState):
        """The counters live in `ElasticState`."""

        def save(self) -> None:
            self.counters = (state.step, state.epoch, state.batch)
            super().save()

        def restore(self) -> None:
            super().restore()
            self._count()

        def sync(self) -> None:
            # Horovod looks out for failures in the training function alone; workers die while others join, too.
            with _lost_collectives():
                super().sync()
            self._count()

        def _count(self) -> None:
            state.step, state.epoch, state.batch = self.counters

    return CountedState(state._model, counters=(0, 0, 0))
