"""Normalizations, and other multiplications and additions per channel."""

from dqat.keras_api import keras
from dqat.layers import QuantizedSteps, QuantizeWrapper
from dqat.layers.cell_form import FIXED
from dqat.layers.normalizing import STANDARDIZING, is_affine
from dqat.rules.context import Context, Rule, refuse

layers = keras.layers


def _require_last_axis(layer: layers.Layer, context: Context) -> None:
    shape = context.calls[0].inputs[0].shape
    axes = list(layer.axis) if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    if axes not in ([-1], [len(shape) - 1]):
        raise refuse(layer, f"axis must be the last one, got {layer.axis}", "TFLite has channels last")


def _batch_normalization(layer: layers.BatchNormalization, context: Context) -> list[layers.Layer]:
    _require_last_axis(layer, context)
    if context.output_is_fused:
        return [layer]
    quantizer = context.output(layer, f"{layer.name}_quantizer")
    return [layer, quantizer]


def _steps(layer: layers.Layer, context: Context, steps: str, roles: tuple[str, ...]) -> list[layers.Layer]:
    points = {role: context.quantizer(role) for role in roles}
    return [QuantizedSteps(layer, steps, points, output=context.output(layer))]


def _layer_normalization(layer: layers.LayerNormalization, context: Context) -> list[layers.Layer]:
    _require_last_axis(layer, context)
    roles = (*STANDARDIZING, "normalized") if is_affine(layer) else STANDARDIZING
    return _steps(layer, context, "layer_normalization", roles)


def group_normalization(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    """The rule of Keras' layer and tensorflow-addons'."""
    _require_last_axis(layer, context)
    return _steps(layer, context, "group_normalization", (*STANDARDIZING, "normalized"))


def _unit_normalization(layer: layers.UnitNormalization, context: Context) -> list[layers.Layer]:
    _require_last_axis(layer, context)
    # L2_NORMALIZATION has the scale of TANH.
    return [QuantizeWrapper(layer, output=context.output(layer, fixed=FIXED["Tanh"]))]


def _affine(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    return [QuantizeWrapper(layer, output=None if context.output_is_fused else context.output(layer))]


def _normalization(layer: layers.Normalization, context: Context) -> list[layers.Layer]:
    if layer.invert:
        raise refuse(layer, "invert must be False, got True", "Use layers.Rescaling")
    return _affine(layer, context)


RULES: dict[type, Rule] = {
    layers.BatchNormalization: _batch_normalization,
    layers.LayerNormalization: _layer_normalization,
    layers.GroupNormalization: group_normalization,
    layers.UnitNormalization: _unit_normalization,
    layers.Rescaling: _affine,
    layers.Normalization: _normalization,
}
