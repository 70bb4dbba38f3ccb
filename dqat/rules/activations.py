"""Activations: those that TFLite fuses, and those whose output range its kernels prescribe."""

from collections.abc import Callable

from dqat.keras_api import keras
from dqat.layers import HardSwish, QuantizedSteps, QuantizeWrapper
from dqat.layers.cell_form import FIXED
from dqat.layers.relu import relu_of
from dqat.observers import Fixed
from dqat.rules import absent
from dqat.rules.context import Context, refuse, refuse_16_bits

layers = keras.layers

#: Activations that TFLite computes inside the layer before.
FUSED_ACTIVATIONS = ("linear", "relu", "relu6")
#: Activations whose int8 kernels prescribe the output's range: LOGISTIC, SOFTMAX (scale 1/256, zero point
#: -128) and TANH (scale 1/128, zero point 0).
FIXED_OUTPUTS = {"softmax": FIXED["Sigmoid"], "sigmoid": FIXED["Sigmoid"], "tanh": FIXED["Tanh"]}
#: Activations that are operations of their own, with a range like any other.
OWN_OPERATIONS = ("elu", "exponential", "gelu", "leaky_relu")
#: The points of mish before its product. Where the logarithm is under -4, the tanh is within a step of its limit.
_MISH = {
    "sigmoid": FIXED["Sigmoid"],
    "complement": Fixed(0.0, 1.0),
    "logarithm": Fixed(-4.0, 0.0),
    "tanh": FIXED["Tanh"],
}


def activation_name(function: Callable) -> str:
    """The name that Keras knows an activation by."""
    if getattr(function, "__module__", "").startswith("tensorflow_addons."):
        return function.__name__
    name = keras.activations.serialize(function)
    return name if isinstance(name, str) else str(getattr(function, "__name__", function))


def activation_function(layer: layers.Layer) -> str:
    """Which activation a layer is."""
    if isinstance(layer, layers.ReLU):
        if relu_of(layer) is not None:
            return relu_of(layer)
        if layer.threshold == 0 and layer.max_value is None:
            return "leaky_relu"
        return "relu with other parameters"
    if isinstance(layer, layers.Softmax):
        return "softmax"
    if isinstance(layer, layers.ELU):
        return "elu"
    if isinstance(layer, layers.LeakyReLU):
        return "leaky_relu"
    return activation_name(layer.activation)


def is_fused_activation(layer: layers.Layer | None) -> bool:
    """Whether TFLite computes this layer inside the one before it."""
    return type(layer) in (layers.Activation, layers.ReLU) and activation_function(layer) in ("relu", "relu6")


def activation(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    """The rule of layers that are an activation."""
    name = activation_function(layer)
    if name == "linear":
        return [layer]
    if context.scheme.is_16x8 and name in absent.INT8_ONLY_ACTIVATIONS:
        raise refuse_16_bits(layer, absent.INT8_ONLY_ACTIVATIONS[name])
    if name in FUSED_ACTIVATIONS or name in OWN_OPERATIONS:
        return [QuantizeWrapper(layer, output=context.output(layer))]
    if name in FIXED_OUTPUTS:
        return [QuantizeWrapper(layer, output=context.output(layer, fixed=FIXED_OUTPUTS[name]))]
    if name in ("swish", "silu"):
        points = {"sigmoid": context.quantizer("sigmoid", FIXED_OUTPUTS["sigmoid"])}
        return [QuantizedSteps(layer, "swish", points, output=context.output(layer))]
    if name == "hard_sigmoid":
        points = {"scaled": context.quantizer("scaled")}
        return [QuantizedSteps(layer, "hard_sigmoid", points, output=context.output(layer, fixed=Fixed(0.0, 1.0)))]
    if name == "mish":
        points = {role: context.quantizer(role, _MISH.get(role)) for role in (*_MISH, "product")}
        return [QuantizedSteps(layer, "mish", points, output=context.output(layer))]
    if name in absent.ACTIVATIONS:
        reason, way_out = absent.ACTIVATIONS[name]
        raise refuse(layer, f"activation {name!r} can't run in integers: {reason}", way_out)
    known = ", ".join((*FUSED_ACTIVATIONS, *FIXED_OUTPUTS, *OWN_OPERATIONS, "swish", "hard_sigmoid", "mish"))
    raise refuse(layer, f"activation {name!r} is not supported yet", f"Use one of {known}")


def _prelu(layer: layers.PReLU, context: Context) -> list[layers.Layer]:
    return [QuantizeWrapper(layer, {"alpha": context.scheme.kernel}, context.output(layer))]


def _one_operator(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    return [QuantizeWrapper(layer, output=context.output(layer))]


def passes_range(layer: layers.Layer) -> bool:
    """Whether the output has the range of the input."""
    return isinstance(layer, layers.Activation) and activation_name(layer.activation) == "linear"


RULES = {
    layers.Activation: activation,
    layers.ReLU: activation,
    layers.Softmax: activation,
    layers.ELU: activation,
    layers.LeakyReLU: activation,
    layers.PReLU: _prelu,
    HardSwish: _one_operator,
}
