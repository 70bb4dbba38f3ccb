"""Activations: those that TFLite fuses, and those whose output range its kernels prescribe."""

from collections.abc import Callable

from dqat.keras_api import keras
from dqat.layers import QuantizeWrapper
from dqat.observers import Fixed
from dqat.quantizers import Quantizer
from dqat.rules.context import Context, refuse

layers = keras.layers

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


def activation(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    """The rule of layers that are an activation."""
    name = _activation_function(layer)
    if name in FUSED_ACTIVATIONS:
        return [QuantizeWrapper(layer, output=None if name == "linear" else context.quantizer("output"))]
    if name in FIXED_OUTPUTS:
        return [QuantizeWrapper(layer, output=Quantizer(context.scheme.activation, FIXED_OUTPUTS[name], name="output"))]
    known = ", ".join((*FUSED_ACTIVATIONS, *FIXED_OUTPUTS))
    raise refuse(layer, f"activation {name!r} is not supported yet", f"Use one of {known}")


RULES = {layers.Activation: activation, layers.ReLU: activation, layers.Softmax: activation}
