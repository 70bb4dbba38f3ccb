"""From a float Keras model to one that trains quantization-aware."""

import tensorflow as tf

from dqat import graph
from dqat.keras_api import keras, layer_config, require_keras_2
from dqat.layers import QuantizedLayer
from dqat.model import QuantizedModel
from dqat.rules import Relations, apply_rule, as_layer
from dqat.specs import SCHEMES, Scheme

#: Layers that read indices, which stay as they are.
_LOOK_UP = keras.layers.Embedding


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
        model: a functional or Sequential `keras.Model`, of any number of inputs and outputs; models and layers
            inside it may be nested and called several times. It stays as it is.
        scheme: "int8", or a `Scheme` of your own.
        range_sync: when the replicas' ranges are made the same: "delayed" (one collective a step, for the next
            step's ranges), "exact" (before use, one collective a quantizer), "off" (debugging).
        on_nonfinite: at a NaN or an Inf, "raise" an error that names the layer, or "skip" the record.

    Returns:
        The quantization-aware model, not compiled.

    Raises:
        TypeError: where `model` is no Keras 2 model.
        UnsupportedLayerError: for a layer that can't be quantized; names it.
        ValueError: for another wrong argument, or a subclassed model.
        RuntimeError: for several Horovod processes outside a `dqat.distribute.Strategy` scope.
    """
    require_keras_2(model)
    if isinstance(model, QuantizedModel):
        raise ValueError(f"model {model.name!r} is quantized already")
    if isinstance(scheme, str):
        if scheme not in SCHEMES:
            raise ValueError(f"scheme must be a Scheme or one of {', '.join(SCHEMES)}, got {scheme!r}")
        scheme = SCHEMES[scheme]
    source = graph.read(graph.as_functional(model)).rewritten(as_layer)
    names = graph.unique_names(source)
    relations = Relations(source, scheme, names)
    consumers = source.consumers()
    made: dict[int, list[keras.layers.Layer]] = {}
    copies: dict[int, keras.layers.Layer] = {}

    def convert(call, args, kwargs):
        layer, key = call.layer, id(call.layer)
        if call.is_input:
            looked_up = all(one is not None and isinstance(one.layer, _LOOK_UP) for one in consumers[call.outputs])
            dtype = "int32" if looked_up else layer.dtype
            entry = keras.Input(batch_input_shape=layer.input_shape[0], dtype=dtype, name=names[key])
            if not tf.as_dtype(dtype).is_floating:
                return entry, entry  # integers already
            quantizer = relations.context(layer).output(layer, f"{names[key]}_quantizer")
            return entry, quantizer(entry)
        if key not in made:
            config = layer_config(layer, layer.get_config())
            copies[key] = copy = type(layer).from_config({**config, "name": names[key]})
            made[key] = apply_rule(copy, relations.context(layer))
        first, *others = made[key]
        if isinstance(first, QuantizedLayer):
            kwargs.pop("training", None)  # its quantizers follow the model's
        outputs = first(*args, **kwargs)
        for other in others:
            outputs = other(outputs)
        return outputs

    inputs, outputs = graph.rebuild(source, convert)
    quantized = QuantizedModel(inputs, outputs, name=model.name, range_sync=range_sync, on_nonfinite=on_nonfinite)
    for layer in source.layers():
        if id(layer) in copies and layer.weights:
            copies[id(layer)].set_weights(layer.get_weights())
            if isinstance(layer, keras.layers.Normalization):
                copies[id(layer)].finalize_state()
    return quantized
