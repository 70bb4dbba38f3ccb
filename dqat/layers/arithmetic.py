"""Arithmetic with a constant, which functional models write as `x * 2 + 1`."""

from typing import Any

import numpy as np
import tensorflow as tf

from dqat.keras_api import keras, register

_OPERATIONS = {
    "add": tf.add,
    "subtract": tf.subtract,
    "multiply": tf.multiply,
    "divide": tf.divide,
    "maximum": tf.maximum,
    "minimum": tf.minimum,
}


@register("dqat")
class Arithmetic(keras.layers.Layer):
    """One operation of a tensor and a constant.

    Args:
        operation: "add", "subtract", "multiply", "divide", "maximum" or "minimum".
        constant: a number or an array that broadcasts to the tensor.
        constant_first: the constant is the left operand.

    Raises:
        ValueError: for another operation.
    """

    def __init__(self, operation: str, constant: Any, constant_first: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if operation not in _OPERATIONS:
            raise ValueError(f"operation must be one of {', '.join(_OPERATIONS)}, got {operation!r}")
        self.operation = operation
        self.constant = np.asarray(constant, np.float32)
        self.constant_first = constant_first

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The operation."""
        constant = tf.constant(self.constant, inputs.dtype)
        operands = (constant, inputs) if self.constant_first else (inputs, constant)
        return _OPERATIONS[self.operation](*operands)

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        """That of both operands broadcast."""
        return tf.broadcast_static_shape(tf.TensorShape(input_shape), tf.TensorShape(self.constant.shape))

    def get_config(self) -> dict[str, Any]:
        """The operation and its constant."""
        return {
            **super().get_config(),
            "operation": self.operation,
            "constant": self.constant.tolist(),
            "constant_first": self.constant_first,
        }
