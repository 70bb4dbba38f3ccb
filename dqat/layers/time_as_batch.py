"""Time as part of the batch, where a layer does the same at every step."""

from typing import Any

import tensorflow as tf

from dqat.keras_api import keras, register


@register("dqat")
class MergeTime(keras.layers.Layer):
    """[batch, time, ...] as [batch * time, ...]."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The same values."""
        return tf.reshape(inputs, [-1, *inputs.shape[2:]])

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        """Without the time."""
        return tf.TensorShape([None, *tf.TensorShape(input_shape)[2:]])


@register("dqat")
class SplitTime(keras.layers.Layer):
    """The inverse of `MergeTime`.

    Args:
        steps: length of the time.
    """

    def __init__(self, steps: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps = steps

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The same values."""
        return tf.reshape(inputs, [-1, self.steps, *inputs.shape[1:]])

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        """With the time."""
        return tf.TensorShape([None, self.steps, *tf.TensorShape(input_shape)[1:]])

    def get_config(self) -> dict[str, Any]:
        """The length of the time."""
        return {**super().get_config(), "steps": self.steps}
