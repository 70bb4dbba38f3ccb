"""What a rule is, and what it knows beside its layer."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from dqat.graph import Call
from dqat.keras_api import keras
from dqat.layers.cell_form import prescribed
from dqat.observers import Fixed
from dqat.quantizers import Quantizer, SharedQuantizer
from dqat.specs import Scheme


class UnsupportedLayerError(ValueError):
    """A layer that can't be quantized; the message names it and the ways out."""


@dataclass
class SharedRange:
    """Tensors that TFLite's kernels want on one scale; the first quantizer that is made for them has the range.

    Attributes:
        members: names of the layers, for messages.
        owner: that quantizer, once it is made.
    """

    members: list[str] = field(default_factory=list)
    owner: Quantizer | None = None
    owner_name: str = ""


@dataclass(frozen=True)
class Context:
    """What a rule knows beside its layer.

    Attributes:
        scheme: which quantizer each kind of tensor gets.
        output_is_fused: the only consumer of each output is computed inside this layer's operation: an
            activation that TFLite fuses, or a BatchNormalization that export folds.
        norm: name of that BatchNormalization, or None.
        shared: the range that the layer's output must be in, where others must too.
        shared_states: the same for each state that a recurrent layer returns.
        calls: the layer's calls in the float model.
    """

    scheme: Scheme
    output_is_fused: bool = False
    norm: str | None = None
    shared: SharedRange | None = None
    shared_states: tuple[SharedRange | None, ...] = ()
    calls: tuple[Call, ...] = ()

    @property
    def has_initial_state(self) -> bool:
        """Whether a recurrent layer is called with initial states beside its input."""
        return any(len(call.inputs) > 1 for call in self.calls)

    def quantizer(self, role: str, fixed: Fixed | None = None, *, symmetric: bool = False) -> Quantizer:
        """A quantizer of activations inside a layer, with the zero point 0 on request."""
        spec = self.scheme.activation
        fixed = prescribed(fixed, spec.num_bits)
        return Quantizer(replace(spec, symmetric=True) if symmetric else spec, fixed or self.scheme.observer, name=role)

    def output(self, layer: keras.layers.Layer, role: str = "output", fixed: Fixed | None = None) -> Quantizer:
        """The quantizer of what the layer gives to others, in the range that it shares with them.

        Args:
            layer: for messages.
            role: the quantizer's name.
            fixed: the range that TFLite's kernel prescribes.

        Raises:
            UnsupportedLayerError: where another prescribed range, or a prescribed and a free one, must be one.
        """
        if self.shared is None:
            return self.quantizer(role, fixed)
        if self.shared.owner is None:
            self.shared.owner, self.shared.owner_name = self.quantizer(role, fixed), layer.name
            return self.shared.owner
        there, fixed = self.shared.owner.observer, prescribed(fixed, self.scheme.activation.num_bits)
        if (fixed is not None or isinstance(there, Fixed)) and fixed != there:
            ranges = [
                f"[{one.min:g}, {one.max:g}]" if isinstance(one, Fixed) else "one found in training"
                for one in (there, fixed)
            ]
            raise refuse(
                layer,
                f"its output must have the range of layer {self.shared.owner_name!r}, since "
                f"{', '.join(self.shared.members)} need one scale, but those ranges are {ranges[1]} and {ranges[0]}",
                "Put a dqat.layers.QuantizePoint between, which requantizes",
            )
        return SharedQuantizer(self.shared.owner, name=role)


#: Takes a float layer, already copied, and returns the layers that stand for it, in order. Raises
#: UnsupportedLayerError where the layer, as configured, has no integer counterpart yet.
Rule = Callable[[keras.layers.Layer, Context], list[keras.layers.Layer]]


def refuse(layer: keras.layers.Layer, reason: str, way_out: str) -> UnsupportedLayerError:
    """The error for a layer that can't be quantized."""
    return UnsupportedLayerError(f"layer {layer.name!r} ({type(layer).__name__}): {reason}. {way_out}")


def refuse_16_bits(layer: keras.layers.Layer, operator: str) -> UnsupportedLayerError:
    """The error for a layer whose operator takes int8 activations only."""
    reason = f"TFLite's operator {operator} has no kernel for int16 activations (16x8)"
    return refuse(layer, reason, 'Use scheme="int8", or another layer')


def unchanged(layer: keras.layers.Layer, context: Context) -> list[keras.layers.Layer]:
    """The rule of layers that pass quantized values on as they are."""
    return [layer]
