"""Quantizers with the names, arguments and semantics of `tfmot.quantization.keras.quantizers`."""

import abc
from typing import Any

import tensorflow as tf

from dqat.keras_api import keras, register
from dqat.observers import AllValues, Fixed, LastValue, MovingAverage, Observer
from dqat.quantizers import Quantizer
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

    def spec(self) -> QuantizerSpec:
        """How it quantizes, in dqat's words."""
        axis = -1 if self.per_axis else None
        return QuantizerSpec(self.num_bits, self.symmetric, self.narrow_range, axis)

    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        """The state is a `dqat.quantizers.Quantizer`, and its variables under tfmot's names."""
        quantizer = Quantizer(self.spec(), self._observer(), name=name)
        quantizer.build(tensor_shape)
        return {"quantizer": quantizer, "min_var": quantizer.min, "max_var": quantizer.max}

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
    """The range of the last step; for weights, which are known before they are quantized, that of this step."""

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
