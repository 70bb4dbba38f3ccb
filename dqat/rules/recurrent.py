"""Recurrent layers."""

import warnings
from typing import Any

import tensorflow as tf

from dqat.graph import Call, Tensor
from dqat.keras_api import keras
from dqat.layers import QuantizedBidirectional, QuantizedLSTM, QuantizedRNN
from dqat.layers.cells import form_of, is_peephole_cell
from dqat.rules.context import Context, refuse

layers = keras.layers


def _require_form(layer: layers.Layer, recurrent: layers.RNN, context: Context) -> None:
    """Raises UnsupportedLayerError for what neither trains nor is exported as Keras computes it."""
    try:
        form_of(recurrent.cell)
    except ValueError as error:
        raise refuse(layer, str(error), "Change the layer or train it in float") from error
    # Bidirectional sets it by itself, masks or not.
    if layer is recurrent and getattr(recurrent, "zero_output_for_mask", False):
        raise refuse(layer, "zero_output_for_mask=True is not simulated", "Masked steps repeat the last output: use it")
    # A copy of a layer forgets this option.
    if any(getattr(getattr(call.layer, "cell", None), "reverse_state_order", False) for call in context.calls):
        raise refuse(layer, "reverse_state_order of StackedRNNCells must be False", "Reverse the states yourself")
    cells = getattr(recurrent.cell, "cells", ())
    if any(getattr(cell, name, 0.0) for cell in cells for name in ("dropout", "recurrent_dropout")):
        raise refuse(
            layer,
            "dropout inside stacked cells is not simulated",
            "Put the cells into layers of their own, one behind the other, or set it to 0",
        )


def tell_what_has_no_file(model: keras.Model) -> None:
    """Warns of recurrent layers that train, but for which `export_tflite` writes no file, or only a streaming one.

    Args:
        model: just quantized.
    """
    for layer in model.layers:
        if isinstance(layer, QuantizedBidirectional):
            directions = list(layer.directions().values())
        elif isinstance(layer, QuantizedRNN):
            directions = [layer]
        else:
            continue
        reasons = _reasons(layer, directions[0])
        if reasons:
            warnings.warn(f"layer {layer.name!r} trains, but {'; '.join(reasons)}", stacklevel=4)


def _reasons(layer: QuantizedRNN | QuantizedBidirectional, direction: QuantizedRNN) -> list[str]:
    if getattr(direction.layer, "time_major", False):
        return ["files have the batch on the first axis: train with time_major=False, the weights are the same"]
    way_out = "export with streaming=True"
    if isinstance(layer, QuantizedBidirectional) or direction.layer.go_backwards:
        way_out = "a layer that runs backwards has no streaming file either"
    found = []
    if direction.is_masked:
        found.append(
            "its mask has no place in a file for whole sequences, where every frame counts: "
            + way_out.replace("True", "True and feed the frames that are no padding")
        )
    if direction.layer.stateful:
        found.append(f"a file for whole sequences begins each with states of zero: {way_out}, which keeps them")
    length = tf.nest.flatten(layer.get_input_at(0))[0].shape[1]
    is_fused = layer.is_fused if isinstance(layer, QuantizedBidirectional) else isinstance(layer, QuantizedLSTM)
    if length is None and not is_fused:
        found.append(
            f"a file for whole sequences has so many copies of its cell as there are timesteps: "
            f"give keras.Input a number of timesteps, or {way_out}"
        )
    return found


def states_in_output_range(call: Call) -> list[Tensor]:
    """What a recurrent layer's call returns beside its output with that one's quantizer, such as hidden states."""
    layer, others = call.layer, list(call.results[1:])
    if isinstance(layer, layers.Bidirectional):
        if layer.merge_mode not in ("concat", None):
            return []
        outputs = others[: 1 if layer.merge_mode is None else 0]
        states = others[len(outputs) :]
        return outputs + states[:: max(1, len(states) // 2)]
    is_known = type(layer) in (layers.LSTM, layers.GRU, layers.SimpleRNN)
    return others[:1] if is_known and layer.return_state else []


def _require_free_states(layer: layers.Layer, context: Context) -> None:
    """Raises UnsupportedLayerError for a state that must have the scale of something else, and has its own."""
    call = context.calls[0]
    hidden = states_in_output_range(call)
    for tensor, shared in zip(call.results[1:], context.shared_states, strict=True):
        if shared is not None and not any(tensor is one for one in hidden):
            raise refuse(
                layer,
                f"one of the states that it returns has a range of its own, but {', '.join(shared.members)} need one "
                "scale",
                "Put a dqat.layers.QuantizePoint behind the state, which requantizes",
            )


def _is_fused(layer: layers.RNN, context: Context) -> bool:
    """Whether the layer is TFLite's LSTM operator, which keeps its states to itself and has no 16x8 kernel."""
    cell = layer.cell
    return (
        (type(layer) is layers.LSTM or is_peephole_cell(cell))
        and not context.scheme.is_16x8
        and cell.activation is keras.activations.tanh
        and cell.recurrent_activation is keras.activations.sigmoid
        and not layer.return_state
        and not context.has_initial_state
    )


def _specs(context: Context, is_fused: bool) -> tuple[Any, ...]:
    scheme = context.scheme
    if is_fused:
        return scheme.gate_kernel, scheme.activation, scheme.observer, scheme.cell_state
    return scheme.kernel, scheme.activation, scheme.observer, None


def _rnn(layer: layers.RNN, context: Context) -> list[layers.Layer]:
    is_fused = _is_fused(layer, context)
    _require_form(layer, layer, context)
    _require_free_states(layer, context)
    output = context.output(layer, "hidden", fixed=form_of(layer.cell).output_range())
    return [(QuantizedLSTM if is_fused else QuantizedRNN)(layer, *_specs(context, is_fused), output)]


def _bidirectional(layer: layers.Bidirectional, context: Context) -> list[layers.Layer]:
    for direction in (layer.forward_layer, layer.backward_layer):
        if type(direction) not in (layers.LSTM, layers.GRU, layers.SimpleRNN, layers.RNN):
            raise refuse(layer, f"{type(direction).__name__} inside is not supported", "Use LSTM, GRU, SimpleRNN, RNN")
        _require_form(layer, direction, context)
    _require_free_states(layer, context)
    is_fused = _is_fused(layer.forward_layer, context) and _is_fused(layer.backward_layer, context)
    moved = layer.merge_mode in ("concat", None)  # a sum has a range of its own
    output = context.output(layer, fixed=form_of(layer.forward_layer.cell).output_range() if moved else None)
    return [QuantizedBidirectional(layer, is_fused, *_specs(context, is_fused), output)]


RULES = {
    layers.LSTM: _rnn,
    layers.GRU: _rnn,
    layers.SimpleRNN: _rnn,
    layers.RNN: _rnn,
    layers.Bidirectional: _bidirectional,
}
