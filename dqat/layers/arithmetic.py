"""Arithmetic with a constant, which functional models write as `x * 2 + 1`."""

from typing import Any

import numpy as np
import tensorflow as tf

from dqat import integer
from dqat.keras_api import keras, register

_OPERATIONS = {
    "add": tf.add,
    "subtract": tf.subtract,
    "multiply": tf.multiply,
    "divide": tf.divide,
    "maximum": tf.maximum,
    "minimum": tf.minimum,
}
#: Those whose constant has a scale of its own; of a divisor the file has the inverse.
_QUANTIZED = ("add", "subtract", "multiply")


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
        constant = tf.constant(self._constant_of_file(), inputs.dtype)
        operands = (constant, inputs) if self.constant_first else (inputs, constant)
        return _OPERATIONS[self.operation](*operands)

    def _constant_of_file(self) -> np.ndarray:
        """The constant on the int8 grid of its extremes, where TFLite stores it so; a number is on it."""
        low, high = np.minimum(self.constant.min(), 0.0), np.maximum(self.constant.max(), 0.0)
        if self.operation not in _QUANTIZED or low == high:
            return self.constant
        found = integer.quantization_parameters(low, high)
        grid = {"scale": float(found["scale"]), "zero_point": int(found["zero_point"])}
        return integer.dequantize(integer.quantize(self.constant, **grid), **grid)

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
