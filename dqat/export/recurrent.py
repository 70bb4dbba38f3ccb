"""Recurrent layers in the float graph that the converter reads: TFLite's LSTM operator, or one cell after another."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from dqat import integer
from dqat.export import points
from dqat.export.int16 import MARK
from dqat.export.quantizer import ExportError
from dqat.keras_api import keras
from dqat.layers import QuantizedBidirectional, QuantizedLSTM, QuantizedRNN
from dqat.layers.bidirectional import merge_directions
from dqat.quantizers import Quantizer


def _bounds(quantizer: Quantizer) -> tuple[float, float]:
    """The range in use, nudged: the converter computes in double and rounds ties, such as of [-1, 1], its own way."""
    with tf.init_scope():  # out of the graph that is being built
        low, high = (bound.numpy() for bound in quantizer.range())
    spec = quantizer.spec
    found = integer.quantization_parameters(low, high, num_bits=spec.num_bits, narrow_range=spec.narrow_range)
    return found["nudged_min"].item(), found["nudged_max"].item()


def fake_quant(x: tf.Tensor, quantizer: Quantizer, factor: float = 1.0) -> tf.Tensor:
    """TensorFlow's own fake-quant, with `factor` times the quantizer's present range as a constant."""
    spec, (low, high) = quantizer.spec, _bounds(quantizer)
    if spec.num_bits == 16:  # see `dqat.export.int16`: the levels of an 8-bit mark, symmetric
        scale = np.float32(high) / np.float32(2**15 - 1)
        low, high = (MARK * scale.item() * level for level in (-128, 127))
    return tf.quantization.fake_quant_with_min_max_args(
        x,
        factor * low,
        factor * high,
        num_bits=8 if spec.num_bits == 16 else spec.num_bits,
        narrow_range=spec.narrow_range,
        name=points.name_of(quantizer.path),
    )


class Run(keras.layers.Layer):
    """Runs a function that has no variables, so that a functional model can hold it."""

    def __init__(self, function: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._function = tf.autograph.experimental.do_not_convert(function)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives."""
        kwargs.pop("training", None)
        return self._function(*args, **kwargs)


def fused_lstms(model: keras.Model) -> dict[str, QuantizedLSTM]:
    """The layers that become TFLite's LSTM operator, by path."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, QuantizedLSTM):
            found[layer.name] = layer
        elif isinstance(layer, QuantizedBidirectional) and layer.is_fused:
            found |= {f"{layer.name}/{name}": direction for name, direction in layer.directions().items()}
    return found


def is_unrolled(layer: keras.layers.Layer) -> bool:
    """Whether the layer becomes one cell after another."""
    return (isinstance(layer, QuantizedRNN) and not isinstance(layer, QuantizedLSTM)) or (
        isinstance(layer, QuantizedBidirectional) and not layer.is_fused
    )


def require_no_masks(model: keras.Model) -> None:
    """Raises ExportError for recurrent layers that are called with a mask."""
    masked = [layer.name for layer in model.layers if any(one.is_masked for one in _recurrent(layer))]
    if masked:
        raise ExportError(
            f"the mask of {', '.join(masked)} has no place in a file for whole sequences, where every frame counts. "
            "Export with streaming=True, and feed the frames that are no padding"
        )


def require_batch_first(model: keras.Model) -> None:
    """Raises ExportError for recurrent layers whose first axis is time."""
    found = [
        layer.name
        for layer in model.layers
        if any(getattr(one.layer, "time_major", False) for one in _recurrent(layer))
    ]
    if found:
        raise ExportError(
            f"{', '.join(found)} has time_major=True, but files have the batch, of size 1, on the first axis. "
            "Train with time_major=False; the weights are the same"
        )


def _recurrent(layer: keras.layers.Layer) -> list[QuantizedRNN]:
    if isinstance(layer, QuantizedBidirectional):
        return list(layer.directions().values())
    return [layer] if isinstance(layer, QuantizedRNN) else []


def gate_weights(layer: QuantizedLSTM) -> dict[str, np.ndarray]:
    """The fake-quantized kernels of an LSTM as Keras shapes them, [inputs, 4 * units]."""
    found = layer.quantized_weights()
    return {role: found[role].numpy().reshape(found[role].shape[0], -1) for role in ("kernel", "recurrent_kernel")}


class StreamStates:
    """The states that a streaming file takes and gives: Keras tensors [1, units], in the same order."""

    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []


#: What computes each frame by itself.
_FRAMEWISE = (
    *("Dense", "Activation", "ReLU", "LeakyReLU", "ELU", "Softmax", "BatchNormalization", "Rescaling"),
    *("Normalization", "LayerNormalization", "Add", "Subtract", "Multiply", "Dropout", "Masking"),
)


def require_framewise(layer: keras.layers.Layer, inputs: Any) -> None:
    """Raises ExportError for a layer that mixes the frames of a sequence."""
    inner = getattr(layer, "layer", layer)
    sees_frames = any(tensor.shape.rank > 2 for tensor in tf.nest.flatten(inputs))
    if sees_frames and not isinstance(layer, Quantizer) and type(inner).__name__ not in _FRAMEWISE:
        raise ExportError(
            f"layer {layer.name!r} ({type(inner).__name__}) may look at several frames: it can't run frame by frame. "
            "Export the whole sequence, or put the layer behind the recurrent ones"
        )


def recurrent_graph(
    layer: QuantizedRNN | QuantizedBidirectional, inputs: Any, stream: StreamStates | None, zeros: Iterator[int]
) -> Any:
    """What stands for a recurrent layer in the float graph.

    Args:
        layer: trained.
        inputs: its inputs there: Keras tensors of batch size 1.
        stream: where the states of an unrolled layer go, in a graph of one frame; None for whole sequences.
        zeros: numbers of the states that begin with zeros, all others than those of the model's other layers.

    Returns:
        Its outputs there.

    Raises:
        ExportError: for a layer that has to know the end of the sequence first, in a graph of one frame.
    """
    if stream is not None and (isinstance(layer, QuantizedBidirectional) or layer.layer.go_backwards):
        raise ExportError(f"layer {layer.name!r} runs from the end of the sequence: it can't run frame by frame")
    if isinstance(layer, QuantizedLSTM):
        return _fused(layer, inputs)
    if isinstance(layer, QuantizedRNN):
        if stream is None:
            return Run(_Unrolled(layer, zeros), name=layer.name)(inputs)
        return _one_frame(layer, inputs, stream, zeros)
    x, *states = tf.nest.flatten(inputs)
    half = len(states) // 2
    parts = {"forward": [x, *states[:half]], "backward": [x, *states[half:]]}

    def result(name: str, direction: QuantizedRNN) -> Any:
        given = parts[name] if states else x
        if layer.is_fused:
            return recurrent_graph(direction, given, None, zeros)
        return Run(_Unrolled(direction, zeros, is_flipped=name == "backward"), name=direction.name)(given)

    forward, backward = (result(*named) for named in layer.directions().items())
    quantizer, mode = layer.output_quantizer, layer.layer.merge_mode

    def merged(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        if mode == "ave":
            # The sum on the doubled scale has the codes of the mean, so that halving rounds nothing.
            one, other = fake_quant(one + other, quantizer, factor=2.0), 0.5
        return fake_quant(one + other if mode == "sum" else one * other, quantizer)

    def whole(pair: list[Any]) -> Any:
        return merge_directions(layer.layer, *pair, merged, is_in_order=not layer.is_fused)

    return Run(whole, name=layer.name)([forward, backward])


def _one_frame(layer: QuantizedRNN, inputs: Any, stream: StreamStates, zeros: Iterator[int]) -> Any:
    if len(tf.nest.flatten(inputs)) > 1:
        raise ExportError(f"layer {layer.name!r} has initial states: it can't run frame by frame")
    sizes = tf.nest.flatten(layer.layer.cell.state_size)
    states = [
        keras.Input(batch_input_shape=(1, size), name=f"{layer.name}_state_{index}") for index, size in enumerate(sizes)
    ]
    found, *after = Run(_Unrolled(layer, zeros, is_one_frame=True), name=layer.name)([inputs, *states])
    stream.inputs += states
    # An operation of its own keeps a state apart from an output that is the same tensor.
    stream.outputs += [
        Run(lambda x: tf.reshape(x, [1, -1]), name=f"{layer.name}_next_state_{index}")(state)
        for index, state in enumerate(after)
    ]
    return [found, *after] if layer.layer.return_state else found


def _fused(layer: QuantizedLSTM, x: Any) -> Any:
    """A Keras LSTM in the form of which the converter makes TFLite's operator; without peepholes."""
    cell, flipped = layer.layer.cell, layer.layer.go_backwards
    if flipped:
        x = Run(lambda tensor: tf.reverse(tensor, [1]), name=f"{layer.name}_flipped")(x)
    copy = keras.layers.LSTM(
        cell.units, return_sequences=layer.layer.return_sequences, unit_forget_bias=False, name=layer.name
    )
    outputs = copy(x)
    for role, value in gate_weights(layer).items():
        getattr(copy.cell, role).assign(value)
    if cell.use_bias:
        copy.cell.bias.assign(cell.bias)
    return Run(lambda tensor: fake_quant(tensor, layer.hidden), name=f"{layer.name}_output")(outputs)


def _not_neutral(vector: np.ndarray) -> np.ndarray:
    """A vector of ones or zeros, less a trifle that int8 does not show in the first value.

    The converter drops what multiplies with one or adds zero, and with it the scales that the points have.
    """
    for neutral, other in ((1.0, np.nextafter(np.float32(1.0), np.float32(0.0))), (0.0, np.float32(1e-6))):
        if vector.ndim == 1 and vector.size and np.all(vector == neutral):
            return np.concatenate([[other], vector[1:]]).astype(np.float32)
    return vector


class _Constants:
    """Numerics of the export: constant weights, and constant fake-quants as points."""

    is_export = True
    rounds_as_kernels = False

    def __init__(self, layer: QuantizedRNN) -> None:
        self._points = layer.points
        with tf.init_scope():
            weights = {role: _not_neutral(value.numpy()) for role, value in layer.quantized_weights().items()}
            values = weights | {role: value.numpy() for role, value in layer.form.biases().items()}
        # One constant, used by all timesteps.
        self.weights = {role: tf.constant(value, name=role) for role, value in values.items()}

    def point(self, name: str, value: tf.Tensor, *, limit: float | None = None, kind: str = "activation") -> tf.Tensor:
        return fake_quant(value, self._points[name])  # which saturates as the limit does

    def dropped(self, hidden: tf.Tensor) -> tf.Tensor:
        return hidden


class _Unrolled:
    """A recurrent layer as one cell after another, batch size 1.

    Args:
        layer: trained.
        zeros: see `recurrent_graph`.
        is_one_frame: the states are inputs and outputs too.
        is_flipped: outputs stand in the opposite order of time. The converter loses the range of a stack behind a
            REVERSE, so that there must be none.
    """

    def __init__(
        self, layer: QuantizedRNN, zeros: Iterator[int], *, is_one_frame: bool = False, is_flipped: bool = False
    ) -> None:
        self._layer, self._is_one_frame, self._is_flipped = layer, is_one_frame, is_flipped
        self._zeros = [next(zeros) for _ in layer.state_points]

    def __call__(self, inputs: Any) -> Any:
        quantized, layer = self._layer, self._layer.layer
        run = _Constants(quantized)
        x, *given = tf.nest.flatten(inputs)
        time, features = x.shape[1:]
        if time is None:
            raise ValueError(f"layer {layer.name!r} is unrolled: the model's input needs a fixed number of timesteps")
        projected = quantized.form.project(tf.reshape(x, [time, features]), run)
        steps = tf.unstack(tf.reshape(projected, [time, 1, projected.shape[-1]]))
        if layer.go_backwards:
            steps = steps[::-1]
        states = given
        if not given:
            pairs = zip(self._zeros, self._states(), strict=True)
            states = [self._nothing(x, number, *pair, run) for number, pair in pairs]
        if not given or self._is_one_frame:  # another layer's states are on its grid, and operators read any
            states = [run.point(*pair) for pair in zip(quantized.state_points, states, strict=True)]
        outputs = []
        for step in steps:
            output, states = quantized.form.step(step, tuple(states), run)
            outputs.append(output)
        in_order = outputs[::-1] if self._is_flipped else outputs
        found = tf.stack(in_order, axis=1) if layer.return_sequences else outputs[-1]
        return [found, *states] if self._is_one_frame or layer.return_state else found

    def _states(self) -> list[tuple[str, int]]:
        """Point and size of each state."""
        return list(zip(self._layer.state_points, tf.nest.flatten(self._layer.layer.cell.state_size), strict=True))

    @staticmethod
    def _nothing(x: tf.Tensor, number: int, point: str, size: int, run: _Constants) -> tf.Tensor:
        """Zeros that the converter can't know: it would compute the first timestep in float, not as the kernels do.

        Each state takes another value of the input: the converter makes one operation of equal ones, with one range.
        """
        values = tf.reshape(x, [-1, 1])
        value = values[number % values.shape[0], tf.newaxis]
        return tf.pad(run.point(point, value - value), [[0, 0], [0, size - 1]])
