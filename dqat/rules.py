"""Which layer is quantized how: one table from layer class to rule.

A rule takes a float layer, already copied, and returns the layers that stand for it, in order. It raises
UnsupportedLayerError where the layer, as configured, has no integer counterpart yet.
"""

from collections.abc import Callable
from dataclasses import dataclass

from dqat.keras_api import keras
from dqat.layers import QuantizedLSTM, QuantizeWrapper
from dqat.observers import Fixed
from dqat.quantizers import Quantizer
from dqat.specs import Scheme

layers = keras.layers


class UnsupportedLayerError(ValueError):
    """A layer that can't be quantized; the message names it and the ways out."""


@dataclass(frozen=True)
class Context:
    """What a rule knows beside its layer.

    Attributes:
        scheme: which quantizer each kind of tensor gets.
        output_is_fused: the only consumer is an activation that TFLite fuses into this layer.
    """

    scheme: Scheme
    output_is_fused: bool = False

    def quantizer(self, role: str) -> Quantizer:
        """A quantizer of activations."""
        return Quantizer(self.scheme.activation, self.scheme.observer, name=role)


Rule = Callable[[layers.Layer, Context], list[layers.Layer]]

#: Activations that TFLite computes inside the layer before.
FUSED_ACTIVATIONS = ("linear", "relu", "relu6")
#: Activations whose int8 kernels prescribe the output's range: LOGISTIC, SOFTMAX (scale 1/256, zero point
#: -128) and TANH (scale 1/128, zero point 0).
FIXED_OUTPUTS = {
    "softmax": Fixed(0.0, 255.0 / 256.0),
    "sigmoid": Fixed(0.0, 255.0 / 256.0),
    "tanh": Fixed(-1.0, 127.0 / 128.0),
}


def activation_name(function: Callable) -> str:
    """The name that Keras knows an activation by."""
    name = keras.activations.serialize(function)
    return name if isinstance(name, str) else str(getattr(function, "__name__", function))


def _activation_function(layer: layers.Layer) -> str:
    if isinstance(layer, layers.ReLU):
        plain = layer.negative_slope == 0 and layer.threshold == 0 and layer.max_value in (None, 6)
        return ("relu" if layer.max_value is None else "relu6") if plain else "relu with other parameters"
    if isinstance(layer, layers.Softmax):
        return "softmax"
    return activation_name(layer.activation)


def is_fused_activation(layer: layers.Layer | None) -> bool:
    """Whether TFLite computes this layer inside the one before it."""
    return isinstance(layer, (layers.Activation, layers.ReLU)) and _activation_function(layer) in FUSED_ACTIVATIONS


def _refuse(layer: layers.Layer, reason: str, way_out: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(f"layer {layer.name!r} ({type(layer).__name__}): {reason}. {way_out}")


def _activation(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    name = _activation_function(layer)
    if name in FUSED_ACTIVATIONS:
        return [QuantizeWrapper(layer, output=None if name == "linear" else context.quantizer("output"))]
    if name in FIXED_OUTPUTS:
        return [QuantizeWrapper(layer, output=Quantizer(context.scheme.activation, FIXED_OUTPUTS[name], name="output"))]
    known = ", ".join((*FUSED_ACTIVATIONS, *FIXED_OUTPUTS))
    raise _refuse(layer, f"activation {name!r} is not supported yet", f"Use one of {known}")


def _dense(layer: layers.Dense, context: Context) -> list[layers.Layer]:
    name = activation_name(layer.activation)
    weights = {"kernel": context.scheme.kernel}
    if name in FUSED_ACTIVATIONS:
        output = None if context.output_is_fused and name == "linear" else context.quantizer("output")
        return [QuantizeWrapper(layer, weights, output)]
    # TFLite runs the activation as an operation of its own, which reads quantized values.
    activation = layers.Activation(name, name=f"{layer.name}_{name}")
    after = _activation(activation, context)
    layer.activation = keras.activations.linear
    return [QuantizeWrapper(layer, weights, context.quantizer("output")), *after]


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
            raise _refuse(layer, f"{name} must be {expected!r}, got {found!r}", way_out)
    if layer.dropout:
        raise _refuse(layer, "dropout inside an LSTM is not supported yet", "Put a Dropout layer before it")
    return [
        QuantizedLSTM(
            layer,
            context.scheme.gate_kernel,
            hidden=context.quantizer("hidden"),
            cell_state=Quantizer(context.scheme.cell_state, context.scheme.observer, name="cell_state"),
        )
    ]


def _unchanged(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    return [layer]


#: Exact classes, not subclasses: a subclass may compute anything.
RULES: dict[type, Rule] = {
    layers.Activation: _activation,
    layers.Dense: _dense,
    layers.Dropout: _unchanged,
    layers.Flatten: _unchanged,
    layers.LSTM: _lstm,
    layers.ReLU: _activation,
    layers.Reshape: _unchanged,
    layers.Softmax: _activation,
}


def apply_rule(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    """The layers that stand for `layer`.

    Raises:
        UnsupportedLayerError: where no rule fits; the message names the layer.
    """
    rule = RULES.get(type(layer))
    if rule is None:
        known = ", ".join(sorted(cls.__name__ for cls in RULES))
        raise _refuse(layer, "this layer is not supported yet", f"Supported: {known}")
    return rule(layer, context)
