"""Any recurrent layer, as integers compute it: what all cells share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from dqat.keras_api import deserialize, keras, register, serialize
from dqat.layers import gru_step, xnnpack
from dqat.layers.cell_form import FIXED, CellForm, Levels, State, prescribed
from dqat.layers.cells import form_of
from dqat.layers.gru_step import GruStep
from dqat.layers.loop_records import LoopRecords
from dqat.layers.product_grid import bias_rounding
from dqat.layers.quantized_layer import QuantizedLayer
from dqat.observers import Fixed, LearnedStep, Observer, Record
from dqat.quantizers import Quantizer, range_scale
from dqat.specs import QuantizerSpec

#: Operations that need no point of their own where one of these follows, since TFLite fuses them.
_FUSED = {"MatMul": ("BiasAdd", "AddV2", "Add", "Relu"), "BiasAdd": ("Relu",), "AddV2": ("Relu",), "Mul": ("Relu",)}
_ARITHMETIC = {
    *("MatMul", "BatchMatMulV2", "BiasAdd", "Add", "AddV2", "Sub", "Mul", "RealDiv", "Neg", "Square", "Rsqrt", "Sqrt"),
    *("Sigmoid", "Tanh", "Relu", "Softmax", "Exp", "Mean", "Sum", "Maximum", "Minimum", "SquaredDifference"),
}


class Point(NamedTuple):
    """A quantization point that a form was found to have.

    Attributes:
        observer: fixed where TFLite prescribes the range, else None.
        kind: which quantizer of the scheme.
        in_loop: computed once a timestep, not for all of them at once.
    """

    observer: Fixed | None
    kind: str
    in_loop: bool


def _levels(quantizer: Quantizer) -> Levels:
    low, high = quantizer.range()
    known = low <= high
    low, high = tf.where(known, low, 0.0), tf.where(known, high, 0.0)
    scale, highest = range_scale((low, high), quantizer.spec), quantizer.quantize(high, (low, high))
    return Levels(tf.stop_gradient(scale), tf.stop_gradient(highest), quantizer.spec.num_bits)


class _Tracing:
    """Numerics that find the points of a form."""

    is_export = True  # the operators of the integer graph are those to look at
    rounds_as_kernels = False

    def __init__(self, weights: dict[str, tf.Tensor]) -> None:
        self.weights = weights
        self.points: dict[str, Point] = {}
        self.in_loop = False
        self.marked: dict[Any, str] = {}

    def point(
        self,
        name: str,
        value: tf.Tensor,
        *,
        limit: float | None = None,
        kind: str = "activation",
        exact: tf.Tensor | None = None,
    ) -> tf.Tensor:
        if name in self.points:
            raise ValueError(f"two quantization points are called {name!r}")
        prescribed = "Sigmoid" if kind == "complement" else value.op.type
        self.points[name] = Point(FIXED.get(prescribed), kind, self.in_loop)
        marked = tf.identity(value)
        self.marked[marked.ref()] = name
        return marked

    def levels(self, name: str) -> Levels:
        return Levels(tf.zeros([]), tf.zeros([]), 8)

    def dropped(self, hidden: tf.Tensor) -> tf.Tensor:
        return hidden

    def require_marked(self, sources: list[tf.Tensor]) -> None:
        """Raises ValueError for arithmetic on what `sources` lead to whose result is no point."""
        marks = {tensor.deref().op for tensor in self.marked}
        reached, waiting = {tensor.op for tensor in sources}, [tensor.op for tensor in sources]
        while waiting:
            after = {consumer for output in waiting.pop().outputs for consumer in output.consumers()}
            waiting += after - reached
            reached |= after

        def fuses(op: tf.Operation, next_: tf.Operation) -> bool:
            varying = sum(tensor.op in reached for tensor in next_.inputs)
            return next_ in marks or (next_.type in _FUSED.get(op.type, ()) and varying == 1)

        for op in reached:
            consumers = [consumer for output in op.outputs for consumer in output.consumers()]
            if op.type in _ARITHMETIC and not all(fuses(op, consumer) for consumer in consumers):
                raise ValueError(
                    f"the result of {op.type} ({op.name}) is no quantization point: pass it through dqat.layers.point"
                )


class _Sequence:
    """Numerics of what is computed for all timesteps at once."""

    is_export = False

    def __init__(
        self, layer: "QuantizedRNN", weights: dict[str, tf.Tensor], mask: Any, training: Any, rounds_as_kernels: bool
    ) -> None:
        self.weights, self._layer, self._mask, self._training = weights, layer, mask, training
        self.rounds_as_kernels = rounds_as_kernels

    def point(
        self,
        name: str,
        value: tf.Tensor,
        *,
        limit: float | None = None,
        kind: str = "activation",
        exact: tf.Tensor | None = None,
    ) -> tf.Tensor:
        value = value if limit is None else tf.clip_by_value(value, -limit, limit)
        quantizer = self._layer.points[name]
        if self._mask is None or self._training is None or self._training is False:
            return quantizer(value, training=self._training, exact=exact)
        # What a masked step holds is no value of the model: it is quantized, but not recorded.
        if quantizer.observer.needs_counts:
            quantizer.submit(quantizer.record(tf.boolean_mask(value, self._mask[:, 0])), self._training)
            return quantizer(value, exact=exact)
        return quantizer(tf.where(self._mask, value, 0.0), training=self._training, exact=exact)

    def levels(self, name: str) -> Levels:
        return _levels(self._layer.points[name])

    def dropped(self, hidden: tf.Tensor) -> tf.Tensor:
        return hidden


class _Timestep:
    """Numerics of one timestep inside the loop: quantizes with the ranges of the loop's start, and records."""

    is_export = False

    def __init__(
        self, weights: dict[str, tf.Tensor], points: dict[str, Quantizer], dropped: Callable, rounds_as_kernels: bool
    ) -> None:
        self.weights, self._points, self.dropped = weights, points, dropped
        self.rounds_as_kernels = rounds_as_kernels
        # Of the loop's start, and computed there once.
        self._levels = {name: _levels(quantizer) for name, quantizer in points.items()}
        self.in_use: dict[str, Any] = {}
        self.repeats: Any = 1
        self.records: dict[str, Record] = {}
        self.mask: tf.Tensor | None = None

    def point(
        self,
        name: str,
        value: tf.Tensor,
        *,
        limit: float | None = None,
        kind: str = "activation",
        exact: tf.Tensor | None = None,
    ) -> tf.Tensor:
        quantizer = self._points[name]
        value = value if limit is None else tf.clip_by_value(value, -limit, limit)
        if self.mask is not None and not quantizer.observer.needs_counts:
            value = tf.where(self.mask, value, 0.0)  # every range holds 0, so this records nothing
        in_use = self.in_use[name]
        if not isinstance(quantizer.observer, LearnedStep):
            # Else the loop's gradient would carry sums for both ends of every range.
            in_use = tuple(tf.stop_gradient(end) for end in in_use)
        quantized, record = quantizer.quantize_and_track(value, in_use, repeats=self.repeats, exact=exact)
        if isinstance(quantizer.observer, Fixed):
            return quantized
        if self.mask is not None and quantizer.observer.needs_counts:
            record = quantizer.record(tf.boolean_mask(value, self.mask[:, 0]))
        self.records[name] = record
        return quantized

    def levels(self, name: str) -> Levels:
        return self._levels[name]


@register("dqat")
class QuantizedRNN(QuantizedLayer):
    """Simulates a recurrent layer whose every timestep is a chain of integer operators.

    What a timestep is, and where it quantizes, is the cell's form (`dqat.layers.cell_form`); its points are found by
    tracing it when the layer is built. Inside the loop a step quantizes with the ranges known at its start, in
    every sync mode; weights are fake-quantized once a step. Timesteps that are masked keep output and state and
    are not recorded. Dropout and recurrent dropout use one mask for all gates and timesteps, as Keras' default
    implementation.

    Args:
        layer: a `keras.layers.RNN`, or a subclass such as GRU.
        weight: quantizer of the weights.
        activation: quantizer of what is stored.
        observer: how ranges are found.
        cell_state: quantizer of the points of that kind; `activation` where None.
        output: quantizer of the output, where others must have its range too.

    Attributes:
        points: quantizers by point, in the order of computation; made by `build`.
        state_points: for each state, the point that quantizes it.
        output_point: the point that quantizes the output.
        is_masked: whether the layer was ever called with a mask.
        input_quantizer: what quantizes the input, once the model is made; None where that is not one and the same.

    Raises:
        ValueError: when built, for a cell whose states or results are not all points.
    """

    def __init__(
        self,
        layer: keras.layers.RNN,
        weight: QuantizerSpec,
        activation: QuantizerSpec,
        observer: Observer,
        cell_state: QuantizerSpec | None = None,
        output: Quantizer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **kwargs)
        self.weight, self.activation, self.observer = weight, activation, observer
        self.cell_state_spec, self.output_quantizer = cell_state, output
        self.is_masked = False
        self.supports_masking = True
        self.input_quantizer: Quantizer | None = None
        self.form = self._form()

    def connect_input(self, quantizer: Quantizer | None) -> None:
        """Tells which quantizer the input comes from; the model knows it."""
        object.__setattr__(self, "input_quantizer", quantizer)  # not tracked: another layer has it

    def _form(self) -> CellForm:
        return form_of(self.layer.cell)

    def build(self, input_shape: Any) -> None:
        """Builds the float layer, finds the points and makes their quantizers."""
        first = input_shape[0] if _is_list_of_shapes(input_shape) else input_shape
        first = tf.TensorShape(first)
        if not self.layer.built:
            with tf.name_scope(self.layer.name):
                # Keras' RNN takes a list for the shapes of several inputs, and a saved shape is a list.
                self.layer.build(first)
            self.layer.built = True
        found, (self.output_point, *states) = self._find_points(first[-1])
        self.state_points = tuple(states)
        kinds = {"activation": self.activation, "complement": self.activation}
        kinds["cell_state"] = self.cell_state_spec or self.activation
        self._in_loop = [name for name, point in found.items() if point.in_loop]
        fixed = {name: prescribed(point.observer, kinds[point.kind].num_bits) for name, point in found.items()}
        self.points = {
            name: Quantizer(kinds[point.kind], fixed[name] or self.observer, name=name) for name, point in found.items()
        }
        if self.output_quantizer is not None:
            expected, given = fixed[self.output_point], self.output_quantizer.observer
            if (expected or given) != given or (isinstance(given, Fixed) and expected is None):
                raise ValueError(
                    f"layer {self.name!r}: TFLite prescribes the range of the output of {self.output_point!r} "
                    f"({expected}), but its quantizer has {given}: the cell must say so in `output_function`"
                )
            self.points[self.output_point] = self.output_quantizer
        for quantizer in self.points.values():
            if not quantizer.built:
                quantizer.build([None, 1])
        super().build(input_shape)

    def _state_sizes(self) -> list[int]:
        return tf.nest.flatten(self.layer.cell.state_size)

    def _find_points(self, features: int) -> tuple[dict[str, Point], list[str]]:
        found = {}

        def trace(x, *states):
            tracing = _Tracing(self.form.matrices() | self.form.biases())
            sources = [x, *states]
            projected = self.form.project(x, tracing)
            tracing.in_loop = True
            output, states = self.form.step(projected, states, tracing)
            names = [tracing.marked.get(tensor.ref()) for tensor in (output, *states)]
            if None in names:
                raise ValueError("the output and every new state must come from a quantization point of the step")
            if not self.form.is_one_operator:
                tracing.require_marked(sources)
            found["points"], found["names"] = tracing.points, names
            return output

        shapes = [tf.TensorSpec([None, size], tf.float32) for size in (features, *self._state_sizes())]
        tf.function(trace, autograph=False).get_concrete_function(*shapes)
        return found["points"], found["names"]

    def quantizers(self) -> dict[str, Quantizer]:
        """By point; those with a prescribed range too."""
        return dict(self.points)

    def weight_specs(self) -> dict[str, QuantizerSpec]:
        """Matrices as `weight` says; vectors, which TFLite takes for activations, as `activation` does."""
        found = self.form.matrices()
        return self._in_use(
            {role: self.weight if value.shape.rank > 1 else self.activation for role, value in found.items()}
        )

    def weight_values(self) -> dict[str, tf.Tensor]:
        """As the form sees them."""
        return self.form.matrices()

    def _biases(self, training: Any) -> dict[str, tf.Tensor]:
        """The biases on the grid of TFLite's int32, as far as the scales of their products are known."""
        found = self.form.biases()
        for role, (matrix, source) in self.form.bias_products().items():
            quantizer = self.input_quantizer if source is None else self.points[source]
            if role in found and quantizer is not None:
                step = range_scale(self.weight_ranges()[matrix], self.weight_specs()[matrix]) * quantizer.scale()
                if step.shape.rank:  # one for each of the matrix's channels, such as gates
                    step = tf.repeat(step, found[role].shape[-1] // step.shape[0])
                found[role] += tf.cast(bias_rounding(found[role], step), found[role].dtype)
        return found

    def call(self, inputs: Any, mask: Any = None, training: Any = None, initial_state: Any = None) -> Any:
        """Runs the sequence.

        Args:
            inputs: float32 [batch, time, features] ([time, batch, features] with `time_major`), quantized; or a
                list of that and the initial states, [batch, units] each.
            mask: bool [batch, time], false where a step is padding.
            training: records ranges where true.
            initial_state: the initial states, another way to give them.

        Returns:
            As the float layer: [batch, time, units], or [batch, units] without `return_sequences`; with
            `return_state` a list of that and the states.
        """
        layer = self.layer
        x, *given = tf.nest.flatten(inputs)
        given = given or tf.nest.flatten([] if initial_state is None else initial_state)
        mask = mask[0] if isinstance(mask, (list, tuple)) else mask
        self.is_masked = self.is_masked or mask is not None
        time_major = getattr(layer, "time_major", False)
        if time_major:
            x, mask = tf.transpose(x, [1, 0, 2]), None if mask is None else tf.transpose(mask)
        mask = None if mask is None else tf.cast(mask, tf.bool)
        states = self._initial_states(given, x, training)
        outputs, last, states = self._sequence(self._dropped_inputs(x, training), states, mask, training)
        if layer.stateful:
            for variable, value in zip(tf.nest.flatten(layer.states), states, strict=True):
                variable.assign(value)
        if not layer.return_sequences:
            outputs = last
        elif time_major:
            outputs = tf.transpose(outputs, [1, 0, 2])
        if not layer.return_state:
            return outputs
        return [outputs, *tf.nest.pack_sequence_as(self._state_structure(), states)]

    def _state_structure(self) -> list[Any]:
        size = self.layer.cell.state_size
        return list(size) if isinstance(size, (list, tuple)) else [size]

    def _initial_states(self, given: list[tf.Tensor], x: tf.Tensor, training: Any) -> State:
        if given:  # on the grid of the layer that made them; operators read any
            return tuple(given)
        if self.layer.stateful:
            return tuple(variable.read_value() for variable in tf.nest.flatten(self.layer.states))
        states = tuple(tf.zeros([tf.shape(x)[0], size], x.dtype) for size in self._state_sizes())
        for state, size in zip(states, self._state_sizes(), strict=True):
            state.set_shape([x.shape[0], size])
        return states

    def _dropped_inputs(self, x: tf.Tensor, training: Any) -> tf.Tensor:
        mask = _dropout_mask(getattr(self.layer.cell, "dropout", 0.0), x[:, :1], training)
        return x if mask is None else x * mask

    def _drop_hidden(self, x: tf.Tensor, training: Any) -> Callable[[tf.Tensor], tf.Tensor]:
        rate, units = getattr(self.layer.cell, "recurrent_dropout", 0.0), getattr(self.layer.cell, "units", 1)
        mask = _dropout_mask(rate, tf.zeros([tf.shape(x)[0], units], x.dtype), training)
        return lambda hidden: hidden if mask is None else hidden * mask

    def _sequence(
        self, x: tf.Tensor, states: State, mask: tf.Tensor | None, training: Any
    ) -> tuple[tf.Tensor, tf.Tensor, State]:
        """The recurrence itself, in the layer's direction.

        Args:
            x: float32 [batch, time, features].
            states: float32 [batch, units] each, quantized.
            mask: bool [batch, time], or None.
            training: as in `call`.

        Returns:
            Outputs [batch, time, units], the last of them, and the last states.
        """
        run_length, drop = x.shape[1], self._drop_hidden(x, training)
        x = tf.transpose(x, [1, 0, 2])
        mask = None if mask is None else tf.transpose(mask)[..., tf.newaxis]
        if self.layer.go_backwards:
            x, mask = tf.reverse(x, [0]), None if mask is None else tf.reverse(mask, [0])
        weights = self.weights_in_use() | self._biases(training)
        time, batch = tf.shape(x)[0], tf.shape(x)[1]
        rows = None if mask is None else tf.reshape(mask, [-1, 1])
        rounds_as_kernels = xnnpack.is_followed(training, x.dtype)
        sequence = _Sequence(self, weights, rows, training, rounds_as_kernels)
        projected = self.form.project(tf.reshape(x, [-1, x.shape[-1]]), sequence)
        projected = tf.reshape(projected, [time, batch, projected.shape[-1]])
        points = {name: self.points[name] for name in self._in_loop}
        run = _Timestep(weights | self.form.prepared(sequence), dict(self.points), drop, rounds_as_kernels)
        run.in_use, run.repeats = {name: quantizer.in_use() for name, quantizer in points.items()}, time
        tracked = {name: quantizer for name, quantizer in points.items() if not isinstance(quantizer.observer, Fixed)}

        is_fused = not rounds_as_kernels and gru_step.fits(x, self.form, points)
        step = GruStep(points, run.in_use) if is_fused else self.form.step

        def timestep(t, states, last, outputs, carried):
            run.records, run.mask = {}, None if mask is None else mask[t]
            output, new = step(projected[t], states, run)
            if mask is not None:
                output = tf.where(mask[t], output, last)
                new = tuple(tf.where(mask[t], *pair) for pair in zip(new, states, strict=True))
            return t + 1, new, output, outputs.write(t, output), records.merge(carried, run.records)

        static = x.shape[1]
        size = self._output_size()
        last = tf.zeros([batch, size], x.dtype)
        last.set_shape([static, size])
        outputs = tf.TensorArray(x.dtype, size=time, element_shape=[static, size])
        records = LoopRecords(tracked)
        _, states, last, outputs, carried = tf.while_loop(
            lambda t, *_: t < time, timestep, (0, states, last, outputs, records.start()), maximum_iterations=time
        )
        if training is not None and training is not False:
            for name, record in records.unpack(carried).items():
                self.points[name].submit(record, training)
        outputs = tf.transpose(outputs.stack(), [1, 0, 2])
        outputs.set_shape([static, run_length, size])
        return outputs, last, states

    def _output_size(self) -> int:
        size = getattr(self.layer.cell, "output_size", None)
        return size if size is not None else self._state_sizes()[0]

    @property
    def stateful(self) -> bool:
        """Whether states go on from batch to batch."""
        return self.layer.stateful

    @stateful.setter
    def stateful(self, value: bool) -> None:
        pass  # Keras' own constructor sets it; it is the float layer's

    def reset_states(self, states: Any = None) -> None:
        """Sets the states of a stateful layer, to zero by default."""
        self.layer.reset_states(states)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """That of the float layer."""
        return self.layer.compute_mask(inputs, mask)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the float layer."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The float layer, and how it is quantized."""
        parts = {name: getattr(self, name) for name in ("weight", "activation", "observer")}
        parts |= {"cell_state": self.cell_state_spec, "output": self.output_quantizer}
        return {**super().get_config(), **{name: serialize(part) for name, part in parts.items()}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedRNN":
        """The inverse of `get_config`."""
        names = ("layer", "weight", "activation", "observer", "cell_state", "output")
        return cls(**{**config, **{name: deserialize(config[name]) for name in names}})


def _is_list_of_shapes(shape: Any) -> bool:
    return isinstance(shape, (list, tuple)) and isinstance(shape[0], (list, tuple, tf.TensorShape))


def dropout_gain(rate: float, training: Any) -> tf.Tensor | float:
    """What dropout multiplies by that which it keeps."""
    gain = 1.0 if training is None or training is False else 1.0 / (1.0 - rate)
    return tf.where(tf.cast(training, tf.bool), gain, 1.0) if tf.is_tensor(training) else gain


def _dropout_mask(rate: float, like: tf.Tensor, training: Any) -> tf.Tensor | None:
    if not rate or training is None or training is False:
        return None
    mask = tf.nn.dropout(tf.ones_like(like), rate)
    if isinstance(training, (bool, int)):
        return mask
    return tf.where(tf.cast(training, tf.bool), mask, tf.ones_like(mask))
