"""The simulation in integers: what the exported file will give, without exporting."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from dqat import graph, integer
from dqat.keras_api import keras
from dqat.layers import QuantizedBidirectional, QuantizedLayer, QuantizedLSTM, QuantizedRNN, QuantizeWrapper
from dqat.layers.bidirectional import merge_directions
from dqat.layers.cell_form import activation_name
from dqat.layers.keras_cells import GRUForm, SimpleRNNForm
from dqat.layers.peephole_lstm import PEEPHOLES
from dqat.model import named_quantizers, require_quantized
from dqat.quantizers import Quantizer

#: Layers that are nothing at inference.
_ABSENT = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)
#: Layers that only move values.
_MOVING = (keras.layers.Flatten, keras.layers.Reshape, keras.layers.Permute, keras.layers.RepeatVector)


class NoReferenceError(ValueError):
    """What has no integer reference; the message names it."""


class Codes:
    """An int8 tensor and what its integers stand for.

    Attributes:
        values: int8, batch first.
        scale: float32.
        zero_point: of the signed integer.
    """

    def __init__(self, values: np.ndarray, scale: float, zero_point: int) -> None:
        self.values, self.scale, self.zero_point = values, scale, zero_point

    def dequantized(self) -> np.ndarray:
        """float32 values."""
        return integer.dequantize(self.values, scale=self.scale, zero_point=self.zero_point)


#: Takes a quantizer, what it gives, and the recurrent layer that it is in, of which it has the whole sequence.
Settle = Callable[[Quantizer, Codes, QuantizedRNN | None], Codes]


def simulate(model: keras.Model, data: Any, *, simulation: str = "integer") -> Any:
    """Runs a quantization-aware model on samples, as the float simulation or in the integers of the exported file.

    In integers every operator is computed as TFLite's builtin kernels compute it, to the bit, from the ranges and
    weights that the model has now. A difference between this and the file is a wrong export; a difference between
    this and the float simulation is rounding.

    Args:
        model: what `quantize_model` returned, trained for at least one step.
        data: float32 samples [samples, ...], or a list of them in the order of the inputs.
        simulation: "integer" or "float".

    Returns:
        float32 outputs, in the model's structure: multiples of the output's scale.

    Raises:
        TypeError: for a model that is not quantized.
        ValueError: for another simulation, a layer that has no integer reference (`NoReferenceError`), or a
            quantizer without a range; names it.
    """
    require_quantized(model)
    if simulation not in ("float", "integer"):
        raise ValueError(f"simulation must be 'float' or 'integer', got {simulation!r}")
    if simulation == "float":
        return tf.nest.map_structure(lambda output: output.numpy(), model(data, training=False))
    require_8_bits(model)
    source = graph.read(model)
    samples = [np.asarray(part, np.float32) for part in tf.nest.flatten(data)]
    tensors: dict[graph.Tensor, Any] = dict(zip(tf.nest.flatten(source.inputs), samples, strict=True))
    for call in source.calls:
        if call.is_input:
            continue
        inputs = [tensors[tensor] for tensor in call.inputs]
        tensors.update(zip(call.results, tf.nest.flatten(run_layer(call.layer, inputs)), strict=True))
    return tf.nest.map_structure(lambda tensor: tensors[tensor].dequantized(), source.outputs)


def require_8_bits(model: keras.Model) -> None:
    """Raises NoReferenceError for a model with other bits than the references compute with; names a quantizer."""
    for path, quantizer in named_quantizers(model):
        # A power of two stands for an LSTM's cell state, in 16 bits.
        if quantizer.spec.num_bits != 8 and not quantizer.spec.power_of_two:
            raise NoReferenceError(f"{path} has {quantizer.spec.num_bits} bits: integer references have 8")


def grid(quantizer: Quantizer) -> tuple[float, int]:
    """Scale and zero point of what a quantizer uses now, as the file has them.

    Raises:
        ValueError: where it has no range yet.
    """
    low, high = (part.numpy() for part in quantizer.range())
    if not np.isfinite(low).all():
        raise ValueError(f"no range recorded yet for {quantizer.path}: train the model for at least one step")
    spec = quantizer.spec
    found = integer.quantization_parameters(low, high, num_bits=spec.num_bits, narrow_range=spec.narrow_range)
    return float(found["scale"]), int(found["zero_point"])


def run_layer(layer: keras.layers.Layer, inputs: list[Any], settle: Settle = lambda _, codes, __: codes) -> Any:
    """One layer in integers.

    Args:
        layer: of a quantization-aware model.
        inputs: `Codes`; float32 for a quantizer.
        settle: is told what each quantizer gives, and gives what goes on.

    Returns:
        `Codes`, or a list of them.

    Raises:
        NoReferenceError: where there is no reference.
        ValueError: for a quantizer without a range.
    """
    if isinstance(layer, Quantizer):
        return settle(layer, _quantized(layer, inputs[0]), None)
    if isinstance(layer, _ABSENT):
        return inputs[0]
    if isinstance(layer, _MOVING):
        return Codes(layer(inputs[0].values).numpy(), inputs[0].scale, inputs[0].zero_point)
    if isinstance(layer, QuantizedBidirectional) and len(inputs) == 1 and layer.layer.merge_mode in ("concat", None):
        return _bidirectional(layer, inputs[0], settle)
    if isinstance(layer, QuantizedRNN) and len(inputs) == 1:
        return _recurrent(layer, inputs[0], settle)
    if isinstance(layer, QuantizeWrapper) and isinstance(layer.layer, keras.layers.Dense):
        return settle(layer.output_quantizer, _dense(layer, inputs[0]), None)
    inner = getattr(layer, "layer", layer)
    raise NoReferenceError(
        f"layer {layer.name!r} ({type(inner).__name__}) has no integer reference: export the model and verify it"
    )


def _quantized(quantizer: Quantizer, x: Any) -> Codes:
    if isinstance(x, Codes):
        raise NoReferenceError(f"{quantizer.path} quantizes again what is quantized, which has no integer reference")
    scale, zero_point = grid(quantizer)
    return Codes(integer.quantize(x, scale=scale, zero_point=zero_point).astype(np.int8), scale, zero_point)


def _weights(layer: QuantizedLayer) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Integers and scale of each quantized weight, by role, in the shape that its spec speaks of."""
    found = {}
    values, ranges = layer.quantized_weights(), layer.weight_ranges()
    for role, spec in layer.weight_specs().items():
        low, high = (bound.numpy() for bound in ranges[role])
        scale = integer.quantization_parameters(low, high, num_bits=spec.num_bits, narrow_range=spec.narrow_range)[
            "scale"
        ]
        shape = np.ones(values[role].shape.rank, int)
        if spec.axis is not None:
            shape[spec.axis] = -1
        steps = values[role].numpy() / np.where(scale == 0, 1, scale).reshape(shape)
        found[role] = np.rint(steps).astype(np.int16 if spec.num_bits > 8 else np.int8), scale
    return found


def _bias(values: Any, *scales: Any) -> np.ndarray | None:
    """A bias as the converter stores it: int32 on the product of two float32 scales, halves away from zero."""
    if values is None:
        return None
    steps = np.float64(values) / np.float64(np.multiply(*map(np.float32, scales)))
    return (np.sign(steps) * np.floor(np.abs(steps) + 0.5)).astype(np.int32)


def _dense(layer: QuantizeWrapper, x: Codes) -> Codes:
    activation = activation_name(layer.layer.activation)
    if layer.output_quantizer is None or activation not in ("linear", "relu") or layer.norm is not None:
        raise NoReferenceError(f"layer {layer.name!r} (Dense) with what follows it has no integer reference")
    (weight, weight_scale), (scale, zero_point) = _weights(layer)["kernel"], grid(layer.output_quantizer)
    flat = np.ascontiguousarray(x.values.reshape(-1, x.values.shape[-1]))
    values = integer.fully_connected(
        flat,
        np.ascontiguousarray(weight.T),
        _dense_bias(layer, x.scale, weight_scale),
        input_scale=x.scale,
        input_zero_point=x.zero_point,
        weight_scale=weight_scale,
        output_scale=scale,
        output_zero_point=zero_point,
        lowest=zero_point if activation == "relu" else -128,
        optimized=True,
    )
    return Codes(values.reshape(*x.values.shape[:-1], -1), scale, zero_point)


def _dense_bias(layer: QuantizeWrapper, input_scale: float, weight_scale: Any) -> np.ndarray | None:
    products = layer.product_grid()
    if not layer.layer.use_bias or products is None:  # then export leaves it as the converter has it
        return _bias(layer.layer.bias if layer.layer.use_bias else None, input_scale, weight_scale)
    return products.bias().numpy().astype(np.int32)


def _recurrent(layer: QuantizedRNN, x: Codes, settle: Settle) -> Codes:
    if layer.layer.stateful or layer.layer.return_state or getattr(layer.layer, "time_major", False):
        raise NoReferenceError(
            f"layer {layer.name!r} with stateful, return_state or time_major has no integer reference"
        )
    sequence = _REFERENCES.get(type(layer.form)) if not isinstance(layer, QuantizedLSTM) else _lstm
    if sequence is None:
        raise NoReferenceError(f"layer {layer.name!r} ({type(layer.layer.cell).__name__}) has no integer reference")
    turned = Codes(x.values[:, ::-1] if layer.layer.go_backwards else x.values, x.scale, x.zero_point)
    turned.values = np.ascontiguousarray(turned.values)
    quantizer = layer.points[layer.output_point]
    output = settle(quantizer, Codes(sequence(layer, turned), *grid(quantizer)), layer)
    return output if layer.layer.return_sequences else Codes(output.values[:, -1], output.scale, output.zero_point)


def _bidirectional(layer: QuantizedBidirectional, x: Codes, settle: Settle) -> Any:
    forward, backward = (_recurrent(direction, x, settle) for direction in layer.directions().values())
    merged = merge_directions(layer.layer, tf.constant(forward.values), tf.constant(backward.values), None)
    parts = [Codes(part.numpy(), forward.scale, forward.zero_point) for part in tf.nest.flatten(merged)]
    return parts if layer.layer.merge_mode is None else parts[0]


def _lstm(layer: QuantizedLSTM, x: Codes) -> np.ndarray:
    weights, cell = _weights(layer), layer.layer.cell
    (kernel, kernel_scales), (recurrent, recurrent_scales) = weights["kernel"], weights["recurrent_kernel"]
    units = cell.units
    bias = cell.bias.numpy() if cell.use_bias else np.zeros(4 * units, np.float32)
    peepholes = [weights[role] for role in PEEPHOLES if role in weights]
    (hidden_scale, hidden_zero_point), (cell_scale, _) = grid(layer.hidden), grid(layer.cell_state)
    output, _, _ = integer.lstm(
        x.values,
        np.ascontiguousarray(kernel.transpose(1, 2, 0)),
        np.ascontiguousarray(recurrent.transpose(1, 2, 0)),
        _bias(bias.reshape(4, units), x.scale, kernel_scales[:, np.newaxis]),
        input_scale=x.scale,
        input_zero_point=x.zero_point,
        input_weight_scales=kernel_scales,
        recurrent_weight_scales=recurrent_scales,
        hidden_scale=hidden_scale,
        hidden_zero_point=hidden_zero_point,
        cell_scale=cell_scale,
        peepholes=np.stack([codes for codes, _ in peepholes]) if peepholes else None,
        peephole_scales=[scale if scale > 0 else 1.0 for _, scale in peepholes],
    )
    return output


def _chain(layer: QuantizedRNN, x: Codes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What both chains of operators need: weights as TFLite stores them, and named arguments."""
    weights = {role: (np.ascontiguousarray(code.T), scale) for role, (code, scale) in _weights(layer).items()}
    grids = {name: grid(quantizer) for name, quantizer in layer.points.items()} | {"input": (x.scale, x.zero_point)}
    return weights, {"grids": grids, "activation": activation_name(layer.layer.cell.activation)}


def _simple_rnn(layer: QuantizedRNN, x: Codes) -> np.ndarray:
    weights, options = _chain(layer, x)
    (kernel, kernel_scale), (recurrent, recurrent_scale) = weights["kernel"], weights["recurrent_kernel"]
    bias = _bias(layer.form.biases().get("bias"), x.scale, kernel_scale)
    scales = {"kernel_scale": kernel_scale, "recurrent_kernel_scale": recurrent_scale}
    return integer.simple_rnn(x.values, kernel, recurrent, bias, **scales, **options)[0]


def _gru(layer: QuantizedRNN, x: Codes) -> np.ndarray:
    weights, options = _chain(layer, x)
    kernel, options["kernel_scale"] = weights["kernel"]
    biases = layer.form.biases()
    role = "recurrent_kernel" if layer.layer.cell.reset_after else "recurrent_kernel_gates"
    recurrent, options["recurrent_kernel_scale"] = weights[role]
    if not layer.layer.cell.reset_after:
        candidate = weights["recurrent_kernel_candidate"]
        options["candidate_kernel"], options["candidate_kernel_scale"] = candidate
    hidden_scale = options["grids"]["hidden"][0]
    options["recurrent_bias"] = _bias(biases.get("recurrent_bias"), hidden_scale, options["recurrent_kernel_scale"])
    bias = _bias(biases.get("bias"), x.scale, options["kernel_scale"])
    return integer.gru(x.values, kernel, recurrent, bias, **options)[0]


_REFERENCES: dict[type, Callable[[QuantizedRNN, Codes], np.ndarray]] = {SimpleRNNForm: _simple_rnn, GRUForm: _gru}
