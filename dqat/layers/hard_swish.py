"""x * relu6(x + 3) / 6: one operator of TFLite's."""

from typing import Any

import tensorflow as tf

from dqat.keras_api import keras, register


@register("dqat")
class HardSwish(keras.layers.Layer):
    """The activation of MobileNetV3 (Howard et al., 2019)."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """x * relu6(x + 3) / 6."""
        return inputs * tf.nn.relu6(inputs + 3.0) * (1.0 / 6.0)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the input."""
        return input_shape
