"""Layers that move values without changing them."""

from dqat.keras_api import keras
from dqat.rules.context import unchanged

layers = keras.layers

RULES = {layers.Dropout: unchanged, layers.Flatten: unchanged, layers.Reshape: unchanged}
