"""Layers that make one tensor of several, and arithmetic with constants."""

from dqat.keras_api import keras
from dqat.layers import Arithmetic, QuantizeWrapper
from dqat.rules.context import Context, Rule, refuse, unchanged

layers = keras.layers


def _elementwise(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    counts = {len(call.inputs) for call in context.calls}
    if isinstance(layer, (layers.Add, layers.Multiply)) and max(counts) > 2:
        raise refuse(layer, f"{max(counts)} inputs are not supported yet", "Chain layers of two inputs")
    return [QuantizeWrapper(layer, output=None if context.output_is_fused else context.output(layer))]


RULES: dict[type, Rule] = {
    layers.Add: _elementwise,
    layers.Subtract: _elementwise,
    layers.Multiply: _elementwise,
    layers.Concatenate: unchanged,
    layers.Maximum: unchanged,
    layers.Minimum: unchanged,
    Arithmetic: _elementwise,
}
#: Layers whose inputs and output must have one scale.
SHARING = (layers.Concatenate, layers.Maximum, layers.Minimum)
