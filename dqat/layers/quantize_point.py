"""A mark in a model: this tensor is quantized here."""

from typing import Any

import tensorflow as tf

from dqat.keras_api import keras, register


@register("dqat")
class QuantizePoint(keras.layers.Layer):
    """Gives its input on; where the model is quantized, a quantizer with a range of its own stands here.

    In the exported file a point behind a quantized tensor is a requantization. It separates tensors that would
    otherwise need one scale, such as the fixed range of a softmax that is concatenated with something else.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The input."""
        return tf.identity(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the input."""
        return input_shape
