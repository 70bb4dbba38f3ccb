"""`export_tflite`: trained ranges into an integer-only file, and proof that they arrived."""

import dataclasses
import os
import pathlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.lite.python.optimize import calibrator

from dqat import integer
from dqat.export import checksum, metadata
from dqat.export.flatbuffer import Flatbuffer, LstmTensors
from dqat.export.float_graph import inference_graph
from dqat.export.inspection import describe
from dqat.export.int16 import quantize_to_int16
from dqat.export.islands import float_operators, require_islands
from dqat.export.loop import put_into_loop, require_loop
from dqat.export.mixed import MixedBits
from dqat.export.points import Marks, Point, legal_paths, marks_of, path_of, points_of
from dqat.export.products import settle_products
from dqat.export.quantizer import ExportError, quantize
from dqat.export.recurrent import fused_lstms, gate_weights, is_unrolled, require_batch_first, require_no_masks
from dqat.export.targets import TARGETS, Fallback, fallbacks
from dqat.export.trial import require_that_it_runs
from dqat.export.veil import Veil
from dqat.keras_api import keras
from dqat.layers import QuantizedBidirectional, QuantizedLayer, QuantizedLSTM, QuantizedRNN, QuantizeWrapper
from dqat.layers.peephole_lstm import PEEPHOLES
from dqat.model import float32_model, named_quantizers, require_quantized
from dqat.quantizers import Quantizer, range_scale

#: The converter computes a scale from the range in other ways than dqat; they agree to this.
_SCALE_TOLERANCE = 1e-6
#: Operators with int8 kernels that the converter's quantizer doesn't know of.
_KNOW_INT8 = ("ELU", "GELU")
#: Types of a file's inputs and outputs.
IO = ("int8", "int16", "float32")


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the file.
        size: bytes.
        operators: names, in order of execution.
        parameters: (scale, zero point) in the file, by quantizer ("layer/role"): exactly those of the trained
            ranges, as float32.
        fallbacks: operators that the target does not run, or only under a condition; with what to change.
    """

    path: pathlib.Path
    size: int
    operators: tuple[str, ...]
    parameters: dict[str, tuple[float, int]] = field(repr=False)
    fallbacks: tuple[Fallback, ...] = ()


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    target: str = "tflite",
    streaming: bool = False,
    loop: bool = False,
    io: str | None = None,
    batch_size: int | None = 1,
) -> ExportReport:
    """Writes a trained quantization-aware model as an integer-only TFLite file.

    The same model gives the same bytes. The file has a signature "serving_default" with the names of the model's
    inputs and outputs, and metadata (`dqat.export.metadata`): scales, what was trained, versions. LSTMs become
    UNIDIRECTIONAL_SEQUENCE_LSTM with an int16 cell state. The file is checked before it is written (no float tensor
    but those that `io` asks for and those of layers that the caller left in float, scales and weights those that were
    trained) and appears under `path` whole or not at all.

    Args:
        model: what `quantize_model` returned, trained for at least one step.
        path: the file to write; replaced where it exists.
        target: where the file is to run: "tflite" (its interpreter), "edgetpu" (Coral), "nnapi" (Android) or
            "microcontroller" (TFLite Micro). The file is the same; the report says what falls back there.
        streaming: the file takes one frame a call (input [1, 1, features]) and goes on where the last call ended;
            its outputs are those of the whole-sequence file. Each LSTM operator keeps its states in variables, which
            the interpreter resets; other cells take their states as int8 inputs and give them as outputs.
            `dqat.streaming.Stream` runs it.
        loop: recurrent cells without an operator of TFLite's run in its WHILE, instead of one cell after another: the
            file has each cell once, whatever the number of timesteps, and the same outputs in every bit. For models
            with one input [batch, timesteps, features] whose outputs follow from the last frame, in 8 bits.
        io: type of inputs and outputs: None for that of the activations ("int8", or "int16" for a model of the
            scheme "w8a16"; with `int16_layers` each end has its own), or "float32", with a QUANTIZE operator behind
            each input and a DEQUANTIZE operator before each output; all between them is the same.
        batch_size: samples a call, or None for any number, which the interpreter is told by `resize_tensor_input`.
            Recurrent layers have 1.

    Returns:
        An `ExportReport`.

    Raises:
        TypeError: for a model that is not quantized.
        ValueError: for another target, type or batch size, or quantizers without a range; names them.
        ExportError: where the converted file is not what was trained or can't be run, for other bits than TFLite's
            kernels run, or an operator without a kernel of 16 bits; names it.
    """
    require_quantized(model)
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    integers = _activation_type(model)
    if io is not None and io not in IO:
        raise ValueError(f"io must be one of {', '.join(IO)}, got {io!r}")
    if io not in (None, integers, "float32"):
        ours = integers if integers in IO else "None"
        raise ValueError(f"io must be {ours}, as the activations were trained, or float32, got {io!r}")
    io = io or integers
    _require_ranges(model)
    model = float32_model(model)
    require_batch_first(model)
    _require_batch_size(model, batch_size)
    if not streaming:
        require_no_masks(model)
    if loop:
        if streaming or integers != "int8":
            raise ValueError("loop=True is for whole sequences (streaming=False) of models of 8 bits")
        require_loop(model)
    floats = inference_graph(model, streaming or loop, batch_size)
    flatbuffer = Flatbuffer(_to_integers(model, _convert(floats)))
    flatbuffer.order_by_name()
    flatbuffer.name_signature(floats.input_names, floats.output_names)
    parameters = _settle(model, flatbuffer)
    if loop:
        put_into_loop(flatbuffer, model.inputs[0].shape[1], len(model.outputs))
    if io == "float32":
        flatbuffer.add_float_ends()
    told = {"io": io, "streaming": streaming, "loop": loop, "float_layers": list(model.float_layers)}
    metadata.complete(flatbuffer, model, parameters, has_points=not loop, **told)
    content, path = checksum.seal(flatbuffer), pathlib.Path(path)
    fallen = fallbacks(describe(content, path), target)
    _write_atomically(path, content)
    return ExportReport(path, len(content), tuple(flatbuffer.operator_names()), parameters, fallen)


def _activation_type(model: keras.Model) -> str:
    """ "int8", "int16", or "int8 and int16"; refuses bits that TFLite's integer kernels don't run."""
    specs = {path: quantizer.spec for path, quantizer in named_quantizers(model)}
    for layer in model.layers:
        if isinstance(layer, QuantizedLayer):
            specs |= {f"{layer.name}/{role}": spec for role, spec in layer.weight_specs().items()}
    activations = {path for path, _ in named_quantizers(model)}
    # In an LSTM operator the cell state (its scale is a power of two) and peepholes have 16 bits.
    peepholes = {f"{path}/{role}" for path in fused_lstms(model) for role in PEEPHOLES}
    specs = {path: spec for path, spec in specs.items() if not spec.power_of_two and path not in peepholes}
    is_wide = {path: specs[path].num_bits == 16 and specs[path].symmetric for path in activations if path in specs}
    # Vectors inside cells are activations to TFLite.
    allowed = (8, 16) if is_wide and all(is_wide.values()) else (8,)
    other = [
        f"{path} ({spec.num_bits} bits)"
        for path, spec in specs.items()
        if spec.num_bits not in allowed and not is_wide.get(path, False)
    ]
    if other:
        raise ExportError(
            f"TFLite's integer kernels run 8 bits, or weights of 8 and symmetric activations of 16, and the model has "
            f'{", ".join(other)}. Train with scheme="int8" or "w8a16" to export it; with other bits, the model itself '
            "(a SavedModel too) is the simulation"
        )
    return (
        " and ".join(name for name, found in (("int8", False), ("int16", True)) if found in is_wide.values()) or "int8"
    )


def _require_ranges(model: keras.Model) -> None:
    missing = [path for path, quantizer in named_quantizers(model) if not np.isfinite(quantizer.range()[0]).all()]
    if missing:
        raise ValueError(
            f"no range recorded yet for {', '.join(missing)}: train the quantized model for at least one step "
            "(model.fit, or a call with training=True) before exporting it"
        )


def _require_batch_size(model: keras.Model, batch_size: int | None) -> None:
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, or None for any, got {batch_size}")
    recurrent = [layer.name for layer in model.layers if isinstance(layer, (QuantizedRNN, QuantizedBidirectional))]
    if batch_size != 1 and recurrent:
        raise ValueError(
            f"batch_size must be 1 for a model with recurrent layers ({', '.join(recurrent)}), got {batch_size}: "
            "their states in the file are those of one sequence"
        )


class _Inference(tf.Module):
    """A float model as one function, with nothing else for the converter to trace."""

    def __init__(self, graph: keras.Model) -> None:
        super().__init__()
        self._graph = lambda inputs: graph(inputs, training=False)
        self.serve = tf.function(lambda **inputs: self._outputs([inputs[name] for name in sorted(inputs)]))
        self.signature = {
            f"input_{index:03d}": tf.TensorSpec(tensor.shape, tensor.dtype, f"input_{index:03d}")
            for index, tensor in enumerate(graph.inputs)
        }

    def _outputs(self, inputs: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        outputs = tf.nest.flatten(self._graph(inputs if len(inputs) > 1 else inputs[0]))
        return {f"output_{index:03d}": tf.identity(output) for index, output in enumerate(outputs)}


class _FloatFile(NamedTuple):
    """What the converter made, and the marks that there were before it (see `dqat.export.points`)."""

    content: bytes
    marks: Marks


def _convert(graph: keras.Model) -> _FloatFile:
    module = _Inference(graph)
    function = module.serve.get_concrete_function(**module.signature)
    # A variable that nobody knows, such as one of a user's own cell, costs the file its signature.
    module.kept = function.graph.variables
    content = tf.lite.TFLiteConverter.from_concrete_functions([function], module).convert()
    return _FloatFile(content, marks_of(function.graph.get_operations()))


def _parameters(quantizer: Quantizer) -> dict[str, np.ndarray]:
    """Scale, zero point and nudged range of what the quantizer uses now."""
    low, high = (part.numpy() for part in quantizer.range())
    spec = quantizer.spec
    return integer.quantization_parameters(low, high, num_bits=spec.num_bits, narrow_range=spec.narrow_range)


def _nudged(quantizer: Quantizer) -> tuple[float, float]:
    found = _parameters(quantizer)
    return float(found["nudged_min"]), float(found["nudged_max"])


def _expected(quantizer: Quantizer) -> tuple[float, int]:
    found = _parameters(quantizer)
    return float(found["scale"]), int(found["zero_point"])


def _match_lstms(model: keras.Model, flatbuffer: Flatbuffer) -> list[tuple[QuantizedLSTM, object]]:
    """The layers and the file's LSTM operators, recognised by their recurrent weights: names get lost."""
    found = []
    for path, layer in fused_lstms(model).items():
        units = layer.layer.cell.units
        weights = gate_weights(layer)["recurrent_kernel"][:, :units].T
        for lstm in flatbuffer.lstms():
            stored = flatbuffer.constant(lstm.inputs[LstmTensors.RECURRENT_WEIGHTS[0]])
            if stored.shape == weights.shape and np.array_equal(stored, weights):
                found.append((layer, lstm))
                break
        else:
            raise ExportError(f"layer {path!r} did not become a UNIDIRECTIONAL_SEQUENCE_LSTM operator")
    return found


def _places(layer: QuantizedLSTM, lstm: object) -> dict[Quantizer, list[int]]:
    """Where an LSTM operator has the ranges of its states."""
    hidden = [
        lstm.outputs[0],
        lstm.inputs[LstmTensors.HIDDEN_STATE],
        lstm.intermediates[LstmTensors.EFFECTIVE_HIDDEN_SCALE],
    ]
    return {layer.hidden: hidden, layer.cell_state: [lstm.inputs[LstmTensors.CELL_STATE]]}


def _to_integers(model: keras.Model, floats: _FloatFile) -> bytes:
    """Quantizes the converter's float file with the trained ranges; uses no data.

    The states' ranges are written nudged, since the quantizer does not nudge: (-a, a) would get zero point -1
    where the simulation had 0. Hidden state, output and hidden scale must agree, or results are wrong without
    an error.
    """
    flatbuffer = Flatbuffer(calibrator.add_intermediate_tensors(floats.content))
    for layer, lstm in _match_lstms(model, flatbuffer):
        for quantizer, indices in _places(layer, lstm).items():
            for index in indices:
                flatbuffer.set_range(index, *_nudged(quantizer))
    flatbuffer.pass_ranges_on()
    is_long = any(is_unrolled(layer) for layer in model.layers)
    kept = float_operators(flatbuffer, model)
    points = list(points_of(flatbuffer, (path for path, _ in named_quantizers(model)), floats.marks))
    if _activation_type(model) == "int16":
        if kept:
            raise ExportError(
                f"layers that stay in float ({', '.join(model.float_layers)}) are exported amid int8 layers, not amid "
                "layers of 16 bits"
            )
        quantized = flatbuffer
        quantize_to_int16(quantized)
    else:
        mixed = MixedBits(flatbuffer, _marks_of_16_bits(model, flatbuffer))
        veil = Veil(flatbuffer, [*mixed.operators, *kept])
        quantized = Flatbuffer(quantize(flatbuffer.to_bytes(), in_child=is_long))
        quantized.close_islands(_KNOW_INT8)
        quantized.close_splits()
        operators = veil.lift(quantized)
        mixed.quantize(quantized, operators[: len(mixed.operators)])
        if model.float_layers:
            require_islands(quantized, operators[len(mixed.operators) :])
    carriers = {tensor.name.decode(): tensor for tensor in quantized.graph.tensors}
    if is_long:
        quantized.shorten_names()
    quantized.drop_float_intermediates()
    quantized.share_buffers()
    quantized.drop_unused_buffers()
    metadata.add_points(quantized, _located(model, quantized, points, carriers))
    content = quantized.to_bytes()
    if is_long:
        require_that_it_runs(content)
    return content


def _marks_of_16_bits(model: keras.Model, floats: Flatbuffer) -> list[object]:
    """The QUANTIZE operators that stand for quantizers of 16 bits."""
    paths = legal_paths(
        path
        for path, quantizer in named_quantizers(model)
        if quantizer.spec.num_bits == 16 and not quantizer.spec.power_of_two
    )
    return [one for one in floats.graph.operators if path_of(floats, one, paths) is not None]


def _located(
    model: keras.Model, quantized: Flatbuffer, points: list[Point], carriers: dict[str, object]
) -> Iterator[Point]:
    """The points with the indices of their tensors; those that the quantizer merged with others are left out."""
    places = {id(tensor): index for index, tensor in enumerate(quantized.graph.tensors)}
    quantizers = dict(named_quantizers(model))
    for point in points:
        index = places.get(id(carriers.get(point.tensor)))
        expected = _expected(quantizers[point.path])
        if index is not None and _is_near(quantized.parameters(index), *expected):
            yield dataclasses.replace(point, tensor=index)


def _settle(model: keras.Model, flatbuffer: Flatbuffer) -> dict[str, tuple[float, int]]:
    """Holds the integer file against the trained model and removes the last bits of difference.

    Returns:
        (scale, zero point) by quantizer.

    Raises:
        ExportError: for a float tensor, a range or a weight that is not in the file.
    """
    floats = flatbuffer.float_tensors()
    if floats and not model.float_layers:  # else `require_islands` has looked at them
        raise ExportError(f"float tensors are left in the file: {', '.join(floats)}")
    computed = [index for index in range(len(flatbuffer.graph.tensors)) if flatbuffer.constant(index) is None]
    # Inside an LSTM it is known which tensor is whose. Elsewhere operators were fused and names merged, so the
    # range must stand at some computed tensor.
    places: dict[int, list[int]] = {}
    for layer, lstm in _match_integer_lstms(model, flatbuffer):
        for quantizer, indices in _places(layer, lstm).items():
            places[id(quantizer)] = [*places.get(id(quantizer), []), *indices]
    parameters = {}
    for path, quantizer in named_quantizers(model):
        scale, zero_point = parameters[path] = _expected(quantizer)
        known = places.get(id(quantizer))
        near = [index for index in known or computed if _is_near(flatbuffer.parameters(index), scale, zero_point)]
        if len(near) < len(known or [None]):
            raise ExportError(f"the file lacks the trained scale {scale} and zero point {zero_point} of {path}")
        # What only moves the values behind an LSTM has its scale too.
        for index in (
            near if known is None else (i for i in computed if _is_near(flatbuffer.parameters(i), scale, zero_point))
        ):
            flatbuffer.set_scale(index, scale)
    settle_products(model, flatbuffer, lambda layer, role: _stored(layer, role, _codes(layer)[role]))
    return parameters


def _is_near(found: tuple[float, int] | None, scale: float, zero_point: int) -> bool:
    return found is not None and found[1] == zero_point and abs(found[0] / scale - 1.0) <= _SCALE_TOLERANCE


def _codes(layer: QuantizedLayer) -> dict[str, np.ndarray]:
    """The integers of each quantized weight, in the shape that its spec speaks of."""
    codes = {}
    values, ranges = layer.quantized_weights(), layer.weight_ranges()
    for role, spec in layer.weight_specs().items():
        low, high = ranges[role]
        found = integer.quantization_parameters(
            low.numpy(), high.numpy(), num_bits=spec.num_bits, narrow_range=spec.narrow_range
        )
        scale, zero_point = found["scale"], found["zero_point"]
        if spec.axis is not None:
            shape = np.ones(values[role].shape.rank, int)
            shape[spec.axis] = -1
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        safe = np.where(scale == 0, 1, scale)
        codes[role] = (np.rint(_on_grid(layer, role, values[role].numpy()) / safe) + zero_point).astype(
            np.int16 if spec.num_bits > 8 else np.int8
        )
    return codes


def _on_grid(layer: QuantizedLayer, role: str, values: np.ndarray) -> np.ndarray:
    """The values that the weight's range speaks of: the folded ones, where weights are folded per tensor."""
    if layer.norm is None or layer.weight_specs()[role].axis is not None:
        return values
    return values * layer.fold_factor().numpy()


def _stored(layer: QuantizeWrapper, role: str, codes: np.ndarray) -> np.ndarray:
    """The integers as TFLite stores them: output channels first, and signs turned by what is folded in."""
    if layer.norm is not None and role == list(layer.weight_specs())[-1]:
        sign = np.sign(layer.fold_factor().numpy()).astype(np.int8)
        transposed = isinstance(layer.layer, (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose))
        spec = layer.weight_specs()[role]
        # Per tensor the integers are those of the folded weights already.
        codes = codes * (sign != 0 if spec.axis is None else sign[:, None] if transposed else sign)
    if role in ("depthwise_kernel", "alpha"):
        return codes
    if isinstance(layer.layer, keras.layers.Conv3D):  # its depth lies in the channels
        return np.transpose(codes, (4, 1, 2, 0, 3))
    return np.moveaxis(codes, layer.weight_specs()[role].axis or -1, 0)


def _match_integer_lstms(model: keras.Model, flatbuffer: Flatbuffer) -> list[tuple[QuantizedLSTM, object]]:
    """The layers and the integer file's LSTM operators; all weights of the model must be the trained ones."""
    found = []
    for path, layer in fused_lstms(model).items():
        codes = _codes(layer)
        trained = [codes[role][:, gate].T for role in ("kernel", "recurrent_kernel") for gate in range(4)]
        for lstm in flatbuffer.lstms():
            stored = [
                flatbuffer.constant(lstm.inputs[place])
                for place in (*LstmTensors.INPUT_WEIGHTS, *LstmTensors.RECURRENT_WEIGHTS)
            ]
            if all(np.array_equal(a, b) for a, b in zip(stored, trained, strict=True)):
                _set_peepholes(layer, codes, flatbuffer, lstm)
                found.append((layer, lstm))
                break
        else:
            raise ExportError(f"the file has no LSTM with the trained weights of {path!r}")
    fused = [f"{path}/" for path in fused_lstms(model)]
    constants: dict[int, list[np.ndarray]] = {}
    for constant in flatbuffer.constants():
        constants.setdefault(constant.size, []).append(constant.reshape(-1))
    for layer in model.layers:
        if not isinstance(layer, QuantizedLayer) or any(path.startswith(f"{layer.name}/") for path in fused):
            continue
        for role, code in _codes(layer).items():
            value = layer.weight_values()[role].numpy()
            if value.ndim == 1 and np.unique(value).tolist() in ([0.0], [1.0]):
                continue  # the converter leaves out what adds zeros or multiplies with ones
            stored = _stored(layer, role, code).reshape(-1)
            if not any(np.array_equal(constant, stored) for constant in constants.get(stored.size, [])):
                raise ExportError(f"the file has no tensor with the trained weights {layer.name}/{role}")
    return found


def _set_peepholes(layer: QuantizedLSTM, codes: dict[str, np.ndarray], flatbuffer: Flatbuffer, lstm: object) -> None:
    """The converter makes its LSTM of a Keras layer, which has none."""
    ranges, specs = layer.weight_ranges(), layer.weight_specs()
    for place, role in zip(LstmTensors.PEEPHOLES, PEEPHOLES, strict=True):
        if role in codes:
            scale = range_scale(ranges[role], specs[role]).numpy()
            flatbuffer.set_peephole(lstm, place, codes[role], scale if scale > 0 else 1.0)


def _write_atomically(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # as any new file of the user's
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
