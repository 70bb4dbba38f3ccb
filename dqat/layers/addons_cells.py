"""The forms of tensorflow-addons' cells."""

import tensorflow as tf

from dqat.keras_api import keras
from dqat.layers.cell_form import (
    ACTIVATIONS,
    FIXED,
    CellForm,
    Numerics,
    activation_name,
    activation_point,
    activation_range,
    input_product,
    kernel_point,
    linear,
    matrix_product,
    product_point,
    recurrent_product,
    vector_scale,
)
from dqat.layers.keras_cells import LSTMForm
from dqat.layers.rsqrt import integer_rsqrt
from dqat.layers.xnnpack import added, multiplied, subtracted


class PeepholeLSTMForm(LSTMForm):
    """tensorflow-addons' `PeepholeLSTMCell`: the gates see the cell state through a vector each."""

    _VECTORS = {  # noqa: RUF012 - a table, never changed
        "input_gate": "input_gate_peephole_weights",
        "forget_gate": "forget_gate_peephole_weights",
        "output_gate": "output_gate_peephole_weights",
    }

    def matrices(self):
        """The kernels and the three vectors."""
        vectors = {name: tf.convert_to_tensor(getattr(self.cell, name)) for name in self._VECTORS.values()}
        return super().matrices() | vectors

    def _peephole(self, name, cell, run):
        return run.point(f"{name}_peephole", cell * run.weights[self._VECTORS[name]])


def _column_mean(run: Numerics, name: str, source: str, x: tf.Tensor, shift: float | None = None) -> tf.Tensor:
    """The mean over the last axis [rows, 1], plus `shift`, as one product: TFLite's int8 MEAN rounds too often."""
    depth = x.shape[-1]
    matrix = tf.fill([depth, 1], tf.constant(1.0 / depth, x.dtype))
    return product_point(run, name, source, x, matrix, None if shift is None else tf.constant([shift], x.dtype))


def _layer_norm(run: Numerics, name: str, source: str, centred: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Layer normalisation of what has a mean of zero, out of int8 operators; weights f"{name}_gamma" and _beta.

    Args:
        run: numerics.
        name: of the points.
        source: the point of `centred`.
        centred: float32 [batch, units].
        epsilon: added to the variance.
    """
    same = source, centred
    square = kernel_point(run, f"{name}_square", multiplied, same, same)
    variance = _column_mean(run, f"{name}_variance", f"{name}_square", square, epsilon)
    inverse = _rsqrt(run, f"{name}_inverse", f"{name}_variance", variance)
    terms = same, (f"{name}_inverse", inverse)
    normalised = kernel_point(run, f"{name}_normalised", multiplied, *terms)
    gamma, beta = run.weights[f"{name}_gamma"], run.weights.get(f"{name}_beta")
    terms = (f"{name}_normalised", normalised), (vector_scale(gamma), gamma)
    point = f"{name}_output" if beta is None else f"{name}_scaled"
    scaled = kernel_point(run, point, multiplied, *terms)
    if beta is None:
        return scaled
    terms = (f"{name}_scaled", scaled), (vector_scale(beta), beta)
    return kernel_point(run, f"{name}_output", added, *terms)


def _centred(matrix: tf.Tensor) -> tf.Tensor:
    """A matrix whose products have a mean of zero: those of `matrix`, less their mean."""
    return matrix - tf.reduce_mean(matrix, axis=-1, keepdims=True)


def _rsqrt(run: Numerics, name: str, source: str, x: tf.Tensor) -> tf.Tensor:
    if run.is_export:
        return run.point(name, tf.math.rsqrt(x))
    # What is quantized to zero gives TFLite's largest value, which must not stretch the range.
    positive = x > 0.0
    smooth = tf.where(positive, tf.math.rsqrt(tf.where(positive, x, 1.0)), 0.0)
    scale, (output_scale, highest, num_bits) = run.levels(source).scale, run.levels(name)
    known = (scale > 0.0) & (output_scale > 0.0)
    scales = tf.where(known, scale, 1.0), tf.where(known, output_scale, 1.0)
    exact = integer_rsqrt(tf.cast(x, tf.float32), *scales, highest, num_bits)
    return run.point(name, smooth, exact=tf.where(known, tf.cast(exact, smooth.dtype), smooth))


def _norm_vectors(name: str, norm: keras.layers.LayerNormalization) -> dict[str, tf.Tensor]:
    found = {"gamma": norm.gamma, "beta": norm.beta}
    return {f"{name}_{role}": tf.convert_to_tensor(value) for role, value in found.items() if value is not None}


class LayerNormLSTMForm(LSTMForm):
    """tensorflow-addons' `LayerNormLSTMCell`: both products and the cell state are normalised."""

    _cell_point = "state_norm_output"
    _gate_points = ("kernel_norm_output", "recurrent_norm_output")

    def matrices(self):
        """The kernels, and gain and shift of the three normalisations."""
        found, cell = {role: _centred(matrix) for role, matrix in super().matrices().items()}, self.cell
        for name in ("kernel_norm", "recurrent_norm", "state_norm"):
            found |= _norm_vectors(name, getattr(cell, name))
        if cell.use_bias:
            found["kernel_norm_beta"] += cell.bias  # one operator less
        return found

    def biases(self):
        """None: the bias is part of a normalisation's shift."""
        return {}

    def project(self, x, run):
        """The normalised product of the inputs."""
        product = run.point("input_product", matrix_product(x, run.weights["kernel"]))
        return _layer_norm(run, "kernel_norm", "input_product", product, self.cell.kernel_norm.epsilon)

    def _gates(self, projected, states, run):
        product = recurrent_product(run, states[0])
        product = _layer_norm(run, "recurrent_norm", "recurrent_product", product, self.cell.recurrent_norm.epsilon)
        return tf.split(projected, 4, axis=-1), tf.split(product, 4, axis=-1)

    def _normalised_cell(self, cell, run):
        mean = _column_mean(run, "state_norm_mean", "cell_state", cell)
        terms = ("cell_state", cell), ("state_norm_mean", mean)
        cell = kernel_point(run, "state_norm_centred", subtracted, *terms)
        return _layer_norm(run, "state_norm", "state_norm_centred", cell, self.cell.state_norm.epsilon)


class LayerNormSimpleRNNForm(CellForm):
    """tensorflow-addons' `LayerNormSimpleRNNCell`: h = activation(norm(x·W + h·R) + b)."""

    def matrices(self):
        """The kernels, the gain, and the bias as the shift."""
        found = {role: _centred(matrix) for role, matrix in super().matrices().items()}
        found |= _norm_vectors("norm", self.cell.layernorm)
        return found | ({"norm_beta": tf.convert_to_tensor(self.cell.bias)} if self.cell.use_bias else {})

    def biases(self):
        """None: the bias comes after the normalisation."""
        return {}

    project = input_product

    def step(self, projected, states, run):
        """See `CellForm.step`."""
        terms = ("input_product", projected), ("recurrent_product", recurrent_product(run, states[0]))
        net = kernel_point(run, "net", added, *terms)
        net = _layer_norm(run, "norm", "net", net, self.cell.layernorm.epsilon)
        function, limit = ACTIVATIONS[activation_name(self.cell.activation)]
        hidden = net if limit is None and function is linear else run.point("hidden", function(net))
        return hidden, (hidden,)

    def output_range(self):
        """That of the activation."""
        return activation_range(self.cell)


class NASForm(CellForm):
    """tensorflow-addons' `NASCell`, the cell that a search found (Zoph and Le, 2017)."""

    def matrices(self):
        """The kernels, and the projection where there is one."""
        found = super().matrices()
        if self.cell.projection is not None:
            found["projection_weights"] = tf.convert_to_tensor(self.cell.projection_weights)
        return found

    def bias_products(self):
        """The bias is the recurrent product's."""
        return {"bias": ("recurrent_kernel", "hidden" if self.cell.projection is None else "projection")}

    def project(self, x, run):
        """The product of the inputs; the bias is the recurrent product's."""
        return run.point("input_product", matrix_product(x, run.weights["kernel"]))

    def step(self, projected, states, run):
        """See `CellForm.step`."""
        before, hidden = states
        product = matrix_product(hidden, run.weights["recurrent_kernel"], run.weights.get("bias"))
        pairs = zip(tf.split(projected, 8, -1), tf.split(run.point("recurrent_product", product), 8, -1), strict=True)
        functions = ["sigmoid", "relu", "sigmoid", "relu", "tanh", "sigmoid", "tanh", "sigmoid"]

        def activated(name, function, value):
            return activation_point(run, name, value, getattr(keras.activations, function))

        first = [
            activated(f"first_{index}", function, x * h if index == 3 else x + h)
            for index, (function, (x, h)) in enumerate(zip(functions, pairs, strict=True))
        ]
        second = [
            activated("second_0", "tanh", first[0] * first[1]),
            activated("second_1", "tanh", first[2] + first[3]),
            activated("second_2", "tanh", first[4] * first[5]),
            activated("second_3", "sigmoid", first[6] + first[7]),
        ]
        cell = run.point("cell_state", activated("injected", "tanh", second[0] + before) * second[1])
        third = activated("third", "tanh", second[2] + second[3])
        output = activated("hidden", "tanh", cell * third)
        if self.cell.projection is not None:
            output = run.point("projection", matrix_product(output, run.weights["projection_weights"]))
        return output, (cell, output)

    def output_range(self):
        """That of the last tanh, where no projection follows."""
        return FIXED["Tanh"] if self.cell.projection is None else None
