"""Layers that move, drop or average values: the output has the scale of the input."""

import tensorflow as tf

from dqat.keras_api import keras
from dqat.layers import (
    ChangeBits,
    MergeTime,
    QuantizedAveragePooling,
    QuantizedSteps,
    QuantizePoint,
    QuantizeWrapper,
    Requantization,
    SplitTime,
)
from dqat.rules import absent
from dqat.rules.context import Context, Rule, refuse, unchanged

layers = keras.layers


def _average(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    # Averages lie between the levels: the operation rounds them to its input's scale.
    return [QuantizedAveragePooling(layer, output=context.output(layer))]


#: Layers that move or drop values of one tensor.
MOVING = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Flatten,
    layers.Identity,
    layers.Masking,
    layers.Reshape,
    layers.Permute,
    layers.RepeatVector,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.MaxPooling3D,
    layers.GlobalMaxPooling3D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.UpSampling1D,
    layers.ZeroPadding3D,
    layers.Cropping3D,
    layers.UpSampling3D,
    layers.ActivityRegularization,
    layers.AlphaDropout,
    MergeTime,
    SplitTime,
)
_AVERAGING = (layers.AveragePooling1D, layers.AveragePooling2D)
_GLOBAL = (layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D)


def _upsampling(layer: layers.UpSampling2D, context: Context) -> list[layers.Layer]:
    return [layer] if layer.interpolation == "nearest" else _requantized(layer, context)


def _embedding(layer: layers.Embedding, context: Context) -> list[layers.Layer]:
    # The table has a quantizer, and what is looked up has its range.
    return [QuantizedSteps(layer, "embedding", {"table": context.output(layer, "table")})]


def _requantized(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    return [QuantizeWrapper(layer, output=context.output(layer))]


def _change_bits(layer: ChangeBits, context: Context) -> list[layers.Layer]:
    return [Requantization(layer, output=context.output(layer))]


def _average_3d(layer: layers.AveragePooling3D, context: Context) -> list[layers.Layer]:
    points = {"planes": context.output(layer, "planes")}
    return [QuantizedSteps(layer, "average_3d", points, output=context.output(layer))]


def _refused(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    reason, way_out = absent.LAYERS[type(layer)]
    raise refuse(layer, f"it can't run in integers: {reason}", way_out)


def averages_nothing(layer: layers.Layer, shape: tf.TensorShape) -> bool:
    """Whether a global average over an input of this shape gives back its values."""
    return type(layer) in _GLOBAL and all(size == 1 for size in shape[1:-1])


def _global_average(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    if all(averages_nothing(layer, call.inputs[0].shape) for call in context.calls):
        return [layer]
    return [QuantizeWrapper(layer, output=context.output(layer))]  # MEAN has a scale of its own


RULES: dict[type, Rule] = {
    **dict.fromkeys(absent.LAYERS, _refused),
    layers.UpSampling2D: _upsampling,
    layers.Embedding: _embedding,
    QuantizePoint: _requantized,
    ChangeBits: _change_bits,
    **dict.fromkeys(MOVING, unchanged),
    **dict.fromkeys(_AVERAGING, _average),
    layers.AveragePooling3D: _average_3d,
    **dict.fromkeys(_GLOBAL, _global_average),
}
#: Layers whose output has the range of the input.
PASSING = (*MOVING, *_AVERAGING, layers.AveragePooling3D, layers.UpSampling2D)
