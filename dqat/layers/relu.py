"""Layers that are a ReLU and nothing else: the operation that quantizes their result computes it too."""

import tensorflow as tf

from dqat.keras_api import keras


def relu_of(layer: keras.layers.Layer) -> str | None:
    """Which one a layer is.

    Returns:
        "relu" or "relu6"; None for a layer that is anything else.
    """
    if type(layer) is keras.layers.ReLU and layer.negative_slope == 0 and layer.threshold == 0:
        if layer.max_value is None:
            return "relu"
        return "relu6" if layer.max_value == 6 else None
    if type(layer) is keras.layers.Activation:
        if layer.activation in (keras.activations.relu, tf.nn.relu):
            return "relu"
        if layer.activation is tf.nn.relu6:
            return "relu6"
    return None


def apart(layer: keras.layers.Layer, x: tf.Tensor) -> tf.Tensor:
    """A ReLU of what is quantized already, for the converter.

    Right behind a sum or a product it would become a part of that operator, and the rounding to the levels between them
    would be left out. A reshape keeps them apart.
    """
    return tf.reshape(layer.call(tf.reshape(x, [-1])), tf.shape(x))
