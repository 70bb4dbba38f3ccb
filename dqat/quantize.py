"""From a float Keras model to one that trains quantization-aware."""

from collections.abc import Container, Sequence
from dataclasses import replace

import tensorflow as tf

from dqat import graph, tracing
from dqat.annotate import QuantizeAnnotate
from dqat.configured_layer import ConfiguredLayer, QuantizeConfig
from dqat.keras_api import dtype_policy, in_float32, keras, layer_config, require_keras_2
from dqat.layers import QuantizedLayer, QuantizeWrapper
from dqat.model import QuantizedModel
from dqat.rules import (
    Relations,
    apply_rule,
    as_layer,
    moves_only,
    tell_what_has_no_file,
    with_borders,
    with_one_operator,
)
from dqat.rules.activations import FIXED_OUTPUTS, activation_function
from dqat.specs import Scheme

#: Layers that read indices, which stay as they are.
_LOOK_UP = keras.layers.Embedding
#: Layers whose activation is not the last thing that they do.
_INSIDE = (keras.layers.RNN, keras.layers.Bidirectional)
#: Layers that compute in float32 whatever their policy: loops that are one operation, and sums of squares or
#: exponentials between quantization points.
_FLOAT32_ONLY = (
    keras.layers.RNN,
    keras.layers.Bidirectional,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.Attention,
    keras.layers.AdditiveAttention,
    keras.layers.MultiHeadAttention,
)


def quantize_model(
    model: keras.Model,
    *,
    scheme: str | Scheme = "int8",
    range_sync: str = "delayed",
    on_nonfinite: str = "raise",
    quantized_layer_name_prefix: str = "",
    float_layers: Sequence[str] = (),
    int16_layers: Sequence[str] = (),
) -> keras.Model:
    """Makes a quantization-aware copy of a float model, weights included.

    The copy simulates the integer TFLite model that `export_tflite` writes. Compile and train it like any
    other; a few epochs at a low learning rate, from trained float weights, are the usual course. Its ranges
    start with the first training step, which therefore runs unquantized in delayed mode.

    Args:
        model: a functional, Sequential or subclassed `keras.Model`, of any number of inputs and outputs; models and
            layers inside it may be nested and called several times. It stays as it is. A subclassed model must have
            been called once, or built; the copy is a functional model, with the model's layers but none of its
            methods, and takes the tensors of `call`, in order.
        scheme: "int8"; "w8a16", int8 weights and int16 activations, which TFLite runs too (16x8); other bits as in
            `Scheme.named`, such as "w4a8", which train but aren't exported; or a `Scheme` of your own.
        range_sync: when the replicas' ranges are made the same: "delayed" (one collective a step, for the next
            step's ranges), "exact" (before use, one collective a quantizer), "off" (debugging).
        on_nonfinite: at a NaN or an Inf, "raise" an error that names the layer, or "skip" the record.
        quantized_layer_name_prefix: stands before the names of the layers that are quantized.
        float_layers: names of layers that stay in float, in training and in the file, where their operators stand
            between DEQUANTIZE and QUANTIZE; such as those that `dqat.algorithms.sensitivity` names. Name a layer
            together with a BatchNormalization or an activation that is to be one operator with it.
        int16_layers: names of layers whose activations have 16 bits, in training and in the file (TFLite's 16x8
            kernels); weights keep 8. Named as `float_layers` are. What they give to one another, and to the model's
            end, has 16 bits, and an input of the model that they alone read; what they read from other layers, or give
            to them, has 8. For the scheme "int8" or another of 8 bits.

    Returns:
        The quantization-aware model, not compiled.

    Raises:
        TypeError: where `model` is no Keras 2 model.
        UnsupportedLayerError: for a layer that can't be quantized; names it, and TFLite's operator where that runs in
            int8 but not in 16x8.
        ValueError: for another wrong argument, or a subclassed model whose `call` can't be traced.
        RuntimeError: for several Horovod processes outside a `dqat.distribute.Strategy` scope.
    """
    scheme = _checked(model, scheme)
    source = with_one_operator(tracing.read(model).rewritten(as_layer))
    floats = _named(source, "float_layers", float_layers, quantized_layer_name_prefix)
    wide = _named(source, "int16_layers", int16_layers, quantized_layer_name_prefix)
    if wide and not scheme.is_8x8:
        raise ValueError("int16_layers stand amid layers of 8 bits, and the scheme has other bits")
    if floats & wide:
        both = [layer.name for layer in source.layers() if id(layer) in floats & wide]
        raise ValueError(f"layers are named in float_layers and in int16_layers: {', '.join(both)}")
    if wide:
        source, wide = with_borders(source, wide, lambda layer: id(layer) not in floats)
    chosen = {id(layer): None for layer in source.layers() if id(layer) not in floats} if floats else None
    options = {"prefix": quantized_layer_name_prefix, "ends_are_quantized": True, "wide": wide}
    return _quantized(model.name, source, chosen, scheme, range_sync, on_nonfinite, **options)


def quantize_apply(
    model: keras.Model,
    scheme: str | Scheme = "int8",
    quantized_layer_name_prefix: str = "",
    *,
    range_sync: str = "delayed",
    on_nonfinite: str = "raise",
) -> keras.Model:
    """Like `quantize_model`, for those layers alone that `quantize_annotate_layer` has marked; others stay float.

    The output of a layer that stays float is quantized where a marked layer reads it.

    Args:
        model: a functional, Sequential or subclassed model with marked layers; stays as it is.
        scheme: see `quantize_model`; for layers that were marked without a `QuantizeConfig`.
        quantized_layer_name_prefix: see `quantize_model`.
        range_sync: see `quantize_model`.
        on_nonfinite: see `quantize_model`.

    Returns:
        The quantization-aware model, not compiled.

    Raises:
        ValueError: where no layer is marked; else as `quantize_model`.
    """
    scheme = _checked(model, scheme)
    annotated = tracing.read(model)
    chosen: dict[int, QuantizeConfig | None] = {}

    def bare(call):
        if not isinstance(call.layer, QuantizeAnnotate):
            return call
        chosen[id(call.layer.layer)] = call.layer.quantize_config
        return replace(call, layer=call.layer.layer)

    source = annotated.rewritten(bare)
    if not chosen:
        raise ValueError(
            f"model {model.name!r} has no layer that quantize_annotate_layer or quantize_annotate_model has marked"
        )
    return _quantized(model.name, source, chosen, scheme, range_sync, on_nonfinite, quantized_layer_name_prefix)


def _named(source: graph.Graph, argument: str, names: Sequence[str], prefix: str) -> set[int]:
    """The ids of the layers that are named.

    A layer is also known by its quantized name, and by that of the activation that its rule makes a layer of.
    """
    if isinstance(names, str):
        raise ValueError(f"{argument} must be a sequence of names, got the string {names!r}")
    own, known = graph.unique_names(source), {}
    for layer in source.layers():
        name = own[id(layer)]
        activation = getattr(getattr(layer, "activation", None), "__name__", None)
        known |= {alias: id(layer) for alias in (f"{name}_{activation}", f"{prefix}{name}_{activation}", prefix + name)}
    known |= {own[id(layer)]: id(layer) for layer in source.layers()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{argument}: the model has no layer {', '.join(unknown)}; it has {', '.join(own.values())}")
    return {known[name] for name in names}


def _checked(model: keras.Model, scheme: str | Scheme) -> Scheme:
    require_keras_2(model)
    if isinstance(model, QuantizedModel):
        raise ValueError(f"model {model.name!r} is quantized already")
    return scheme if isinstance(scheme, Scheme) else Scheme.named(scheme)


def _quantized(
    name: str,
    source: graph.Graph,
    chosen: dict[int, QuantizeConfig | None] | None,
    scheme: Scheme,
    range_sync: str,
    on_nonfinite: str,
    prefix: str,
    ends_are_quantized: bool = False,
    wide: Container[int] = (),
) -> QuantizedModel:
    """Quantizes the layers of a graph whose ids are in `chosen`, as it says there; all of them, where it is None.

    With `ends_are_quantized` the model's inputs and outputs are, even if float layers read or make them. Layers whose
    ids are in `wide` have activations of 16 bits.
    """

    def is_chosen(layer: keras.layers.Layer) -> bool:
        return chosen is None or id(layer) in chosen

    names = graph.unique_names(source)
    for call in source.calls:
        if not call.is_input and is_chosen(call.layer) and not names[id(call.layer)].startswith(prefix):
            names[id(call.layer)] = prefix + names[id(call.layer)]
    wide_scheme = scheme.with_wide_activations()
    scheme_of = {id(layer): wide_scheme if id(layer) in wide else scheme for layer in source.layers()}
    relations = Relations(source, lambda layer: scheme_of[id(layer)], names, is_chosen)
    consumers = source.consumers()
    made: dict[int, list[keras.layers.Layer]] = {}
    copies: dict[int, keras.layers.Layer] = {}

    def entry_quantizer(layer):
        # TFLite's kernels prescribe some ranges, in float layers too.
        has_activation = isinstance(layer, keras.layers.Softmax) or callable(getattr(layer, "activation", None))
        is_last = has_activation and not isinstance(layer, _INSIDE)
        fixed = FIXED_OUTPUTS.get(activation_function(layer)) if is_last else None
        return relations.context(layer).output(layer, f"{names[id(layer)]}_quantizer", fixed)

    def is_read_by_chosen(call):
        read = isinstance(call.outputs, graph.Tensor) and any(
            ends_are_quantized if one is None else is_chosen(one.layer) for one in consumers[call.outputs]
        )
        return read and tf.as_dtype(call.layer.compute_dtype).is_floating

    def standing_for(call, copy):
        layer = call.layer
        quantize_config = (chosen or {}).get(id(layer))
        if not is_chosen(layer):
            return [copy, *([entry_quantizer(layer)] if is_read_by_chosen(call) else [])]
        if quantize_config is not None:
            return [ConfiguredLayer(copy, quantize_config, name_prefix="")]
        return apply_rule(copy, relations.context(layer))

    def convert(call, args, kwargs):
        layer, key = call.layer, id(call.layer)
        if call.is_input:
            looked_up = all(one is not None and isinstance(one.layer, _LOOK_UP) for one in consumers[call.outputs])
            dtype = "int32" if looked_up else layer.dtype
            entry = keras.Input(batch_input_shape=layer.input_shape[0], dtype=dtype, name=names[key])
            is_read = ends_are_quantized or any(one is None or is_chosen(one.layer) for one in consumers[call.outputs])
            if not is_read or not tf.as_dtype(dtype).is_floating:
                return entry, entry  # integers, or nobody who wants some
            return entry, entry_quantizer(layer)(entry)
        if key not in made:
            # What stands for a layer computes in the layer's own dtype.
            is_exact = isinstance(layer, _FLOAT32_ONLY) or type(layer).__module__.startswith("tensorflow_addons.")
            config = layer_config(layer, layer.get_config())
            config = in_float32(config) if is_exact and is_chosen(layer) else config
            with dtype_policy("float32" if is_exact else layer.dtype_policy.name):
                copies[key] = copy = type(layer).from_config({**config, "name": names[key]})
                made[key] = standing_for(call, copy)
        first, *others = made[key]
        if isinstance(first, QuantizedLayer):
            kwargs.pop("training", None)  # its quantizers follow the model's
        outputs = first(*args, **kwargs)
        for other in others:
            outputs = other(outputs)
        return outputs

    inputs, outputs = graph.rebuild(source, convert)
    floats = [layer for layer in source.layers() if not is_chosen(layer) and not moves_only(layer)]
    quantized = QuantizedModel(
        inputs,
        outputs,
        name=name,
        range_sync=range_sync,
        on_nonfinite=on_nonfinite,
        float_layers=[names[id(layer)] for layer in floats if not isinstance(layer, keras.layers.InputLayer)],
    )
    for layer in source.layers():
        if id(layer) in copies and layer.weights:
            copies[id(layer)].set_weights(layer.get_weights())
            if isinstance(layer, keras.layers.Normalization):
                copies[id(layer)].finalize_state()
    for layer in quantized.layers:
        if isinstance(layer, QuantizeWrapper):
            layer.find_kept()
    tell_what_has_no_file(quantized)
    return quantized
