"""How a recurrent cell is computed in integers: weights, quantization points and one timestep.

A form is written once and runs three ways: it is traced when a layer is built (which finds its points), inside the
training loop (where points fake-quantize and record), and unrolled for the export (where points become constant
fake-quants, and each tensor between two points becomes one int8 operator).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from dqat.keras_api import keras
from dqat.layers import xnnpack
from dqat.observers import Fixed

#: A sigmoid or tanh beyond this input is within an int8 step of its limit, so that a wider range would only
#: make the steps coarser. The integer kernels saturate there without an operator of their own.
PREACTIVATION_LIMIT = 8.0

State = tuple[tf.Tensor, ...]


class Levels(NamedTuple):
    """The levels of a point.

    Attributes:
        scale: their distance, float32 scalar without a gradient; 0 before the first range.
        highest: the largest of them, likewise.
        num_bits: of the point.
    """

    scale: tf.Tensor
    highest: tf.Tensor
    num_bits: int


class Numerics(Protocol):
    """What a form computes with."""

    weights: dict[str, Any]  # tensors, and what the form has prepared
    is_export: bool  # whether operators of the integer graph are being made
    rounds_as_kernels: bool  # whether points have the levels of TFLite's kernels, every one: outside training

    def point(
        self,
        name: str,
        value: tf.Tensor,
        *,
        limit: float | None = None,
        kind: str = "activation",
        exact: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """A tensor that the integer graph stores: quantized here.

        Args:
            name: unique in the cell.
            value: float32 [batch, units].
            limit: values saturate at ±limit.
            kind: "activation" or "cell_state": which quantizer of the scheme; or "complement", for 1 less a sigmoid,
                which has the sigmoid's levels: on a grid of its own the middle of the range lies between two levels,
                and kernels differ in the one that they take.
            exact: what TFLite's operator gives, like `value`, where that is not the level next to it; record and
                gradient are those of `value`. Not at export.
        """

    def levels(self, name: str) -> Levels:
        """Of a point now. Not at export."""

    def dropped(self, hidden: tf.Tensor) -> tf.Tensor:
        """The hidden state with recurrent dropout, where the layer has it and trains."""


class CellForm:
    """Base of the forms.

    Args:
        cell: the float cell, whose weights are trained; built before anything but the constructor is used.

    Attributes:
        is_one_operator: TFLite computes the whole cell in one operator, so that results between points are its own.
    """

    is_one_operator = False

    def __init__(self, cell: keras.layers.Layer) -> None:
        self.cell = cell

    def matrices(self) -> dict[str, tf.Tensor]:
        """The weights that are quantized, by role, in the shape that their quantizer speaks of."""
        cell = self.cell
        return {role: tf.convert_to_tensor(getattr(cell, role)) for role in ("kernel", "recurrent_kernel")}

    def biases(self) -> dict[str, tf.Tensor]:
        """The weights that stay in float, by role: int32 in the file."""
        return {"bias": tf.convert_to_tensor(self.cell.bias)} if self.cell.use_bias else {}

    def bias_products(self) -> dict[str, tuple[str, str | None]]:
        """Which product each bias is added to: the role of its matrix, and the point that goes into it.

        TFLite stores a bias in int32 on the product of both scales. None stands for the layer's inputs; a bias that
        is left out is simulated in float.
        """
        return {"bias": ("kernel", None)}

    def prepared(self, run: Numerics) -> dict[str, Any]:
        """What all timesteps' `step` share, by role: computed once before the loop, and found among its weights."""
        return {}

    def project(self, x: tf.Tensor, run: Numerics) -> tf.Tensor:
        """What depends on the inputs alone: computed for all timesteps at once.

        Args:
            x: float32 [rows, features].
            run: numerics.

        Returns:
            float32 [rows, ...].
        """
        return x

    def step(self, projected: tf.Tensor, states: State, run: Numerics) -> tuple[tf.Tensor, State]:
        """One timestep.

        Args:
            projected: float32 [batch, ...], of `project`.
            states: float32 [batch, units] each, quantized.
            run: numerics.

        Returns:
            Output and new states; each of them the result of a point.
        """
        raise NotImplementedError

    def output_range(self) -> Fixed | None:
        """The range that TFLite prescribes for the output, or None."""
        return None


#: What TFLite's int8 kernels prescribe for the output of an operation, by TensorFlow's name of it.
FIXED = {"Sigmoid": Fixed(0.0, 255.0 / 256.0), "Tanh": Fixed(-1.0, 127.0 / 128.0)}
#: What its int16 kernels prescribe for all of them: a scale of 1/32768 and zero point 0.
_FIXED_16 = Fixed(-32767.0 / 32768.0, 32767.0 / 32768.0)


def prescribed(fixed: Fixed | None, num_bits: int) -> Fixed | None:
    """The range of a quantizer of so many bits, where the int8 kernels prescribe `fixed`; others stay as they are."""
    return _FIXED_16 if num_bits == 16 and fixed in FIXED.values() else fixed


def activation_range(cell: keras.layers.Layer) -> Fixed | None:
    """What TFLite prescribes for the output of the cell's activation, or None."""
    return FIXED.get(activation_name(cell.activation).capitalize())


def matrix_product(x: tf.Tensor, matrix: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
    """x [rows, depth] times a matrix [depth, columns], and the bias: one operator of TFLite's."""
    product = tf.matmul(x, matrix)
    return product if bias is None else tf.nn.bias_add(product, bias)


def input_product(form: CellForm, x: tf.Tensor, run: Numerics) -> tf.Tensor:
    """`CellForm.project` of cells with one kernel: the inputs' product, quantized."""
    return run.point("input_product", matrix_product(x, run.weights["kernel"], run.weights.get("bias")))


def product_point(
    run: Numerics, name: str, source: str, x: tf.Tensor, matrix: tf.Tensor, bias: tf.Tensor | None = None
) -> tf.Tensor:
    """A matrix product of the values of one point, quantized to another: sums as FULLY_CONNECTED rounds them.

    Args:
        run: numerics.
        name: of the point.
        source: the point of `x`.
        x: float32 [rows, depth].
        matrix: float32 [depth, columns], quantized; its largest weight has level 127 or -127.
        bias: float32 [columns], or None.
    """
    product = matrix_product(x, matrix)
    value = product if bias is None else tf.nn.bias_add(product, bias)
    if not run.rounds_as_kernels:
        return run.point(name, value)
    before, after = run.levels(source), run.levels(name)
    if (before.num_bits, after.num_bits) != (8, 8):
        return run.point(name, value)
    step = before.scale * (tf.reduce_max(tf.abs(matrix)) / 127.0)
    known = (step > 0.0) & (after.scale > 0.0)
    step, scale = tf.where(known, step, 1.0), tf.where(known, after.scale, 1.0)
    sums = tf.round(product / step) + (0.0 if bias is None else tf.round(bias / step))
    found = tf.round(sums * (step / scale)) * scale
    found = tf.clip_by_value(found, after.highest - 255.0 * scale, after.highest)
    return run.point(name, value, exact=tf.where(known, found, value))


def linear(x: tf.Tensor) -> tf.Tensor:
    """The activation that is none: no operation of the graph, as `tf.identity` is."""
    return x


#: What goes into an operation: the point, or for a vector its scale, and the values.
Term = tuple[str | tf.Tensor, tf.Tensor]

#: Kernels, and what they are in float.
_IN_FLOAT: dict[xnnpack.Kernel, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    xnnpack.added: tf.add,
    xnnpack.subtracted: tf.subtract,
    xnnpack.multiplied: tf.multiply,
}


def kernel_point(
    run: Numerics,
    name: str,
    kernel: xnnpack.Kernel,
    *terms: Term,
    function: Callable[[tf.Tensor], tf.Tensor] = linear,
    limit: float | None = None,
) -> tf.Tensor:
    """What an elementwise operation makes of two quantized tensors, quantized to a point as its kernel rounds it.

    Args:
        run: numerics.
        name: of the point.
        kernel: `xnnpack.added`, `subtracted` or `multiplied`.
        terms: the two.
        function: an activation that TFLite fuses into the operation.
        limit: see `Numerics.point`.
    """
    value = function(_IN_FLOAT[kernel](*(x for _, x in terms)))
    if not run.rounds_as_kernels:
        return run.point(name, value, limit=limit)
    after, before = run.levels(name), [run.levels(source) for source, _ in terms if isinstance(source, str)]
    if {one.num_bits for one in (*before, after)} != {8}:
        return run.point(name, value, limit=limit)
    scales = [run.levels(source).scale if isinstance(source, str) else source for source, _ in terms]
    known = tf.reduce_all([one > 0.0 for one in (*scales, after.scale)])
    *scales, scale = (tf.where(known, one, 1.0) for one in (*scales, after.scale))
    levels = [xnnpack.levels(x, one) for (_, x), one in zip(terms, scales, strict=True)]
    found = kernel(levels, scales, scale)
    for (_, x), level, one in zip(terms, levels, scales, strict=True):
        # A state that another layer passes on has the scale that it has there.
        found = tf.where(tf.abs(x - level * one) < 0.01 * one, found, tf.round(value / scale))
    found = tf.clip_by_value(found * scale, after.highest - 255.0 * scale, after.highest)
    found += value * 0.0  # a NaN stays one
    return run.point(name, value, limit=limit, exact=tf.where(known, found, value))


def vector_scale(vector: tf.Tensor) -> tf.Tensor:
    """The scale of a quantized vector inside a cell, which has 256 levels from end to end, 0 among them."""
    return (tf.maximum(tf.reduce_max(vector), 0.0) - tf.minimum(tf.reduce_min(vector), 0.0)) / 255.0


def recurrent_product(run: Numerics, hidden: tf.Tensor, role: str = "recurrent_kernel") -> tf.Tensor:
    """The hidden state, with recurrent dropout, times the recurrent kernel of that role, with its bias: quantized."""
    bias = run.weights.get("recurrent_bias")
    return product_point(run, "recurrent_product", "hidden", run.dropped(hidden), run.weights[role], bias)


#: Keras' names of the activations that a form can compute, with the limit of what goes into them.
ACTIVATIONS: dict[str, tuple[Callable[[tf.Tensor], tf.Tensor], float | None]] = {
    "tanh": (tf.tanh, PREACTIVATION_LIMIT),
    "sigmoid": (tf.sigmoid, PREACTIVATION_LIMIT),
    "relu": (tf.nn.relu, None),
    "linear": (linear, None),
}


def activation_name(activation: Any) -> str:
    """Keras' name of an activation; says so where it has none."""
    name = getattr(activation, "__name__", str(activation))
    return name if getattr(keras.activations, name, None) is activation else f"{name}, a function of your own"


def activation_point(run: Numerics, name: str, value: tf.Tensor, activation: Any) -> tf.Tensor:
    """An activation, as TFLite runs it: relu and linear inside the operator before, others on their own."""
    function, limit = ACTIVATIONS[activation_name(activation)]
    if limit is None:
        return run.point(name, function(value))
    return run.point(name, function(run.point(f"{name}_sum", value, limit=limit)))


def activated_sum(run: Numerics, name: str, activation: Any, *terms: Term) -> tf.Tensor:
    """`activation_point` of the sum of two quantized tensors, rounded as their addition rounds."""
    function, limit = ACTIVATIONS[activation_name(activation)]
    if limit is None:
        return kernel_point(run, name, xnnpack.added, *terms, function=function)
    return run.point(name, function(kernel_point(run, f"{name}_sum", xnnpack.added, *terms, limit=limit)))
