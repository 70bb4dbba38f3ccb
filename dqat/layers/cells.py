"""Which form a cell has: one of Keras' or tensorflow-addons', a stack of them, or the cell's own."""

import contextvars
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from dqat.keras_api import keras
from dqat.layers.addons_cells import LayerNormLSTMForm, LayerNormSimpleRNNForm, NASForm, PeepholeLSTMForm
from dqat.layers.cell_form import (
    ACTIVATIONS,
    FIXED,
    CellForm,
    Levels,
    Numerics,
    activation_name,
)
from dqat.layers.keras_cells import GRUForm, LSTMForm, SimpleRNNForm
from dqat.layers.quantized_layer import replaced

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
        self._run, self._prefix = run, prefix
        self.is_export, self.rounds_as_kernels = run.is_export, run.rounds_as_kernels
        self.weights = {
            role.removeprefix(prefix): value for role, value in run.weights.items() if role.startswith(prefix)
        }

    def point(self, name: str, value: tf.Tensor, **options: Any) -> tf.Tensor:
        return self._run.point(self._prefix + name, value, **options)

    def levels(self, name: str) -> Levels:
        return self._run.levels(self._prefix + name)

    def dropped(self, hidden: tf.Tensor) -> tf.Tensor:
        return hidden


class StackedForm(CellForm):
    """`StackedRNNCells`: the output of a cell is the next one's input."""

    def __init__(self, cell: keras.layers.Layer) -> None:
        super().__init__(cell)
        self._forms = [(f"cell{index}_", form_of(inner)) for index, inner in enumerate(cell.cells)]

    def _all(self, method: Callable[[CellForm], dict[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
        return {prefix + role: value for prefix, form in self._forms for role, value in method(form).items()}

    def matrices(self):
        """Those of all cells."""
        return self._all(lambda form: form.matrices())

    def biases(self):
        """Those of all cells."""
        return self._all(lambda form: form.biases())

    def bias_products(self):
        """Those of all cells; of the input's products, the first cell's."""
        return {
            prefix + role: (prefix + matrix, None if source is None else prefix + source)
            for prefix, form in self._forms
            for role, (matrix, source) in form.bias_products().items()
            if source is not None or prefix == self._forms[0][0]
        }

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


def is_peephole_cell(cell: keras.layers.Layer) -> bool:
    """Whether a float cell is tensorflow-addons' LSTM with peepholes."""
    return type(cell).__module__.startswith("tensorflow_addons.") and type(cell).__name__ == "PeepholeLSTMCell"


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
        if value is not None and activation_name(value) not in known:
            raise ValueError(f"{option} must be one of {', '.join(known)}, got {activation_name(value)}")
    return form(cell)
