"""Layers that make one tensor of several, and arithmetic with constants."""

from dqat.keras_api import keras
from dqat.layers import Arithmetic, QuantizedSteps, QuantizeWrapper
from dqat.layers.steps import layer_points
from dqat.quantizers import Quantizer
from dqat.rules.context import Context, Rule, refuse, unchanged

layers = keras.layers


def _elementwise(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    inputs = max(len(call.inputs) for call in context.calls)
    roles = layer_points(layer, inputs) if isinstance(layer, (layers.Add, layers.Multiply, layers.Average)) else []
    if roles:
        points = {role: context.quantizer(role) for role in roles}
        return [QuantizedSteps(layer, "chain", points, output=_output(layer, context))]
    return [QuantizeWrapper(layer, output=_output(layer, context))]


def _output(layer: layers.Layer, context: Context) -> Quantizer | None:
    return None if context.output_is_fused else context.output(layer)


def _dot(layer: layers.Dot, context: Context) -> list[layers.Layer]:
    if layer.normalize:
        raise refuse(layer, "normalize must be False, got True", "TFLite has no integer L2 norm of any axis")
    return [QuantizeWrapper(layer, output=context.output(layer))]


RULES: dict[type, Rule] = {
    layers.Add: _elementwise,
    layers.Subtract: _elementwise,
    layers.Multiply: _elementwise,
    layers.Average: _elementwise,
    layers.Dot: _dot,
    layers.Concatenate: unchanged,
    layers.Maximum: unchanged,
    layers.Minimum: unchanged,
    Arithmetic: _elementwise,
}
#: Layers whose inputs and output must have one scale.
SHARING = (layers.Concatenate, layers.Maximum, layers.Minimum)
