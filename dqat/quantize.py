"""From a float Keras model to one that trains quantization-aware."""

from dqat import graph
from dqat.keras_api import keras, require_keras_2
from dqat.model import QuantizedModel
from dqat.quantizers import Quantizer
from dqat.rules import Context, apply_rule, is_fused_activation
from dqat.specs import SCHEMES, Scheme


def quantize_model(
    model: keras.Model,
    *,
    scheme: str | Scheme = "int8",
    range_sync: str = "delayed",
    on_nonfinite: str = "raise",
) -> keras.Model:
    """Makes a quantization-aware copy of a float model, weights included.

    The copy simulates the integer TFLite model that `export_tflite` writes. Compile and train it like any
    other; a few epochs at a low learning rate, from trained float weights, are the usual course. Its ranges
    start with the first training step, which therefore runs unquantized in delayed mode.

    Args:
        model: a functional or Sequential `keras.Model` with one input and one output; stays as it is.
        scheme: "int8", or a `Scheme` of your own.
        range_sync: when the replicas' ranges are made the same: "delayed" (one collective a step, for the next
            step's ranges), "exact" (before use, one collective a quantizer), "off" (debugging).
        on_nonfinite: at a NaN or an Inf, "raise" an error that names the layer, or "skip" the record.

    Returns:
        The quantization-aware model, not compiled.

    Raises:
        TypeError: where `model` is no Keras 2 model.
        UnsupportedLayerError: for a layer that can't be quantized; names it.
        ValueError: for another wrong argument, a subclassed model, or several inputs or outputs.
        RuntimeError: for several Horovod processes outside a `dqat.distribute.Strategy` scope.
    """
    require_keras_2(model)
    if isinstance(model, QuantizedModel):
        raise ValueError(f"model {model.name!r} is quantized already")
    if isinstance(scheme, str):
        if scheme not in SCHEMES:
            raise ValueError(f"scheme must be a Scheme or one of {', '.join(SCHEMES)}, got {scheme!r}")
        scheme = SCHEMES[scheme]
    source = graph.as_functional(model)
    if len(source.inputs) != 1 or len(source.outputs) != 1:
        raise ValueError(
            f"model {model.name!r} has {len(source.inputs)} inputs and {len(source.outputs)} outputs; "
            "one of each is supported so far"
        )
    shared = graph.layers_called_twice(source)
    if shared:
        raise ValueError(f"layers called several times are not supported yet: {', '.join(shared)}")
    consumers = graph.consumers(source)
    copies: dict[str, keras.layers.Layer] = {}

    def convert(layer, tensors):
        if isinstance(layer, keras.layers.InputLayer):
            entry = keras.Input(batch_input_shape=layer.input_shape[0], dtype=layer.dtype, name=layer.name)
            return entry, Quantizer(scheme.activation, scheme.observer, name=f"{layer.name}_quantizer")(entry)
        copies[layer.name] = copy = type(layer).from_config(layer.get_config())
        after = consumers[layer.name]
        context = Context(scheme, output_is_fused=len(after) == 1 and is_fused_activation(after[0]))
        for replacement in apply_rule(copy, context):
            tensors = replacement(tensors)
        return tensors

    inputs, outputs = graph.rebuild(source, convert)
    quantized = QuantizedModel(inputs, outputs, name=model.name, range_sync=range_sync, on_nonfinite=on_nonfinite)
    for layer in source.layers:
        if layer.name in copies:
            copies[layer.name].set_weights(layer.get_weights())
    return quantized
