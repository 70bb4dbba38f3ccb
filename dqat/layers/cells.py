"""How recurrent cells are computed in integers: weights, quantization points and one timestep, per kind of cell.

A form is written once and runs three ways: it is traced when a layer is built (which finds its points), inside the
training loop (where points fake-quantize and record), and unrolled for the export (where points become constant
fake-quants, and each tensor between two points becomes one int8 operator).
"""

import contextvars
from collections.abc import Callable
from typing import Any, Protocol

import tensorflow as tf

from dqat.keras_api import keras
from dqat.layers.wrapper import replaced
from dqat.observers import Fixed

#: A sigmoid or tanh beyond this input is within an int8 step of its limit, so that a wider range would only
#: make the steps coarser. The integer kernels saturate there without an operator of their own.
PREACTIVATION_LIMIT = 8.0

State = tuple[tf.Tensor, ...]


class Numerics(Protocol):
    """What a form computes with."""

    weights: dict[str, tf.Tensor]
    is_export: bool  # whether operators of the integer graph are being made

    def point(self, name: str, value: tf.Tensor, *, limit: float | None = None, kind: str = "activation") -> tf.Tensor:
        """A tensor that the integer graph stores: quantized here.

        Args:
            name: unique in the cell.
            value: float32 [batch, units].
            limit: values saturate at ±limit.
            kind: "activation" or "cell_state": which quantizer of the scheme.
        """

    def dropped(self, hidden: tf.Tensor) -> tf.Tensor:
        """The hidden state with recurrent dropout, where the layer has it and trains."""


class CellForm:
    """Base of the forms.

    Args:
        cell: the float cell, whose weights are trained; built before anything but the constructor is used.

    Attributes:
        is_one_operator: TFLite computes the whole cell in one operator, so that results between points are its own.
        caveat: what is known to make the integer file differ from the simulation by more than rounding; or empty.
    """

    is_one_operator = False
    caveat = ""

    def __init__(self, cell: keras.layers.Layer) -> None:
        self.cell = cell

    def matrices(self) -> dict[str, tf.Tensor]:
        """The weights that are quantized, by role, in the shape that their quantizer speaks of."""
        cell = self.cell
        return {role: tf.convert_to_tensor(getattr(cell, role)) for role in ("kernel", "recurrent_kernel")}

    def biases(self) -> dict[str, tf.Tensor]:
        """The weights that stay in float, by role: int32 in the file."""
        return {"bias": tf.convert_to_tensor(self.cell.bias)} if self.cell.use_bias else {}

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


def _activation_range(cell: keras.layers.Layer) -> Fixed | None:
    return FIXED.get(_activation_name(cell.activation).capitalize())


def _product(x: tf.Tensor, matrix: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
    product = tf.matmul(x, matrix)
    return product if bias is None else tf.nn.bias_add(product, bias)


def _input_product(form: CellForm, x: tf.Tensor, run: Numerics) -> tf.Tensor:
    return run.point("input_product", _product(x, run.weights["kernel"], run.weights.get("bias")))


def _sigmoid(run: Numerics, name: str, value: tf.Tensor) -> tf.Tensor:
    return run.point(name, tf.sigmoid(run.point(f"{name}_sum", value, limit=PREACTIVATION_LIMIT)))


#: Keras' names of the activations that a form can compute, with the limit of what goes into them.
ACTIVATIONS: dict[str, tuple[Callable[[tf.Tensor], tf.Tensor], float | None]] = {
    "tanh": (tf.tanh, PREACTIVATION_LIMIT),
    "sigmoid": (tf.sigmoid, PREACTIVATION_LIMIT),
    "relu": (tf.nn.relu, None),
    "linear": (tf.identity, None),
}


def _activation_name(activation: Any) -> str:
    name = getattr(activation, "__name__", str(activation))
    return name if getattr(keras.activations, name, None) is activation else f"{name}, a function of your own"


def _activated(run: Numerics, name: str, value: tf.Tensor, activation: Any) -> tf.Tensor:
    """An activation, as TFLite runs it: relu and linear inside the operator before, others on their own."""
    function, limit = ACTIVATIONS[_activation_name(activation)]
    if limit is None:
        return run.point(name, function(value))
    return run.point(name, function(run.point(f"{name}_sum", value, limit=limit)))


class SimpleRNNForm(CellForm):
    """`SimpleRNNCell`: h = activation(x·W + b + h·R)."""

    project = _input_product

    def step(self, projected, states, run):
        """See `CellForm.step`."""
        recurrent = run.point("recurrent_product", _product(run.dropped(states[0]), run.weights["recurrent_kernel"]))
        hidden = _activated(run, "hidden", projected + recurrent, self.cell.activation)
        return hidden, (hidden,)

    def output_range(self):
        """That of the activation."""
        return _activation_range(self.cell)


class GRUForm(CellForm):
    """`GRUCell`, with the reset gate after the recurrent product or before it."""

    project = _input_product

    def matrices(self):
        """Where the reset gate comes first, the candidate's recurrent matrix is an operator of its own."""
        found, units = super().matrices(), self.cell.units
        if not self.cell.reset_after:
            recurrent = found.pop("recurrent_kernel")
            found |= {
                "recurrent_kernel_gates": recurrent[:, : 2 * units],
                "recurrent_kernel_candidate": recurrent[:, 2 * units :],
            }
        return found

    def biases(self):
        """One bias, or two with `reset_after`."""
        found = super().biases()
        if found and self.cell.reset_after:
            found["bias"], found["recurrent_bias"] = tf.unstack(found["bias"])
        return found

    def step(self, projected, states, run):
        """See `CellForm.step`."""
        h, units, weights = states[0], self.cell.units, run.weights
        input_gates, input_candidate = tf.split(projected, [2 * units, units], axis=-1)
        if self.cell.reset_after:
            product = _product(run.dropped(h), weights["recurrent_kernel"], weights.get("recurrent_bias"))
            gates, candidate = tf.split(run.point("recurrent_product", product), [2 * units, units], axis=-1)
        else:
            gates = run.point("recurrent_product", _product(run.dropped(h), weights["recurrent_kernel_gates"]))
        update, reset = tf.split(_sigmoid(run, "gates", input_gates + gates), 2, axis=-1)
        if self.cell.reset_after:
            candidate = run.point("reset_product", reset * candidate)
        else:
            reset_hidden = run.point("reset_hidden", reset * run.dropped(h))
            candidate = run.point("candidate_product", _product(reset_hidden, weights["recurrent_kernel_candidate"]))
        candidate = _activated(run, "candidate", input_candidate + candidate, self.cell.activation)
        kept = run.point("kept", update * h)
        new = run.point("new", run.point("openness", 1.0 - update) * candidate)
        hidden = run.point("hidden", kept + new)
        return hidden, (hidden,)


class LSTMForm(CellForm):
    """`LSTMCell` out of int8 operators, for what TFLite's fused LSTM can't do; the cell state is int8 too."""

    project = _input_product

    def _gates(self, projected, states, run):
        product = run.point("recurrent_product", _product(run.dropped(states[0]), run.weights["recurrent_kernel"]))
        return tf.split(projected, 4, axis=-1), tf.split(product, 4, axis=-1)

    def _peephole(self, name, cell, run):
        return None

    def _sum(self, name, gate, cell, run):
        peephole = self._peephole(name, cell, run)
        if peephole is None:
            return gate[0] + gate[1]
        return run.point(f"{name}_products", gate[0] + gate[1]) + peephole

    def _normalised_cell(self, cell, run):
        return cell

    def step(self, projected, states, run):
        """See `CellForm.step`."""
        before = states[1]
        i, f, g, o = zip(*self._gates(projected, states, run), strict=True)
        i = _sigmoid(run, "input_gate", self._sum("input_gate", i, before, run))
        f = _sigmoid(run, "forget_gate", self._sum("forget_gate", f, before, run))
        g = _activated(run, "candidate", g[0] + g[1], self.cell.activation)
        kept, new = run.point("kept", f * before), run.point("new", i * g)
        cell = self._normalised_cell(run.point("cell_state", kept + new), run)
        o = _sigmoid(run, "output_gate", self._sum("output_gate", o, cell, run))
        function, limit = ACTIVATIONS[_activation_name(self.cell.activation)]
        activated = cell if limit is None and function is tf.identity else run.point("cell_activation", function(cell))
        hidden = run.point("hidden", o * activated)
        return hidden, (hidden, cell)


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


def _layer_norm(run: Numerics, name: str, x: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Layer normalisation over the last axis out of int8 operators; weights f"{name}_gamma" and f"{name}_beta"."""
    mean = run.point(f"{name}_mean", tf.reduce_mean(x, axis=-1, keepdims=True))
    centred = run.point(f"{name}_centred", x - mean)
    square = run.point(f"{name}_square", centred * centred)
    variance = run.point(f"{name}_variance", tf.reduce_mean(square, axis=-1, keepdims=True))
    inverse = run.point(f"{name}_inverse", _rsqrt(run, run.point(f"{name}_shifted", variance + epsilon)))
    normalised = run.point(f"{name}_normalised", centred * inverse)
    scaled = normalised * run.weights[f"{name}_gamma"]
    if f"{name}_beta" in run.weights:
        scaled = run.point(f"{name}_scaled", scaled) + run.weights[f"{name}_beta"]
    return run.point(f"{name}_output", scaled)


def _rsqrt(run: Numerics, x: tf.Tensor) -> tf.Tensor:
    if run.is_export:
        return tf.math.rsqrt(x)
    # What is quantized to zero gives TFLite's largest value: it multiplies zeros, and would only stretch the range.
    positive = x > 0.0
    return tf.where(positive, tf.math.rsqrt(tf.where(positive, x, 1.0)), 0.0)


def _norm_vectors(name: str, norm: keras.layers.LayerNormalization) -> dict[str, tf.Tensor]:
    found = {"gamma": norm.gamma, "beta": norm.beta}
    return {f"{name}_{role}": tf.convert_to_tensor(value) for role, value in found.items() if value is not None}


_NORM_CAVEAT = "its normalisation, with int8 values in between, is far from the simulation (18 LSB seen)"


class LayerNormLSTMForm(LSTMForm):
    """tensorflow-addons' `LayerNormLSTMCell`: both products and the cell state are normalised."""

    caveat = _NORM_CAVEAT

    def matrices(self):
        """The kernels, and gain and shift of the three normalisations."""
        found, cell = super().matrices(), self.cell
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
        product = run.point("input_product", _product(x, run.weights["kernel"]))
        return _layer_norm(run, "kernel_norm", product, self.cell.kernel_norm.epsilon)

    def _gates(self, projected, states, run):
        product = run.point("recurrent_product", _product(run.dropped(states[0]), run.weights["recurrent_kernel"]))
        product = _layer_norm(run, "recurrent_norm", product, self.cell.recurrent_norm.epsilon)
        return tf.split(projected, 4, axis=-1), tf.split(product, 4, axis=-1)

    def _normalised_cell(self, cell, run):
        return _layer_norm(run, "state_norm", cell, self.cell.state_norm.epsilon)


class LayerNormSimpleRNNForm(CellForm):
    """tensorflow-addons' `LayerNormSimpleRNNCell`: h = activation(norm(x·W + h·R) + b)."""

    caveat = _NORM_CAVEAT

    def matrices(self):
        """The kernels, the gain, and the bias as the shift."""
        found = super().matrices() | _norm_vectors("norm", self.cell.layernorm)
        return found | ({"norm_beta": tf.convert_to_tensor(self.cell.bias)} if self.cell.use_bias else {})

    def biases(self):
        """None: the bias comes after the normalisation."""
        return {}

    project = _input_product

    def step(self, projected, states, run):
        """See `CellForm.step`."""
        recurrent = run.point("recurrent_product", _product(run.dropped(states[0]), run.weights["recurrent_kernel"]))
        net = _layer_norm(run, "norm", run.point("net", projected + recurrent), self.cell.layernorm.epsilon)
        function, limit = ACTIVATIONS[_activation_name(self.cell.activation)]
        hidden = net if limit is None and function is tf.identity else run.point("hidden", function(net))
        return hidden, (hidden,)

    def output_range(self):
        """That of the activation."""
        return _activation_range(self.cell)


class NASForm(CellForm):
    """tensorflow-addons' `NASCell`, the cell that a search found (Zoph and Le, 2017)."""

    def matrices(self):
        """The kernels, and the projection where there is one."""
        found = super().matrices()
        if self.cell.projection is not None:
            found["projection_weights"] = tf.convert_to_tensor(self.cell.projection_weights)
        return found

    def project(self, x, run):
        """The product of the inputs; the bias is the recurrent product's."""
        return run.point("input_product", _product(x, run.weights["kernel"]))

    def step(self, projected, states, run):
        """See `CellForm.step`."""
        before, hidden = states
        product = _product(hidden, run.weights["recurrent_kernel"], run.weights.get("bias"))
        pairs = zip(tf.split(projected, 8, -1), tf.split(run.point("recurrent_product", product), 8, -1), strict=True)
        functions = ["sigmoid", "relu", "sigmoid", "relu", "tanh", "sigmoid", "tanh", "sigmoid"]

        def activated(name, function, value):
            return _activated(run, name, value, getattr(keras.activations, function))

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
            output = run.point("projection", _product(output, run.weights["projection_weights"]))
        return output, (cell, output)

    def output_range(self):
        """That of the last tanh, where no projection follows."""
        return FIXED["Tanh"] if self.cell.projection is None else None


_current: contextvars.ContextVar[Numerics | None] = contextvars.ContextVar("dqat_numerics", default=None)


def point(name: str, value: tf.Tensor, *, limit: float | None = None) -> tf.Tensor:
    """Marks a tensor in the `call` of your own recurrent cell as one that the integer graph stores.

    Outside a quantized model it gives `value` back as it is, so the cell trains in float as it stands.

    A cell that dqat quantizes is a Keras cell (`state_size`, `build`, `call(inputs, states)`) which

    - names its weight matrices and vectors in an attribute, such as `quantized_weights = ("kernel",)`; they are
      quantized symmetric int8 and used as attributes in `call`, once a timestep or more;
    - passes the result of every arithmetic operation through `point`: sums, products and activations. Matrix
      product and bias are one operation, so is a `relu` behind one. What only moves values (split, reshape,
      concatenation of tensors with one range) needs none;
    - returns an output and states that come from `point`;
    - says `output_function = "tanh"` (or "sigmoid") where that alone makes the output.

    Sigmoid and tanh get the output range that TFLite prescribes; all others are tracked.

    Args:
        name: unique in the cell; stands in reports as "layer/name".
        value: float32 [batch, ...].
        limit: values saturate at ±limit; 8 suits the input of a sigmoid or tanh.

    Returns:
        float32 like `value`, quantized inside a quantized model.
    """
    run = _current.get()
    return value if run is None else run.point(name, value, limit=limit)


class UserForm(CellForm):
    """A cell that marks its own points: see `point`."""

    def matrices(self):
        """What the cell names."""
        return {role: tf.convert_to_tensor(getattr(self.cell, role)) for role in self.cell.quantized_weights}

    def biases(self):
        """None by name: `call` reads them."""
        return {}

    def step(self, projected, states, run):
        """The cell's own `call`."""
        token = _current.set(run)
        try:
            with replaced(self.cell, run.weights):
                output, states = self.cell.call(projected, list(states))
        finally:
            _current.reset(token)
        return output, tuple(tf.nest.flatten(states))

    def output_range(self):
        """As the cell says in `output_function`."""
        return FIXED.get(str(getattr(self.cell, "output_function", None)).capitalize())


class _Prefixed:
    """Numerics of one cell among several."""

    def __init__(self, run: Numerics, prefix: str) -> None:
        self._run, self._prefix, self.is_export = run, prefix, run.is_export
        self.weights = {
            role.removeprefix(prefix): value for role, value in run.weights.items() if role.startswith(prefix)
        }

    def point(self, name: str, value: tf.Tensor, **options: Any) -> tf.Tensor:
        return self._run.point(self._prefix + name, value, **options)

    def dropped(self, hidden: tf.Tensor) -> tf.Tensor:
        return hidden


class StackedForm(CellForm):
    """`StackedRNNCells`: the output of a cell is the next one's input."""

    def __init__(self, cell: keras.layers.Layer) -> None:
        super().__init__(cell)
        self._forms = [(f"cell{index}_", form_of(inner)) for index, inner in enumerate(cell.cells)]
        if getattr(cell, "reverse_state_order", False):
            raise ValueError("reverse_state_order of StackedRNNCells must be False")

    def _all(self, method: Callable[[CellForm], dict[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
        return {prefix + role: value for prefix, form in self._forms for role, value in method(form).items()}

    def matrices(self):
        """Those of all cells."""
        return self._all(lambda form: form.matrices())

    def biases(self):
        """Those of all cells."""
        return self._all(lambda form: form.biases())

    def project(self, x, run):
        """The first cell's."""
        prefix, form = self._forms[0]
        return form.project(x, _Prefixed(run, prefix))

    def step(self, projected, states, run):
        """See `CellForm.step`."""
        rest, new, output = list(states), [], projected
        for index, (prefix, form) in enumerate(self._forms):
            numerics = _Prefixed(run, prefix)
            if index:
                output = form.project(output, numerics)
            count = len(tf.nest.flatten(form.cell.state_size))
            mine, rest = rest[:count], rest[count:]
            output, states = form.step(output, tuple(mine), numerics)
            new += states
        return output, tuple(new)

    def output_range(self):
        """The last cell's."""
        return self._forms[-1][1].output_range()


_FORMS: dict[str, type[CellForm]] = {
    "SimpleRNNCell": SimpleRNNForm,
    "GRUCell": GRUForm,
    "LSTMCell": LSTMForm,
    "StackedRNNCells": StackedForm,
}
_ADDONS_FORMS: dict[str, type[CellForm]] = {
    "LayerNormLSTMCell": LayerNormLSTMForm,
    "LayerNormSimpleRNNCell": LayerNormSimpleRNNForm,
    "NASCell": NASForm,
    "PeepholeLSTMCell": PeepholeLSTMForm,
}


def form_of(cell: keras.layers.Layer) -> CellForm:
    """The form of a float cell.

    Raises:
        ValueError: for a cell, or an option of one, that has none; says why and what would do.
    """
    name = type(cell).__name__
    if type(cell).__module__.startswith("tensorflow_addons."):
        form = _ADDONS_FORMS.get(name)
    else:
        form = _FORMS.get(name) if type(cell) is getattr(keras.layers, name, None) else None
    if form is None and hasattr(cell, "quantized_weights"):
        return UserForm(cell)
    if form is None:
        known = ", ".join((*_FORMS, *_ADDONS_FORMS))
        raise ValueError(
            f"its cell {name} is not known. Use one of {known}, or mark the cell's quantization points with "
            "dqat.layers.point and name its weights in `quantized_weights`"
        )
    for option, known in (("activation", tuple(ACTIVATIONS)), ("recurrent_activation", ("sigmoid",))):
        value = getattr(cell, option, None)
        if value is not None and _activation_name(value) not in known:
            raise ValueError(f"{option} must be one of {', '.join(known)}, got {_activation_name(value)}")
    return form(cell)
