"""Ready-made `QuantizeConfig`s, with the names and arguments that scripts for tfmot import."""

from collections.abc import Sequence
from typing import Any

from dqat.configured_layer import QuantizeConfig
from dqat.keras_api import keras, register
from dqat.quantizer_factories import LastValueQuantizer, MovingAverageQuantizer, QuantizerFactory


@register("dqat")
class Default8BitQuantizeConfig(QuantizeConfig):
    """8 bits for the named attributes of a layer, with ranges as TFLite wants them.

    Args:
        weight_attrs: attributes that hold weights, such as ["kernel"]; one symmetric range per tensor.
        activation_attrs: attributes that hold activations, such as ["activation"]; a moving average.
        quantize_output: whether the layer's output is quantized too.
    """

    def __init__(self, weight_attrs: Sequence[str], activation_attrs: Sequence[str], quantize_output: bool) -> None:
        self.weight_attrs, self.activation_attrs = list(weight_attrs), list(activation_attrs)
        self.quantize_output = quantize_output
        self.weight_quantizer = LastValueQuantizer(8, per_axis=False, symmetric=True, narrow_range=True)
        self.activation_quantizer = MovingAverageQuantizer(8, per_axis=False, symmetric=False, narrow_range=False)

    def get_weights_and_quantizers(self, layer: keras.layers.Layer) -> list[tuple[Any, QuantizerFactory]]:
        """The named weights."""
        return [(getattr(layer, name), self.weight_quantizer) for name in self.weight_attrs]

    def get_activations_and_quantizers(self, layer: keras.layers.Layer) -> list[tuple[Any, QuantizerFactory]]:
        """The named activations."""
        return [(getattr(layer, name), self.activation_quantizer) for name in self.activation_attrs]

    def set_quantize_weights(self, layer: keras.layers.Layer, quantize_weights: list[Any]) -> None:
        """Under their names."""
        _set(layer, self.weight_attrs, quantize_weights)

    def set_quantize_activations(self, layer: keras.layers.Layer, quantize_activations: list[Any]) -> None:
        """Under their names."""
        _set(layer, self.activation_attrs, quantize_activations)

    def get_output_quantizers(self, layer: keras.layers.Layer) -> list[QuantizerFactory]:
        """One, where the output is quantized."""
        return [self.activation_quantizer] if self.quantize_output else []

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {
            "weight_attrs": self.weight_attrs,
            "activation_attrs": self.activation_attrs,
            "quantize_output": self.quantize_output,
        }


@register("dqat")
class NoOpQuantizeConfig(Default8BitQuantizeConfig):
    """Leaves a layer as it is."""

    def __init__(self) -> None:
        super().__init__([], [], False)

    def get_config(self) -> dict[str, Any]:
        """Nothing."""
        return {}


def _set(layer: keras.layers.Layer, names: list[str], values: list[Any]) -> None:
    if len(names) != len(values):
        raise ValueError(f"layer {layer.name!r}: {len(values)} values for {len(names)} attributes: {', '.join(names)}")
    for name, value in zip(names, values, strict=True):
        setattr(layer, name, value)
