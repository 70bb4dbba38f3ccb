"""The Keras that dqat builds on: tf.keras up to TensorFlow 2.15, tf_keras from 2.16 on.

TensorFlow 2.15's tf.keras is tf_keras where TF_USE_LEGACY_KERAS=1 stands in the environment, and so is dqat's then.
"""

import contextlib
from collections.abc import Iterator
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
    if NAME == "tf.keras" and any(base.__module__.startswith("tf_keras.") for base in type(model).__mro__):
        raise TypeError(
            f"model {getattr(model, 'name', '')!r} is of tf_keras ({given}), and this process's tf.keras is another "
            "one: set TF_USE_LEGACY_KERAS=1 before TensorFlow is imported, which makes them the same"
        )
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


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Layers that are made inside have this policy, such as "float32" or "mixed_bfloat16"."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def in_float32(config: Any) -> Any:
    """A config, with all that it holds, that computes in float32: policies of mixed precision are taken out."""
    if isinstance(config, dict):
        return {
            key: "float32" if key == "dtype" and _is_mixed(value) else in_float32(value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):  # of a subclass, where a layer tracks it
        parts = [in_float32(part) for part in config]
        return tuple(parts) if isinstance(config, tuple) else parts
    return config


def _is_mixed(dtype: Any) -> bool:
    name = dtype["config"].get("name") if isinstance(dtype, dict) and "config" in dtype else dtype
    return isinstance(name, str) and name in ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16")
