"""What a rule is, and what it knows beside its layer."""

from collections.abc import Callable
from dataclasses import dataclass

from dqat.keras_api import keras
from dqat.quantizers import Quantizer
from dqat.specs import Scheme


class UnsupportedLayerError(ValueError):
    """A layer that can't be quantized; the message names it and the ways out."""


@dataclass(frozen=True)
class Context:
    """What a rule knows beside its layer.

    Attributes:
        scheme: which quantizer each kind of tensor gets.
        output_is_fused: the only consumer is an activation that TFLite fuses into this layer.
    """

    scheme: Scheme
    output_is_fused: bool = False

    def quantizer(self, role: str) -> Quantizer:
        """A quantizer of activations."""
        return Quantizer(self.scheme.activation, self.scheme.observer, name=role)


#: Takes a float layer, already copied, and returns the layers that stand for it, in order. Raises
#: UnsupportedLayerError where the layer, as configured, has no integer counterpart yet.
Rule = Callable[[keras.layers.Layer, Context], list[keras.layers.Layer]]


def refuse(layer: keras.layers.Layer, reason: str, way_out: str) -> UnsupportedLayerError:
    """The error for a layer that can't be quantized."""
    return UnsupportedLayerError(f"layer {layer.name!r} ({type(layer).__name__}): {reason}. {way_out}")


def unchanged(layer: keras.layers.Layer, context: Context) -> list[keras.layers.Layer]:
    """The rule of layers that pass quantized values on as they are."""
    return [layer]
