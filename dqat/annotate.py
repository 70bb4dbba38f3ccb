"""Choosing what is quantized, layer by layer: the names and signatures of `tfmot.quantization.keras`."""

import abc
from typing import Any

import tensorflow as tf

from dqat.keras_api import deserialize, keras, register, serialize
from dqat.layers.wrapper import QuantizedLayer, as_shapes
from dqat.observers import AllValues, Fixed, LastValue, MovingAverage, Observer
from dqat.quantizers import Quantizer, SharedQuantizer
from dqat.specs import QuantizerSpec


class QuantizerFactory(abc.ABC):
    """What a `QuantizeConfig` names for a tensor; subclass it for a quantizer of your own."""

    @abc.abstractmethod
    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        """Makes the state.

        Args:
            tensor_shape: of what will be quantized, None where it isn't known.
            name: of the tensor.
            layer: who owns the state: call its `add_weight`.

        Returns:
            What `__call__` gets as `weights`.
        """

    @abc.abstractmethod
    def __call__(self, inputs: tf.Tensor, training: Any, weights: dict[str, Any], **kwargs: Any) -> tf.Tensor:
        """Quantizes `inputs`."""

    @abc.abstractmethod
    def get_config(self) -> dict[str, Any]:
        """The arguments of `__init__`."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizerFactory":
        """The inverse of `get_config`."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((type(self), tuple(self.get_config().items())))


class _Observed(QuantizerFactory):
    """A quantizer of dqat's, whose range is kept in step on all replicas.

    Args:
        num_bits: 2 to 16.
        per_axis: a range per channel of the last axis.
        symmetric: 0 stands on the middle level.
        narrow_range: uses one level less, at the negative end.
    """

    def __init__(self, num_bits: int, per_axis: bool, symmetric: bool, narrow_range: bool) -> None:
        self.num_bits, self.per_axis = num_bits, per_axis
        self.symmetric, self.narrow_range = symmetric, narrow_range

    def _observer(self) -> Observer:
        raise NotImplementedError

    def _spec(self) -> QuantizerSpec:
        axis = -1 if self.per_axis else None
        return QuantizerSpec(self.num_bits, self.symmetric, self.narrow_range, axis)

    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        """The state is a `dqat.quantizers.Quantizer`."""
        quantizer = Quantizer(self._spec(), self._observer(), name=name)
        quantizer.build(tensor_shape)
        return {"quantizer": quantizer}

    def __call__(self, inputs: tf.Tensor, training: Any, weights: dict[str, Any], **kwargs: Any) -> tf.Tensor:
        """Quantizes `inputs`; records them where `training`."""
        return weights["quantizer"](inputs, training=training)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {
            "num_bits": self.num_bits,
            "per_axis": self.per_axis,
            "symmetric": self.symmetric,
            "narrow_range": self.narrow_range,
        }


@register("dqat")
class LastValueQuantizer(_Observed):
    """The range of the last step."""

    def _observer(self) -> Observer:
        return LastValue()


@register("dqat")
class MovingAverageQuantizer(_Observed):
    """A moving average of the steps' extremes, from the first step on; decay 0.999, as tfmot's."""

    def _observer(self) -> Observer:
        return MovingAverage(0.999)


@register("dqat")
class AllValuesQuantizer(_Observed):
    """The range of all values seen so far."""

    def _observer(self) -> Observer:
        return AllValues()


@register("dqat")
class FixedQuantizer(_Observed):
    """A range that is known.

    Args:
        num_bits: 2 to 16.
        init_min: at most 0.
        init_max: at least 0.
        narrow_range: uses one level less, at the negative end.
    """

    def __init__(self, num_bits: int, init_min: float, init_max: float, narrow_range: bool) -> None:
        super().__init__(num_bits, False, False, narrow_range)
        self.init_min, self.init_max = init_min, init_max

    def _observer(self) -> Observer:
        return Fixed(self.init_min, self.init_max)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {
            "num_bits": self.num_bits,
            "init_min": self.init_min,
            "init_max": self.init_max,
            "narrow_range": self.narrow_range,
        }


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

    Args:
        layer: the float layer.
        quantize_config: how.
    """

    def __init__(self, layer: keras.layers.Layer, quantize_config: QuantizeConfig, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        self.quantize_config = quantize_config
        self._states: dict[str, dict[str, Any]] = {}
        self._owned: dict[str, Quantizer] = {}

    def build(self, input_shape: Any) -> None:
        """Builds the layer and the state of all its quantizers."""
        shape = as_shapes(input_shape)
        if not self.layer.built:
            with tf.name_scope(self.layer.name):
                self.layer.build(shape)
            self.layer.built = True
        config, layer = self.quantize_config, self.layer
        for index, (weight, quantizer) in enumerate(config.get_weights_and_quantizers(layer)):
            self._add(f"weight_{index}", quantizer, weight.shape)
        for index, (_, quantizer) in enumerate(config.get_activations_and_quantizers(layer)):
            self._add(f"activation_{index}", quantizer, layer.compute_output_shape(shape))
        for index, quantizer in enumerate(config.get_output_quantizers(layer)):
            self._add(f"output_{index}", quantizer, layer.compute_output_shape(shape))
        super().build(input_shape)

    def _add(self, role: str, quantizer: QuantizerFactory, shape: Any) -> None:
        self._states[role] = state = quantizer.build(shape, role, self)
        if isinstance(state, dict) and isinstance(state.get("quantizer"), Quantizer):
            self._owned[role] = state["quantizer"]

    def quantizers(self) -> dict[str, Quantizer]:
        """Those that are dqat's own."""
        return dict(self._owned)

    def weight_specs(self) -> dict[str, QuantizerSpec]:
        """None: weights have quantizers like other tensors here."""
        return {}

    def weight_values(self) -> dict[str, tf.Tensor]:
        """None."""
        return {}

    def call(self, inputs: Any, training: bool | tf.Tensor | None = None, **kwargs: Any) -> Any:
        """The layer's own `call`, on what the configuration puts into it."""
        config, layer = self.quantize_config, self.layer
        if layer._expects_training_arg:
            kwargs["training"] = training
        weights, activations = config.get_weights_and_quantizers(layer), config.get_activations_and_quantizers(layer)
        kept = dict(vars(layer))
        quantized = [
            quantizer(tf.convert_to_tensor(weight), training, self._states[f"weight_{index}"])
            for index, (weight, quantizer) in enumerate(weights)
        ]
        if quantized:
            _set_untracked(layer, config.set_quantize_weights, quantized)
        if activations:
            _set_untracked(
                layer,
                config.set_quantize_activations,
                [self._activation(index, *pair, training) for index, pair in enumerate(activations)],
            )
        try:
            outputs = layer.call(inputs, **kwargs)
        finally:
            vars(layer).update(kept)
        for index, quantizer in enumerate(config.get_output_quantizers(layer)):
            outputs = quantizer(outputs, training, self._states[f"output_{index}"])
        return outputs

    def _activation(self, index: int, activation: Any, quantizer: QuantizerFactory, training: Any) -> Any:
        return lambda x: quantizer(activation(x), training, self._states[f"activation_{index}"])

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the layer."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The layer and its configuration."""
        return {**super().get_config(), "quantize_config": serialize(self.quantize_config)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ConfiguredLayer":
        """The inverse of `get_config`."""
        return cls(**{**config, **{name: deserialize(config[name]) for name in ("layer", "quantize_config")}})


class _Recorder:
    """Takes attributes as a configuration sets them, and puts them into a layer past Keras' tracking."""

    def __init__(self, layer: keras.layers.Layer) -> None:
        object.__setattr__(self, "_layer", layer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self._layer, name, value)


def _set_untracked(layer: keras.layers.Layer, setter: Any, values: list[Any]) -> None:
    setter(_Recorder(layer), values)


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
        return quantize_annotate_layer(layer)

    return keras.models.clone_model(to_annotate, input_tensors=None, clone_function=annotate)


def quantize_scope(*args: Any) -> Any:
    """A scope in which dqat's classes, and those that are given, are found when a model is loaded.

    Args:
        *args: dictionaries from name to class.
    """
    own = (
        QuantizeAnnotate,
        ConfiguredLayer,
        Quantizer,
        SharedQuantizer,
        LastValueQuantizer,
        MovingAverageQuantizer,
        AllValuesQuantizer,
        FixedQuantizer,
    )
    found = {cls.__name__: cls for cls in own}
    for one in args:
        found |= one
    return keras.utils.custom_object_scope(found)
