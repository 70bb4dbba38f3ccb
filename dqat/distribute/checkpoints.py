"""Checkpoints that are written once, hold everything a run goes on from, and say what is wrong with them."""

import json
import pathlib
import tempfile

import tensorflow as tf

from dqat.distribute.fingerprint import structure
from dqat.distribute.strategy import Strategy
from dqat.keras_api import keras


class CheckpointError(RuntimeError):
    """A checkpoint that can't be read, or is of another model; the message says which and why."""


class Checkpoints(keras.callbacks.Callback):
    """Saves and restores a model, its ranges and observers, its schedule and its optimizer.

    As a callback of `fit` it saves every so many steps; a loop of its own calls `save`. A checkpoint appears
    whole or not at all: one that a process died in leaves the one before in place. Nothing of a step is in flight
    between steps: ranges in a checkpoint are those that the next step starts with, on any number of replicas.

    Args:
        strategy: the replicas; the chief writes.
        folder: of the checkpoints, seen by all processes.
        every: steps between two checkpoints in `fit`; None for none.
        keep: so many are kept.

    Raises:
        ValueError: for `every` or `keep` less than 1.
    """

    def __init__(
        self, strategy: Strategy, folder: str | pathlib.Path, *, every: int | None = None, keep: int = 3
    ) -> None:
        super().__init__()
        if (every is not None and every < 1) or keep < 1:
            raise ValueError(f"every and keep must be at least 1, got every={every}, keep={keep}")
        self._strategy, self._folder, self._every, self._keep = strategy, pathlib.Path(folder), every, keep
        self._steps = 0

    def restore(
        self, model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None, *, step: int | None = None
    ) -> int:
        """Restores the newest checkpoint, or that of a step, on every process.

        Args:
            model: built like the one that was saved.
            optimizer: as was saved, or None.
            step: training steps done at the checkpoint; None for the newest.

        Returns:
            The training steps done; 0 where there is no checkpoint.

        Raises:
            CheckpointError: for one that is damaged or of another model.
        """
        path = tf.train.latest_checkpoint(str(self._folder))
        if path is None and step is None:
            return 0
        if step is not None:
            path = str(self._folder / f"ckpt-{step}")
        self._strategy.build_optimizer(model, optimizer)
        checkpoint = self._checkpoint(model, optimizer)
        try:
            names = [name for name, _ in tf.train.list_variables(path)]
            if _STATE not in names:
                raise CheckpointError(f"{path} is no checkpoint of dqat.callbacks.Checkpoints: it has no {_STATE}")
            saved = json.loads(tf.train.load_variable(path, _STATE))
            _require_same(path, saved["structure"], structure(model))
            checkpoint.restore(path).assert_existing_objects_matched()
        except (tf.errors.OpError, AssertionError, IndexError, ValueError) as error:  # IndexError: a short file
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path} can't be restored, it is damaged or of another model: {reason}") from error
        return saved["steps"]

    def save(self, model: keras.Model, optimizer: keras.optimizers.Optimizer | None, step: int) -> None:
        """Writes a checkpoint; every process must call it, the chief's is kept.

        Args:
            model: built.
            optimizer: or None.
            step: training steps done.
        """
        checkpoint = self._checkpoint(model, optimizer, step)
        if self._strategy.is_chief:
            self._write(checkpoint, self._folder, step)
        elif self._strategy.engine == "tf":  # what the chief does has collectives that all workers take part in
            with tempfile.TemporaryDirectory(prefix="dqat_checkpoint_") as aside:
                self._write(checkpoint, pathlib.Path(aside), step)

    def _write(self, checkpoint: tf.train.Checkpoint, folder: pathlib.Path, step: int) -> None:
        tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=self._keep).save(step)

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Takes the count of steps over from the model."""
        schedule = getattr(getattr(self.model, "range_sync", None), "schedule", None)
        self._steps = schedule.steps if schedule is not None else int(self.model.optimizer.iterations.numpy())

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Saves, every so many steps."""
        self._steps += 1
        if self._every is not None and self._steps % self._every == 0:
            self.save(self.model, self.model.optimizer, self._steps)

    def _checkpoint(
        self, model: keras.Model, optimizer: keras.optimizers.Optimizer | None, step: int = 0
    ) -> tf.train.Checkpoint:
        parts = {"model": model} if optimizer is None else {"model": model, "optimizer": optimizer}
        return tf.train.Checkpoint(dqat=_State(structure(model), step), **parts)


#: Where a checkpoint says what it is of.
_STATE = "dqat/.ATTRIBUTES/py_state"


class _State(tf.train.experimental.PythonState):
    """The model's structure and the steps done; no variable, which a strategy would want to share."""

    def __init__(self, structure: list[str], steps: int) -> None:
        self._content = json.dumps({"structure": structure, "steps": steps})

    def serialize(self) -> str:
        return self._content

    def deserialize(self, string_value: str) -> None:
        self._content = string_value


def _require_same(path: str, saved: list[str], expected: list[str]) -> None:
    for there, here in zip([*saved, "nothing more"], [*expected, "nothing more"], strict=False):
        if there != here:
            raise CheckpointError(f"{path} is of another model. The first difference: it has {there!r}, not {here!r}")
