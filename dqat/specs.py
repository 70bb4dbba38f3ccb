"""What a quantizer is: validated descriptions, no state."""

import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dqat.keras_api import register
from dqat.observers import MovingAverage, Observer

#: What weights can keep while they train.
KEPT = ("zeros", "clusters", "zeros and clusters")


@register("dqat")
@dataclass(frozen=True)
class QuantizerSpec:
    """How a tensor is quantized.

    Attributes:
        num_bits: 2 to 16.
        symmetric: 0 stands on the middle level, so the zero point of the signed integer is 0.
        narrow_range: uses one level less, at the negative end (int8: -127 to 127).
        axis: the channel axis of a per-channel range, or None for one range per tensor.
        group_size: with an axis, so many consecutive channels share a range.
        power_of_two: symmetric, and the scale is a power of two: TFLite's int16 cell state.

    Raises:
        ValueError: for a number of bits out of bounds, or options that exclude one another.
    """

    num_bits: int = 8
    symmetric: bool = False
    narrow_range: bool = False
    axis: int | None = None
    group_size: int = 1
    power_of_two: bool = False

    def __post_init__(self) -> None:
        """Validates the fields."""
        if not 2 <= self.num_bits <= 16:
            raise ValueError(f"num_bits must be 2 to 16, got {self.num_bits}")
        if self.group_size < 1 or (self.group_size > 1 and self.axis is None):
            raise ValueError(f"group_size must be at least 1, and 1 without an axis, got {self.group_size}")
        if self.power_of_two and self.narrow_range:
            raise ValueError("power_of_two uses all levels: narrow_range must be False")

    def with_least_bits(self, least: int) -> "QuantizerSpec":
        """The same with so many bits, where that is more."""
        return self if least <= self.num_bits else replace(self, num_bits=least)

    def __str__(self) -> str:
        """The short form that reports show, such as `int8 per tensor, symmetric`."""
        channels = "channel" if self.group_size == 1 else f"{self.group_size} channels"
        words = [
            f"int{self.num_bits} " + ("per tensor" if self.axis is None else f"per {channels} on axis {self.axis}")
        ]
        words += ["symmetric"] if self.symmetric else []
        words += ["scale a power of two"] if self.power_of_two else []
        return ", ".join(words)

    def get_config(self) -> dict[str, Any]:
        """The fields, as Keras serialises them."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizerSpec":
        """The inverse of `get_config`."""
        return cls(**config)


@dataclass(frozen=True)
class Scheme:
    """Which quantizer each kind of tensor gets.

    Attributes:
        activation: outputs of layers and inputs of the model.
        kernel: weight matrices, one range per tensor (TFLite's int8 FULLY_CONNECTED).
        conv_kernel: convolution kernels, seen with the output channels last: one range per output channel.
        gate_kernel: recurrent weight matrices seen as [inputs, gates, units]: one range per gate.
        cell_state: LSTM cell states (TFLite's integer LSTM keeps them in int16).
        observer: how the ranges of activations and states are found.
        kept: what the kernels of Dense layers and convolutions keep while they train: "zeros" (a pruned model's stay
            zero), "clusters" (equal weights of a kernel stay equal), "zeros and clusters"; None for nothing.

    Raises:
        ValueError: for something else to be kept.
    """

    activation: QuantizerSpec = QuantizerSpec()
    kernel: QuantizerSpec = QuantizerSpec(symmetric=True, narrow_range=True)
    conv_kernel: QuantizerSpec = QuantizerSpec(symmetric=True, narrow_range=True, axis=-1)
    gate_kernel: QuantizerSpec = QuantizerSpec(symmetric=True, narrow_range=True, axis=1)
    cell_state: QuantizerSpec = QuantizerSpec(num_bits=16, power_of_two=True)
    observer: Observer = field(default_factory=MovingAverage)
    kept: str | None = None

    def __post_init__(self) -> None:
        """Validates the fields."""
        if self.kept not in (None, *KEPT):
            raise ValueError(f"kept must be one of {', '.join(KEPT)}, or None, got {self.kept!r}")

    @classmethod
    def with_bits(cls, weights: int = 8, activations: int = 8, *, per_channel: bool = True) -> "Scheme":
        """The default scheme with other numbers of bits; cell states keep their 16.

        Models train with any of them. TFLite's integer kernels run 8 bits for both, or weights of 8 and symmetric
        activations of 16 bits (16x8), so only those are exported.

        Args:
            weights: bits of weights, 2 to 16.
            activations: bits of activations, 2 to 16.
            per_channel: whether convolution kernels have a range per output channel, or one per tensor.

        Raises:
            ValueError: for a number of bits out of bounds.
        """
        plain = cls()
        conv_kernel = plain.conv_kernel if per_channel else plain.kernel
        return cls(
            activation=replace(plain.activation, num_bits=activations, symmetric=activations == 16),
            kernel=replace(plain.kernel, num_bits=weights),
            conv_kernel=replace(conv_kernel, num_bits=weights),
            gate_kernel=replace(plain.gate_kernel, num_bits=weights),
        )

    def with_wide_activations(self) -> "Scheme":
        """The same with symmetric activations of 16 bits."""
        return replace(self, activation=replace(self.activation, num_bits=16, symmetric=True, narrow_range=False))

    @property
    def is_8x8(self) -> bool:
        """Whether activations and weights have 8 bits: what TFLite's int8 kernels run."""
        specs = (self.activation, self.kernel, self.conv_kernel, self.gate_kernel)
        return all(spec.num_bits == 8 for spec in specs)

    @property
    def is_16x8(self) -> bool:
        """Whether activations have 16 bits and weights 8: what TFLite's 16x8 kernels run."""
        weights = (self.kernel, self.conv_kernel, self.gate_kernel)
        return self.activation.num_bits == 16 and all(spec.num_bits == 8 for spec in weights)

    @classmethod
    def named(cls, name: str) -> "Scheme":
        """The scheme of a name: "int8", "int4" (bits of weights and activations), "w4a8" (weights, activations).

        "w8a16" is TFLite's 16x8.

        Raises:
            ValueError: for another name.
        """
        found = re.fullmatch(r"int(\d+)", name) or re.fullmatch(r"w(\d+)a(\d+)", name)
        if found is None:
            raise ValueError(f'scheme must be a Scheme or a name such as "int8", "int4" or "w4a8", got {name!r}')
        return cls.with_bits(int(found[1]), int(found[found.lastindex or 1]))
