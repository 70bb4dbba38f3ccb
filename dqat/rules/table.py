"""Which layer is quantized how: one table from layer class to rule."""

from dqat.keras_api import keras
from dqat.rules import absent, activations, attention, merging, normalization, products, recurrent, shape
from dqat.rules.context import Context, Rule, refuse, refuse_16_bits, unchanged
from dqat.rules.operations import moves_values

#: Exact classes, not subclasses: a subclass may compute anything.
RULES: dict[type, Rule] = (
    activations.RULES
    | products.RULES
    | normalization.RULES
    | merging.RULES
    | attention.RULES
    | recurrent.RULES
    | shape.RULES
)
#: Layers of tensorflow-addons, which need not be installed, by name.
_ADDONS: dict[str, Rule] = {
    "GroupNormalization": normalization.group_normalization,
    "InstanceNormalization": normalization.group_normalization,
}


def apply_rule(layer: keras.layers.Layer, context: Context) -> list[keras.layers.Layer]:
    """The layers that stand for `layer`.

    Raises:
        UnsupportedLayerError: where no rule fits; the message names the layer.
    """
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise refuse(layer, "data_format must be 'channels_last', got 'channels_first'", "TFLite has channels last")
    rule = unchanged if moves_values(layer) else RULES.get(type(layer))
    if type(layer).__module__.startswith("tensorflow_addons."):
        rule = _ADDONS.get(type(layer).__name__)
    if rule is None:
        known = ", ".join(sorted(cls.__name__ for cls in RULES if cls not in absent.LAYERS))
        raise refuse(layer, "this layer is not supported yet", f"Supported: {known}")
    if context.scheme.is_16x8 and type(layer) in absent.INT8_ONLY:
        raise refuse_16_bits(layer, absent.INT8_ONLY[type(layer)])
    return rule(layer, context)


def moves_only(layer: keras.layers.Layer) -> bool:
    """Whether the layer moves or drops values of one tensor, and is the same in integers."""
    return type(layer) in shape.MOVING or activations.passes_range(layer) or moves_values(layer)


def keeps_range(layer: keras.layers.Layer) -> bool:
    """Whether all inputs and outputs of the layer must have one range."""
    return type(layer) in (*shape.PASSING, *merging.SHARING) or activations.passes_range(layer) or moves_values(layer)
