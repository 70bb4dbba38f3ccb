"""The Keras that dqat builds on: tf.keras up to TensorFlow 2.15, tf_keras from 2.16 on."""

from typing import Any

import tensorflow as tf

if tuple(int(part) for part in tf.__version__.split(".")[:2]) < (2, 16):
    keras, NAME = tf.keras, "tf.keras"
else:
    import tf_keras as keras

    NAME = "tf_keras"

register = keras.saving.register_keras_serializable


def require_keras_2(model: object) -> None:
    """Raises TypeError where `model` is no Keras 2 model, and says what to do."""
    if isinstance(model, keras.Model):
        return
    given = f"{type(model).__module__}.{type(model).__name__}"
    if any(base.__name__ == "Model" and "keras" in base.__module__ for base in type(model).__mro__):
        raise TypeError(
            f"model {getattr(model, 'name', '')!r} is of another Keras ({given}): build it with {NAME}, "
            "which is what dqat trains and exports"
        )
    raise TypeError(f"model must be a {NAME}.Model, got {given}")


def serialize(part: Any) -> Any:
    """A part of a layer as its config holds it; None stays None.

    Without Keras' record of how the part was built: the layer that owns the part builds it.
    """
    if part is None:
        return None
    config = keras.saving.serialize_keras_object(part)
    config.pop("build_config", None)
    config["config"] = layer_config(part, config["config"])
    return config


def layer_config(part: Any, config: Any) -> Any:
    """The config with what Keras' own BatchNormalization leaves out: whether its statistics are synchronized."""
    return {**config, "synchronized": True} if getattr(part, "synchronized", False) else config


def deserialize(config: Any) -> Any:
    """The inverse of `serialize`."""
    # Not Keras' general function: from HDF5 and SavedModels that doesn't find Keras' own classes.
    return None if config is None else keras.layers.deserialize(config)
