"""Choosing what is quantized, layer by layer: the names and signatures of `tfmot.quantization.keras`."""

import warnings
from typing import Any

from dqat import model, quantize_configs  # noqa: F401  (they register what a file may name)
from dqat.configured_layer import QuantizeConfig
from dqat.keras_api import deserialize, keras, register, serialize


@register("dqat")
class QuantizeAnnotate(keras.layers.Wrapper):
    """Marks a layer that `quantize_apply` quantizes; computes what the layer does.

    Args:
        layer: the float layer.
        quantize_config: how it is quantized; None leaves that to dqat.
    """

    def __init__(self, layer: keras.layers.Layer, quantize_config: QuantizeConfig | None = None, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        self.quantize_config = quantize_config
        # As a model's first layer it has the input shape that the layer was given.
        if hasattr(layer, "_batch_input_shape"):
            self._batch_input_shape = layer._batch_input_shape

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's own."""
        return self.layer(*args, **kwargs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the layer."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Also the configuration."""
        return {**super().get_config(), "quantize_config": serialize(self.quantize_config)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "QuantizeAnnotate":
        """The inverse of `get_config`."""
        config = dict(config)
        config["layer"] = deserialize(config["layer"])
        return cls(**{**config, "quantize_config": deserialize(config["quantize_config"])})


def quantize_annotate_layer(
    to_annotate: keras.layers.Layer, quantize_config: QuantizeConfig | None = None
) -> QuantizeAnnotate:
    """Marks a layer for `quantize_apply`.

    Args:
        to_annotate: the layer.
        quantize_config: how to quantize it; None leaves that to dqat.

    Returns:
        The layer, wrapped.

    Raises:
        ValueError: where `to_annotate` is no layer, or a model, or `quantize_config` no `QuantizeConfig`.
    """
    if not isinstance(to_annotate, keras.layers.Layer) or isinstance(to_annotate, keras.Model):
        raise ValueError(
            f"`to_annotate` can only be a `keras.layers.Layer` instance, got {type(to_annotate).__name__}; "
            "for a model, see quantize_annotate_model"
        )
    if quantize_config is not None and not isinstance(quantize_config, QuantizeConfig):
        raise ValueError(f"`quantize_config` can only be a `QuantizeConfig`, got {type(quantize_config).__name__}")
    return QuantizeAnnotate(layer=to_annotate, quantize_config=quantize_config, name=to_annotate.name)


def quantize_annotate_model(to_annotate: keras.Model) -> keras.Model:
    """Marks all layers of a Sequential or functional model that are not marked yet.

    Args:
        to_annotate: the model; stays as it is.

    Returns:
        A copy whose layers are wrapped, and share the original's weights' values.

    Raises:
        ValueError: where `to_annotate` is no Sequential or functional model.
    """
    functional = getattr(to_annotate, "_is_graph_network", False) or isinstance(to_annotate, keras.Sequential)
    if not isinstance(to_annotate, keras.Model) or not functional:
        raise ValueError("`to_annotate` can only be a Sequential or functional `keras.Model`")

    def annotate(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, (keras.layers.InputLayer, QuantizeAnnotate)):
            return layer
        if isinstance(layer, keras.layers.Lambda):
            warnings.warn(
                f"dqat: Lambda layer {layer.name!r} is not marked, since what it computes can't be known: it stays "
                "in float. Make it a layer of its own with a QuantizeConfig",
                stacklevel=2,
            )
            return layer
        return quantize_annotate_layer(layer)

    return keras.models.clone_model(to_annotate, input_tensors=None, clone_function=annotate)


def quantize_scope(*args: Any) -> Any:
    """A scope in which dqat's classes, and those that are given, are found when a model is loaded.

    Files in HDF5 name the classes without their package, and can be loaded only inside.

    Args:
        *args: dictionaries from name to class.
    """
    found = {
        name.removeprefix("dqat>"): cls
        for name, cls in keras.saving.get_custom_objects().items()
        if name.startswith("dqat>")
    }
    for one in args:
        found |= one
    return keras.utils.custom_object_scope(found)
