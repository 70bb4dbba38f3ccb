"""Prescribing, or taking away, the ranges at the ends of a quantized model."""

from dqat import graph
from dqat.keras_api import keras
from dqat.layers import QuantizedLayer
from dqat.model import QuantizedModel, require_quantized
from dqat.observers import Fixed
from dqat.quantizers import Quantizer, SharedQuantizer
from dqat.specs import QuantizerSpec


def fix_input_output_range(
    model: keras.Model,
    num_bits: int = 8,
    input_min: float = 0.0,
    input_max: float = 1.0,
    output_min: float = 0.0,
    output_max: float = 1.0,
    narrow_range: bool = False,
) -> keras.Model:
    """A copy of a quantized model whose inputs and outputs have ranges that no training changes.

    Args:
        model: what `quantize_model` or `quantize_apply` returned; stays as it is.
        num_bits: 2 to 16.
        input_min: at most 0; of every quantized input.
        input_max: at least 0.
        output_min: at most 0; of every quantized output.
        output_max: at least 0.
        narrow_range: uses one level less, at the negative end.

    Returns:
        The copy, with all weights and the other ranges; not compiled.

    Raises:
        TypeError: where `model` is not quantized.
        ValueError: where an input or output shares its range with other tensors, which it would change too.
    """
    copy = _copied(model)
    source = graph.read(copy)
    entries = [call.layer for call in source.calls if _is_entry(call, source)]
    ends = [_giver(tensor, source) for tensor in graph.tensors_in(source.outputs)]
    spec = QuantizerSpec(num_bits=num_bits, narrow_range=narrow_range)
    for layers, low, high in ((entries, input_min, input_max), (ends, output_min, output_max)):
        for layer in layers:
            for quantizer in _output_quantizers(layer):
                if quantizer.is_shared or isinstance(quantizer, SharedQuantizer):
                    raise ValueError(
                        f"{quantizer.path} shares its range with other tensors, since their operation needs one "
                        "scale: put a dqat.layers.QuantizePoint between, and prescribe that one's range"
                    )
                quantizer.prescribe(spec, Fixed(low, high))
    return copy


def remove_input_range(model: keras.Model) -> keras.Model:
    """A copy of a quantized model that takes its inputs as they are, for a part whose inputs are quantized before it.

    Args:
        model: what `quantize_model` or `quantize_apply` returned; stays as it is.

    Returns:
        The copy, with all weights and the other ranges; not compiled.

    Raises:
        TypeError: where `model` is not quantized.
    """
    source = graph.read(_copied(model))

    def convert(call, args, kwargs):
        if call.is_input:
            entry = keras.Input(
                batch_input_shape=call.layer.input_shape[0], dtype=call.layer.dtype, name=call.layer.name
            )
            return entry, entry
        return args[0] if _is_entry(call, source) else call.layer(*args, **kwargs)

    inputs, outputs = graph.rebuild(source, convert)
    sync = model.range_sync
    options = {"range_sync": sync.mode, "on_nonfinite": sync.on_nonfinite, "float_layers": model.float_layers}
    return QuantizedModel(inputs, outputs, name=model.name, **options)


def _copied(model: keras.Model) -> QuantizedModel:
    require_quantized(model)
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy


def _is_entry(call: graph.Call, source: graph.Graph) -> bool:
    """Whether the call quantizes an input of the model."""
    inputs = [one for one in source.calls if one.is_input]
    return isinstance(call.layer, Quantizer) and any(call.inputs[0] is one.outputs for one in inputs)


def _giver(tensor: graph.Tensor, source: graph.Graph) -> keras.layers.Layer:
    """The layer whose quantizer the tensor went through last: others, such as Flatten, move its values."""
    call = next(one for one in source.calls if tensor in one.results)
    if len(call.inputs) == 1 and not _output_quantizers(call.layer):
        return _giver(call.inputs[0], source)
    return call.layer


def _output_quantizers(layer: keras.layers.Layer) -> list[Quantizer]:
    if isinstance(layer, Quantizer):
        return [layer]
    found = layer.quantizers() if isinstance(layer, QuantizedLayer) else {}
    return [quantizer for role, quantizer in found.items() if role.split("_")[0] in ("output", "activation", "hidden")]
