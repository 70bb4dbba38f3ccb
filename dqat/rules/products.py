"""Dense and convolutional layers: products of a kernel with inputs, and what is computed in the same operation."""

from dataclasses import replace

from dqat.keras_api import keras
from dqat.layers import QuantizedSteps, QuantizeWrapper
from dqat.rules.activations import FUSED_ACTIVATIONS, activation_name
from dqat.rules.activations import activation as activation_rule
from dqat.rules.context import Context, Rule, refuse
from dqat.specs import QuantizerSpec, Scheme

layers = keras.layers


def _last(scheme: Scheme) -> QuantizerSpec:
    return scheme.conv_kernel


def _last_but_one(scheme: Scheme) -> QuantizerSpec:
    return replace(scheme.conv_kernel, axis=None if scheme.conv_kernel.axis is None else -2)


#: Attributes with weights, and how each is quantized; the last one makes the output.
_WEIGHTS = {
    layers.Dense: {"kernel": lambda scheme: scheme.kernel},
    layers.Conv1D: {"kernel": _last},
    layers.Conv2D: {"kernel": _last},
    layers.Conv3D: {"kernel": _last},
    layers.Conv1DTranspose: {"kernel": _last_but_one},
    layers.Conv2DTranspose: {"kernel": _last_but_one},
    layers.DepthwiseConv1D: {"depthwise_kernel": _last},
    layers.DepthwiseConv2D: {"depthwise_kernel": _last},
    layers.SeparableConv1D: {"depthwise_kernel": _last, "pointwise_kernel": _last},
    layers.SeparableConv2D: {"depthwise_kernel": _last, "pointwise_kernel": _last},
}


def folds(layer: layers.Layer, norm: layers.Layer) -> bool:
    """Whether export can fold a BatchNormalization that follows into the layer."""
    if type(layer) not in _WEIGHTS or not isinstance(norm, layers.BatchNormalization):
        return False
    rank = 2 if isinstance(layer, layers.Dense) else layer.rank + 2
    axes = norm.axis if isinstance(norm.axis, (list, tuple)) else [norm.axis]
    last = list(axes) in ([-1], [rank - 1])
    return last and activation_name(layer.activation) == "linear"


def _product(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    if getattr(layer, "groups", 1) != 1 and isinstance(layer, layers.Conv3D):
        raise refuse(
            layer, f"groups must be 1, got {layer.groups}", "Split the channels, and use a Conv3D for each part"
        )
    weights = {name: spec(context.scheme) for name, spec in _WEIGHTS[type(layer)].items()}
    name = activation_name(layer.activation)
    if name in FUSED_ACTIVATIONS:
        output = None if context.output_is_fused and name == "linear" else context.output(layer)
        return [_wrapped(layer, context, weights, output)]
    # TFLite runs the activation as an operation of its own, which reads quantized values.
    activation = layers.Activation(layer.activation, name=f"{layer.name}_{name}")
    after = activation_rule(activation, context)
    layer.activation = keras.activations.linear
    return [_wrapped(layer, context, weights, context.quantizer("output")), *after]


def _wrapped(layer, context, weights, output) -> layers.Layer:
    if isinstance(layer, (layers.SeparableConv1D, layers.SeparableConv2D)):
        points = {"depthwise": context.quantizer("depthwise")}
        return QuantizedSteps(layer, "separable", points, weights, output, norm=context.norm, kept=context.scheme.kept)
    return QuantizeWrapper(layer, weights, output, norm=context.norm, kept=context.scheme.kept)


RULES: dict[type, Rule] = dict.fromkeys(_WEIGHTS, _product)
