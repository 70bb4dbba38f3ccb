"""A layer that is quantized as a `QuantizeConfig` says, which a user writes."""

import abc
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from dqat.keras_api import deserialize, keras, register, serialize
from dqat.layers.points import Point
from dqat.layers.quantized_layer import QuantizedLayer
from dqat.layers.wrapper import as_shapes
from dqat.quantizer_factories import LastValueQuantizer, QuantizerFactory
from dqat.quantizers import Quantizer
from dqat.specs import QuantizerSpec

#: Activations whose input tfmot quantizes, since the kernels read it in integers and prescribe the output's range.
_QUANTIZED_BEFORE = ("softmax", "sigmoid", "tanh")


class QuantizeConfig(abc.ABC):
    """How one layer is quantized: which of its weights, activations and outputs, and with what."""

    @abc.abstractmethod
    def get_weights_and_quantizers(self, layer: keras.layers.Layer) -> list[tuple[Any, QuantizerFactory]]:
        """Pairs such as (layer.kernel, LastValueQuantizer(...))."""

    @abc.abstractmethod
    def get_activations_and_quantizers(self, layer: keras.layers.Layer) -> list[tuple[Any, QuantizerFactory]]:
        """Pairs such as (layer.activation, MovingAverageQuantizer(...))."""

    @abc.abstractmethod
    def set_quantize_weights(self, layer: keras.layers.Layer, quantize_weights: list[Any]) -> None:
        """Puts quantized weights, in the order of the pairs, in the place of the layer's."""

    @abc.abstractmethod
    def set_quantize_activations(self, layer: keras.layers.Layer, quantize_activations: list[Any]) -> None:
        """Puts quantizing activations, in the order of the pairs, in the place of the layer's."""

    @abc.abstractmethod
    def get_output_quantizers(self, layer: keras.layers.Layer) -> list[QuantizerFactory]:
        """One for the output, or none."""

    @abc.abstractmethod
    def get_config(self) -> dict[str, Any]:
        """The arguments of `__init__`."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizeConfig":
        """The inverse of `get_config`."""
        return cls(**config)


@register("dqat")
class ConfiguredLayer(QuantizedLayer):
    """A layer that is quantized as its `QuantizeConfig` says.

    A weight with a `LastValueQuantizer` is quantized with the range of its present values, which needs no state and
    no collective. What has another quantizer has a range that is found in training.

    Args:
        layer: the float layer.
        quantize_config: how.
        name_prefix: stands before the layer's name.

    Raises:
        ValueError: where `layer` is no layer, or a model, or `quantize_config` no `QuantizeConfig`.
    """

    def __init__(
        self, layer: keras.layers.Layer, quantize_config: QuantizeConfig, name_prefix: str = "quant_", **kwargs: Any
    ) -> None:
        if not isinstance(layer, keras.layers.Layer) or isinstance(layer, keras.Model):
            raise ValueError(f"`layer` can only be a `keras.layers.Layer` instance, got {type(layer).__name__}")
        if not isinstance(quantize_config, QuantizeConfig):
            raise ValueError(f"`quantize_config` can only be a `QuantizeConfig`, got {type(quantize_config).__name__}")
        kwargs.setdefault("name", f"{name_prefix}{layer.name}")
        super().__init__(layer, **kwargs)
        self.quantize_config = quantize_config
        self._states: dict[str, dict[str, Any]] = {}
        self._owned: dict[str, Quantizer] = {}
        self._specs: dict[str, QuantizerSpec] = {}
        self._weight_roles: list[str] = []

    def build(self, input_shape: Any) -> None:
        """Builds the layer and the state of all its quantizers."""
        shape = as_shapes(input_shape)
        if not self.layer.built:
            with tf.name_scope(self.layer.name):
                self.layer.build(shape)
            self.layer.built = True
        config, layer = self.quantize_config, self.layer
        weights = config.get_weights_and_quantizers(layer)
        self._weight_roles = [_role(layer, weight, index) for index, (weight, _) in enumerate(weights)]
        for role, (weight, quantizer) in zip(self._weight_roles, weights, strict=True):
            if type(quantizer) is LastValueQuantizer:
                self._specs[role] = quantizer.spec()
            else:
                self._add(role, quantizer, weight.shape)
        for index, (_, quantizer) in enumerate(config.get_activations_and_quantizers(layer)):
            self._add(f"activation_{index}", quantizer, layer.compute_output_shape(shape))
        for index, quantizer in enumerate(config.get_output_quantizers(layer)):
            self._add(_output_role(index), quantizer, layer.compute_output_shape(shape))
        super().build(input_shape)

    def _add(self, role: str, quantizer: QuantizerFactory, shape: Any) -> None:
        self._states[role] = state = quantizer.build(shape, role, self)
        if isinstance(state, dict) and isinstance(state.get("quantizer"), Quantizer):
            self._owned[role] = state["quantizer"]

    def set_least_weight_bits(self, least: int) -> None:
        """See `QuantizedLayer.set_least_weight_bits`; for weights with a range of their own too."""
        super().set_least_weight_bits(least)
        for role, quantizer in self._owned.items():
            if role in self._weight_roles:
                quantizer.set_least_bits(least)

    def quantizers(self) -> dict[str, Quantizer]:
        """Those that are dqat's own."""
        return dict(self._owned)

    def weight_specs(self) -> dict[str, QuantizerSpec]:
        """Of the weights with a `LastValueQuantizer`."""
        return self._in_use(self._specs)

    def weight_values(self) -> dict[str, tf.Tensor]:
        """Those weights as they are."""
        weights = self.quantize_config.get_weights_and_quantizers(self.layer)
        named = zip(self._weight_roles, weights, strict=True)
        return {role: tf.convert_to_tensor(weight) for role, (weight, _) in named if role in self._specs}

    def call(self, inputs: Any, training: bool | tf.Tensor | None = None, **kwargs: Any) -> Any:
        """The layer's own `call`, on what the configuration puts into it."""
        if self.layer._expects_training_arg:
            kwargs["training"] = training
        return self._compute(
            inputs,
            kwargs,
            self.weights_in_use(),
            lambda role, quantizer, x: quantizer(x, training, self._states[role]),
        )

    def inference(self, inputs: Any, point: Point, **kwargs: Any) -> Any:
        """What export writes: the same arithmetic with constant weights.

        Args:
            inputs: as of `call`.
            point: what marks a tensor with one of dqat's quantizers; quantizers of a user's own stay operations.
            **kwargs: as of `call`.
        """
        if self.layer._expects_training_arg:
            kwargs["training"] = False
        with tf.init_scope():  # variables are read here, even where a graph is built
            weights = {role: value.numpy() for role, value in self.quantized_weights().items()}
        return self._compute(
            inputs,
            kwargs,
            weights,
            lambda role, quantizer, x: (
                point(role, x) if role in self._owned else quantizer(x, False, self._states[role])
            ),
        )

    def _compute(
        self,
        inputs: Any,
        arguments: dict[str, Any],
        known: dict[str, Any],
        quantize: Callable[[str, QuantizerFactory, Any], Any],
    ) -> Any:
        config, layer = self.quantize_config, self.layer
        weights, activations = config.get_weights_and_quantizers(layer), config.get_activations_and_quantizers(layer)
        kept = dict(vars(layer))
        try:
            if weights:
                quantized = [
                    known[role] if role in known else quantize(role, quantizer, tf.convert_to_tensor(weight))
                    for role, (weight, quantizer) in zip(self._weight_roles, weights, strict=True)
                ]
                config.set_quantize_weights(_Recorder(layer), quantized)
            if activations:
                wrapped = [
                    _quantized_activation(activation, f"activation_{index}", quantizer, quantize)
                    for index, (activation, quantizer) in enumerate(activations)
                ]
                config.set_quantize_activations(_Recorder(layer), wrapped)
            outputs = layer.call(inputs, **arguments)
        finally:
            vars(layer).update(kept)
        for index, quantizer in enumerate(config.get_output_quantizers(layer)):
            outputs = quantize(_output_role(index), quantizer, outputs)
        return outputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the layer."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The layer and its configuration."""
        return {**super().get_config(), "quantize_config": serialize(self.quantize_config)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ConfiguredLayer":
        """The inverse of `get_config`."""
        config = {**config, **{name: deserialize(config[name]) for name in ("layer", "quantize_config")}}
        return cls(**config)


def _role(layer: keras.layers.Layer, weight: Any, index: int) -> str:
    """The attribute that holds the weight, or else a number."""
    return next((name for name, value in vars(layer).items() if value is weight), f"weight_{index}").lstrip("_")


def _output_role(index: int) -> str:
    return "output" if index == 0 else f"output_{index}"


def _quantized_activation(
    activation: Any, role: str, quantizer: QuantizerFactory, quantize: Callable[[str, QuantizerFactory, Any], Any]
) -> Callable[[Any], Any]:
    if getattr(activation, "__name__", "") in _QUANTIZED_BEFORE:
        return lambda x: activation(quantize(role, quantizer, x))
    return lambda x: quantize(role, quantizer, activation(x))


class _Recorder:
    """Takes attributes as a configuration sets them, and puts them into a layer past Keras' tracking."""

    def __init__(self, layer: keras.layers.Layer) -> None:
        object.__setattr__(self, "_layer", layer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self._layer, name, value)
