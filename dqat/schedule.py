"""When ranges are observed: from a start step on, up to a freeze step."""

import tensorflow as tf

#: A freeze step that never comes.
NEVER = 2**63 - 1


class Schedule:
    """Counts training steps and says whether the ranges follow the values in this one.

    Args:
        state: int64 [3] variable, kept with the model's weights and so in every checkpoint: the training steps
            done, the first step that is observed, and the first one that is not any more.
    """

    INITIAL = (0, 0, NEVER)

    def __init__(self, state: tf.Variable) -> None:
        self._state = state

    @property
    def steps(self) -> int:
        """Training steps done."""
        return int(self._state.numpy()[0])

    @property
    def window(self) -> tuple[int, int | None]:
        """The start step and the freeze step, or None where ranges are never frozen."""
        _, start, freeze = (int(value) for value in self._state.numpy())
        return start, None if freeze == NEVER else freeze

    def set_window(self, start: int, freeze: int | None) -> None:
        """Ranges are observed in the steps `start` to `freeze` - 1, counted from 0.

        Raises:
            ValueError: for a negative start, or a freeze step that isn't after it.
        """
        if start < 0 or (freeze is not None and freeze <= start):
            raise ValueError(f"start must be at least 0 and freeze more than start, got start={start}, freeze={freeze}")
        self._state.assign([self.steps, start, NEVER if freeze is None else freeze])

    def active(self) -> tf.Tensor:
        """bool scalar: whether this step is observed."""
        step, start, freeze = tf.unstack(self._state.read_value())
        return tf.logical_and(step >= start, step < freeze)

    def advance(self, training: bool | tf.Tensor) -> None:
        """Counts a step; none where `training` is a tensor that is false."""
        state = self._state.read_value()
        self._state.assign(state + tf.stack([tf.cast(training, tf.int64), 0, 0]))
