"""Layers that move, drop or average values: the output has the scale of the input."""

from dqat.keras_api import keras
from dqat.layers import QuantizeWrapper
from dqat.rules.context import Context, Rule, unchanged

layers = keras.layers


def _average(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    # Averages lie between the levels: the operation rounds them to its input's scale.
    return [QuantizeWrapper(layer, output=context.output(layer))]


def _rescaled(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    return [QuantizeWrapper(layer, output=context.output(layer))]


_MOVING = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Flatten,
    layers.Reshape,
    layers.Permute,
    layers.RepeatVector,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.UpSampling1D,
)
_AVERAGING = (layers.AveragePooling1D, layers.AveragePooling2D)
RULES: dict[type, Rule] = {
    **dict.fromkeys(_MOVING, unchanged),
    **dict.fromkeys(_AVERAGING, _average),
    layers.GlobalAveragePooling1D: _rescaled,  # MEAN has a scale of its own
    layers.GlobalAveragePooling2D: _rescaled,
}
#: Layers whose output has the range of the input.
PASSING = (*_MOVING, *_AVERAGING)
