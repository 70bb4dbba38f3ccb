"""Recurrent layers."""

import warnings
from typing import Any

from dqat.keras_api import keras
from dqat.layers import QuantizedBidirectional, QuantizedLSTM, QuantizedRNN
from dqat.layers.cells import form_of
from dqat.rules.context import Context, refuse

layers = keras.layers


def _require_form(layer: layers.Layer, recurrent: layers.RNN) -> None:
    try:
        form = form_of(recurrent.cell)
    except ValueError as error:
        raise refuse(layer, str(error), "Change the layer or train it in float") from error
    if form.caveat:
        warnings.warn(
            f"layer {layer.name!r} ({type(recurrent.cell).__name__}) trains, but the exported file will not behave "
            f"as in training: {form.caveat}. Check it with dqat.verify",
            stacklevel=2,
        )


def _is_fused(layer: layers.RNN, context: Context) -> bool:
    """Whether the layer is TFLite's LSTM operator, which keeps its states to itself."""
    return (
        type(layer) is layers.LSTM
        and layer.activation is keras.activations.tanh
        and layer.recurrent_activation is keras.activations.sigmoid
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
    _require_form(layer, layer)
    output = context.output(layer, "hidden", fixed=form_of(layer.cell).output_range())
    return [(QuantizedLSTM if is_fused else QuantizedRNN)(layer, *_specs(context, is_fused), output)]


def _bidirectional(layer: layers.Bidirectional, context: Context) -> list[layers.Layer]:
    for direction in (layer.forward_layer, layer.backward_layer):
        if type(direction) not in (layers.LSTM, layers.GRU, layers.SimpleRNN, layers.RNN):
            raise refuse(layer, f"{type(direction).__name__} inside is not supported", "Use LSTM, GRU, SimpleRNN, RNN")
        _require_form(layer, direction)
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
