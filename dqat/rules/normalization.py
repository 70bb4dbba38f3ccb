"""BatchNormalization and other multiplications and additions per channel."""

from dqat.keras_api import keras
from dqat.layers import QuantizeWrapper
from dqat.rules.context import Context, Rule, refuse

layers = keras.layers


def _batch_normalization(layer: layers.BatchNormalization, context: Context) -> list[layers.Layer]:
    shape = context.calls[0].inputs[0].shape
    axes = list(layer.axis) if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    if axes not in ([-1], [len(shape) - 1]):
        raise refuse(layer, f"axis must be the last one, got {layer.axis}", "TFLite has channels last")
    if context.output_is_fused:
        return [layer]
    quantizer = context.output(layer, f"{layer.name}_quantizer")
    return [layer, quantizer]


def _affine(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    return [QuantizeWrapper(layer, output=None if context.output_is_fused else context.output(layer))]


def _normalization(layer: layers.Normalization, context: Context) -> list[layers.Layer]:
    if layer.invert:
        raise refuse(layer, "invert must be False, got True", "Use layers.Rescaling")
    return _affine(layer, context)


RULES: dict[type, Rule] = {
    layers.BatchNormalization: _batch_normalization,
    layers.Rescaling: _affine,
    layers.Normalization: _normalization,
}
