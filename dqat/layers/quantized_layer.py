"""The base of layers that quantize what a float layer does, and quantize its weights once a pass."""

import contextlib
import contextvars
import operator
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from dqat.keras_api import keras, serialize
from dqat.observers import Range
from dqat.quantizers import Quantizer, quantize_weight, weight_range
from dqat.specs import QuantizerSpec

#: What layers have quantized in the forward pass under way, by layer and graph; None where there is none.
_weights_of_pass: contextvars.ContextVar[dict[tuple[int, Any], dict[str, tf.Tensor]] | None] = contextvars.ContextVar(
    "dqat_weights_of_pass", default=None
)


@contextlib.contextmanager
def one_pass() -> Iterator[None]:
    """Around a model's forward pass, in which no weight changes: a layer quantizes its own once for all its calls."""
    if _weights_of_pass.get() is not None:  # of the model around this one
        yield
        return
    token = _weights_of_pass.set({})
    try:
        yield
    finally:
        _weights_of_pass.reset(token)


class QuantizedLayer(keras.layers.Layer):
    """Base of the layers that hold a float layer and quantize what it does.

    Args:
        layer: the float layer, whose weights are trained.
        norm: name of the BatchNormalization in the same model that export folds into this layer.

    Attributes:
        norm: that layer, once the model is made; else None.
    """

    def __init__(self, layer: keras.layers.Layer, *, norm: str | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("name", layer.name)
        super().__init__(**kwargs)
        self._autograph = False  # nothing here branches on a tensor, and converting each call takes time
        self.layer = layer
        self.norm_name = norm
        self.norm: keras.layers.BatchNormalization | None = None
        self._least_weight_bits = 0

    def set_least_weight_bits(self, least: int) -> None:
        """From the next trace on quantizes weights with so many bits at least; 0 for those of their specs."""
        self._least_weight_bits = least

    def _in_use(self, specs: dict[str, QuantizerSpec]) -> dict[str, QuantizerSpec]:
        return {role: spec.with_least_bits(self._least_weight_bits) for role, spec in specs.items()}

    def connect(self, norm: keras.layers.BatchNormalization) -> None:
        """Tells which layer `norm_name` stands for; the model holds its weights."""
        object.__setattr__(self, "norm", norm)  # not tracked: it is no part of this layer

    def quantizers(self) -> dict[str, Quantizer]:
        """The quantizers of activations and states, by role."""
        raise NotImplementedError

    def last_quantizer(self) -> Quantizer | None:
        """The quantizer whose output is the layer's, as it is, if there is one that a call runs once, at its end."""
        return None

    def weight_specs(self) -> dict[str, QuantizerSpec]:
        """How each quantized weight is quantized now, by role."""
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
        return {
            role: quantize_weight(values[role], spec, lambda role=role: self.weight_ranges()[role])
            for role, spec in self.weight_specs().items()
        }

    def weights_in_use(self) -> dict[str, tf.Tensor]:
        """`quantized_weights`, those of the layer's first call where it is called again in a forward pass."""
        found = _weights_of_pass.get()
        if found is None:
            return self.quantized_weights()
        # A tensor of one graph, such as a loop's body, is of no use in another.
        place = id(self), None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        if place not in found:
            found[place] = self.quantized_weights()
        return found[place]

    def get_config(self) -> dict[str, Any]:
        """The float layer beside Keras' own fields."""
        return {**super().get_config(), "layer": serialize(self.layer), "norm": self.norm_name}


@contextlib.contextmanager
def replaced(layer: keras.layers.Layer, values: dict[str, Any]) -> Iterator[None]:
    """The layer with other values, such as tensors for variables, in the place of some attributes.

    Args:
        layer: the layer.
        values: by attribute, or by path such as "inner.kernel".
    """
    places = [(*_owner(layer, path), value) for path, value in values.items()]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    # Keras' own __setattr__ would track the tensors, or drop the variables that they stand for.
    for owner, name, value in places:
        object.__setattr__(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in kept:
            object.__setattr__(owner, name, value)


def _owner(layer: keras.layers.Layer, path: str) -> tuple[keras.layers.Layer, str]:
    owner, _, name = path.rpartition(".")
    return (operator.attrgetter(owner)(layer) if owner else layer), name
