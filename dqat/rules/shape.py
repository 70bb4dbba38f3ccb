"""Layers that move, drop or average values: the output has the scale of the input."""

import tensorflow as tf

from dqat.keras_api import keras
from dqat.layers import QuantizedSteps, QuantizePoint, QuantizeWrapper
from dqat.rules.context import Context, Rule, refuse, unchanged

layers = keras.layers


def _average(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    # Averages lie between the levels: the operation rounds them to its input's scale.
    return [QuantizeWrapper(layer, output=context.output(layer))]


def averages_nothing(layer: layers.Layer, shape: tf.TensorShape) -> bool:
    """Whether a global average over an input of this shape gives back its input: the converter leaves it out then."""
    return (
        isinstance(layer, (layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D))
        and layer.keepdims
        and layer.data_format == "channels_last"
        and all(size == 1 for size in shape[1:-1])
    )


def _mean(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    if all(averages_nothing(layer, call.inputs[0].shape) for call in context.calls):
        return [layer]
    return [QuantizeWrapper(layer, output=context.output(layer))]  # MEAN has a scale of its own


_MOVING = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Flatten,
    layers.Masking,
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
    layers.ZeroPadding3D,
    layers.Cropping3D,
)
_AVERAGING = (layers.AveragePooling1D, layers.AveragePooling2D)


def _upsampling(layer: layers.UpSampling2D, context: Context) -> list[layers.Layer]:
    return [layer] if layer.interpolation == "nearest" else _average(layer, context)


def _embedding(layer: layers.Embedding, context: Context) -> list[layers.Layer]:
    # The table has a quantizer, and what is looked up has its range.
    return [QuantizedSteps(layer, "embedding", {"table": context.output(layer, "table")})]


def _point(layer: QuantizePoint, context: Context) -> list[layers.Layer]:
    return [QuantizeWrapper(layer, output=context.output(layer))]


#: What TFLite has no integer kernel for, and why.
_ABSENT = {
    layers.Conv3D: "TFLite's CONV_3D computes in float only",
    layers.Conv3DTranspose: "TFLite's CONV_3D_TRANSPOSE computes in float only",
    layers.MaxPooling3D: "TFLite has no pooling in three dimensions",
    layers.AveragePooling3D: "TFLite has no pooling in three dimensions",
}


def _refused(layer: layers.Layer, context: Context) -> list[layers.Layer]:
    raise refuse(layer, f"it can't run in integers: {_ABSENT[type(layer)]}", "Fold one dimension into another")


RULES: dict[type, Rule] = {
    **dict.fromkeys(_ABSENT, _refused),
    layers.UpSampling2D: _upsampling,
    layers.Embedding: _embedding,
    QuantizePoint: _point,
    **dict.fromkeys(_MOVING, unchanged),
    **dict.fromkeys(_AVERAGING, _average),
    layers.GlobalAveragePooling1D: _mean,
    layers.GlobalAveragePooling2D: _mean,
}
#: Layers whose output has the range of the input.
PASSING = (*_MOVING, *_AVERAGING, layers.UpSampling2D)
