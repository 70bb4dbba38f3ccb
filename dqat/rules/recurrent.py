"""Recurrent layers."""

from dqat.keras_api import keras
from dqat.layers import QuantizedLSTM
from dqat.quantizers import Quantizer
from dqat.rules.activations import activation_name
from dqat.rules.context import Context, refuse

layers = keras.layers


def _lstm(layer: layers.LSTM, context: Context) -> list[layers.Layer]:
    way_out = "TFLite's integer LSTM needs it; change the layer or train it in float"
    wanted = {
        "activation": ("tanh", activation_name(layer.activation)),
        "recurrent_activation": ("sigmoid", activation_name(layer.recurrent_activation)),
        "return_state": (False, layer.return_state),
        "stateful": (False, layer.stateful),
        "go_backwards": (False, layer.go_backwards),
        "time_major": (False, getattr(layer, "time_major", False)),
        "recurrent_dropout": (0.0, layer.recurrent_dropout),
    }
    for name, (expected, found) in wanted.items():
        if found != expected:
            raise refuse(layer, f"{name} must be {expected!r}, got {found!r}", way_out)
    if layer.dropout:
        raise refuse(layer, "dropout inside an LSTM is not supported yet", "Put a Dropout layer before it")
    return [
        QuantizedLSTM(
            layer,
            context.scheme.gate_kernel,
            hidden=context.output(layer, "hidden"),
            cell_state=Quantizer(context.scheme.cell_state, context.scheme.observer, name="cell_state"),
        )
    ]


RULES = {layers.LSTM: _lstm}
