"""Any layer with quantized weights and a quantized output."""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from dqat.keras_api import deserialize, keras, register, serialize
from dqat.observers import Range
from dqat.quantizers import Quantizer, quantize_weight, weight_range
from dqat.specs import QuantizerSpec


class QuantizedLayer(keras.layers.Layer):
    """Base of the layers that hold a float layer and quantize what it does.

    Args:
        layer: the float layer, whose weights are trained.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any) -> None:
        kwargs.setdefault("name", layer.name)
        super().__init__(**kwargs)
        self.layer = layer

    def quantizers(self) -> dict[str, Quantizer]:
        """The quantizers of activations and states, by role."""
        raise NotImplementedError

    def weight_specs(self) -> dict[str, QuantizerSpec]:
        """How each quantized weight is quantized, by role."""
        raise NotImplementedError

    def weight_values(self) -> dict[str, tf.Tensor]:
        """Each quantized weight, in the shape that its spec speaks of, by role."""
        raise NotImplementedError

    def weight_ranges(self) -> dict[str, Range]:
        """The range of each quantized weight, by role."""
        values = self.weight_values()
        return {role: weight_range(values[role], spec) for role, spec in self.weight_specs().items()}

    def quantized_weights(self) -> dict[str, tf.Tensor]:
        """Each quantized weight on its grid, by role."""
        values = self.weight_values()
        return {role: quantize_weight(values[role], spec) for role, spec in self.weight_specs().items()}

    def get_config(self) -> dict[str, Any]:
        """The float layer beside Keras' own fields."""
        return {**super().get_config(), "layer": serialize(self.layer)}


@contextlib.contextmanager
def _replaced(layer: keras.layers.Layer, values: dict[str, tf.Tensor]) -> Iterator[None]:
    """The layer with tensors in the place of some of its variables."""
    kept = {name: getattr(layer, name) for name in values}
    # Keras' own __setattr__ would track the tensors, or drop the variables that they stand for.
    for name, value in values.items():
        object.__setattr__(layer, name, value)
    try:
        yield
    finally:
        for name, value in kept.items():
            object.__setattr__(layer, name, value)


@register("dqat")
class QuantizeWrapper(QuantizedLayer):
    """Runs a layer with fake-quantized weights and fake-quantizes its output.

    Args:
        layer: a built or unbuilt float layer.
        weights: quantizer per attribute of `layer` that holds a weight, such as {"kernel": QuantizerSpec()}.
        output: the output's quantizer, or None where the output goes on unquantized (before an activation
            that TFLite fuses, or where the range is that of the input).
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        weights: dict[str, QuantizerSpec] | None = None,
        output: Quantizer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **kwargs)
        self._weight_specs = dict(weights or {})
        self.output_quantizer = output

    def build(self, input_shape: Any) -> None:
        """Builds the float layer and the quantizer."""
        if not self.layer.built:
            with tf.name_scope(self.layer.name):
                self.layer.build(input_shape)
            self.layer.built = True
        if self.output_quantizer is not None:
            self.output_quantizer.build(self.layer.compute_output_shape(input_shape))
        super().build(input_shape)

    def quantizers(self) -> dict[str, Quantizer]:
        """The output's quantizer."""
        return {} if self.output_quantizer is None else {"output": self.output_quantizer}

    def weight_specs(self) -> dict[str, QuantizerSpec]:
        """As given."""
        return dict(self._weight_specs)

    def weight_values(self) -> dict[str, tf.Tensor]:
        """The float layer's variables."""
        return {name: tf.convert_to_tensor(getattr(self.layer, name)) for name in self._weight_specs}

    def call(self, inputs: tf.Tensor, training: bool | tf.Tensor | None = None) -> tf.Tensor:
        """The layer's own `call`, on quantized weights."""
        arguments = {"training": training} if self.layer._expects_training_arg else {}
        with _replaced(self.layer, self.quantized_weights()):
            outputs = self.layer.call(inputs, **arguments)
        if self.output_quantizer is not None:
            outputs = self.output_quantizer(outputs, training=training)
        return outputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the layer."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The layer and its quantizers."""
        return {
            **super().get_config(),
            "weights": {name: serialize(spec) for name, spec in self._weight_specs.items()},
            "output": serialize(self.output_quantizer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizeWrapper":
        """The inverse of `get_config`."""
        config = dict(config)
        config["layer"] = deserialize(config["layer"])
        config["weights"] = {name: deserialize(spec) for name, spec in config["weights"].items()}
        config["output"] = deserialize(config["output"])
        return cls(**config)
