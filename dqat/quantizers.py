"""Quantizers: Keras layers that hold a range, and the quantization of weights, which needs no state."""

from typing import Any

import tensorflow as tf

from dqat import ops
from dqat.keras_api import deserialize, keras, register, serialize
from dqat.observers import EMPTY, Fixed, MovingAverage, Observer, Range
from dqat.range_sync import RangeSync
from dqat.specs import QuantizerSpec


@register("dqat")
class Quantizer(keras.layers.Layer):
    """Fake-quantizes activations and keeps their range.

    While training, the layer records the extremes of its input and hands them to the model's range sync; when
    a step uses them is the sync's mode. Otherwise it quantizes with the range as it is.

    Args:
        spec: how the tensor is quantized.
        observer: how the range is found.

    Attributes:
        path: the name in reports and errors; `quantize_model` sets it to "layer/role".
        range_sync: set by the model that owns the quantizer.
        skipped: int64 scalar, records left out for a NaN or an Inf.
    """

    def __init__(self, spec: QuantizerSpec | None = None, observer: Observer | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec or QuantizerSpec()
        self.observer = observer or MovingAverage()
        self.path = self.name
        self.range_sync: RangeSync | None = None

    def build(self, input_shape: Any) -> None:
        """Makes the variables: float32 range, scalar or [channels], empty."""
        shape = []
        if self.spec.axis is not None:
            shape = [tf.TensorShape(input_shape)[self.spec.axis]]
            if shape[0] is None:
                raise ValueError(f"{self.path}: axis {self.spec.axis} of {input_shape} has no static size")
            if shape[0] % self.spec.group_size:
                raise ValueError(f"{self.path}: group_size {self.spec.group_size} does not divide {shape[0]} channels")
            shape[0] //= self.spec.group_size
        start = EMPTY
        if isinstance(self.observer, Fixed):
            start = self.observer.min, self.observer.max
        self.min, self.max = (
            self.add_weight(
                name=f"{self.name}_{name}",
                shape=shape,
                dtype=tf.float32,
                initializer=keras.initializers.Constant(value),
                trainable=False,
                experimental_autocast=False,
            )
            for name, value in zip(("min", "max"), start, strict=True)
        )
        self.skipped = self.add_weight(
            name=f"{self.name}_skipped", shape=[], dtype=tf.int64, initializer="zeros", trainable=False
        )
        super().build(input_shape)

    def range(self) -> Range:
        """The range in use now: fitted to the spec, not nudged; empty before the first record."""
        return self._fit((self.min.read_value(), self.max.read_value()))

    def _fit(self, range_: Range) -> Range:
        return ops.fit_range(
            *range_,
            num_bits=self.spec.num_bits,
            narrow_range=self.spec.narrow_range,
            symmetric=self.spec.symmetric,
            power_of_two=self.spec.power_of_two,
        )

    def quantize(self, x: tf.Tensor, range_: Range) -> tf.Tensor:
        """Fake-quantizes with a given range."""
        return ops.fake_quant(
            x,
            *range_,
            num_bits=self.spec.num_bits,
            narrow_range=self.spec.narrow_range,
            axis=self.spec.axis,
            group_size=self.spec.group_size,
        )

    def quantize_and_track(self, x: tf.Tensor, range_: Range) -> tuple[tf.Tensor, Range]:
        """Fake-quantizes with a given range and records the extremes of `x` in the same pass."""
        y, low, high = ops.fake_quant_track(
            x,
            *range_,
            num_bits=self.spec.num_bits,
            narrow_range=self.spec.narrow_range,
            axis=self.spec.axis,
            group_size=self.spec.group_size,
        )
        return y, (low, high)

    def call(self, x: tf.Tensor, training: bool | tf.Tensor | None = None) -> tf.Tensor:
        """Quantizes `x`; records its extremes where `training`."""
        if isinstance(self.observer, Fixed) or training is None or training is False or self._sync().frozen:
            return self.quantize(x, self.range())
        if self._sync().mode == "exact":
            record = self.masked(ops.min_max(x, axis=self.spec.axis, group_size=self.spec.group_size), training)
            return self.quantize(x, self._fit(self._sync().reduce_now(self, record)))
        y, record = self.quantize_and_track(x, self.range())
        self.submit(record, training)
        return y

    def submit(self, record: Range, training: bool | tf.Tensor) -> None:
        """Leaves a record for the end of the step; an empty one where `training` is a tensor that is false."""
        self._sync().submit(self, self.masked(record, training))

    def masked(self, record: Range, training: bool | tf.Tensor) -> Range:
        """The record where `training`, else an empty one."""
        if isinstance(training, (bool, int)):
            return record
        training = tf.cast(training, tf.bool)
        return tuple(tf.where(training, part, nothing) for part, nothing in zip(record, EMPTY, strict=True))

    def _sync(self) -> RangeSync:
        if self.range_sync is None:
            self.range_sync = RangeSync()
        return self.range_sync

    def empty_record(self) -> Range:
        """A record of nothing, in the shape of the range."""
        return tuple(tf.fill(self.min.shape, nothing) for nothing in EMPTY)

    def observe(self, record: Range) -> Range:
        """Updates the range with a reduced record; returns it, unfitted."""
        low, high = tf.minimum(record[0], 0.0), tf.maximum(record[1], 0.0)
        empty = record[0] > record[1]
        record = tf.where(empty, record[0], low), tf.where(empty, record[1], high)
        updated = self.observer.update((self.min.read_value(), self.max.read_value()), record)
        self.min.assign(updated[0])
        self.max.assign(updated[1])
        return updated

    def count_skipped(self, bad: tf.Tensor) -> None:
        """Counts a record that was left out."""
        self.skipped.assign_add(tf.cast(bad, tf.int64))

    def get_config(self) -> dict[str, Any]:
        """Spec and observer beside Keras' own fields."""
        return {
            **super().get_config(),
            "spec": serialize(self.spec),
            "observer": serialize(self.observer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Quantizer":
        """The inverse of `get_config`."""
        return cls(**{**config, "spec": deserialize(config["spec"]), "observer": deserialize(config["observer"])})


def weight_range(weight: tf.Tensor, spec: QuantizerSpec) -> Range:
    """The range of a weight tensor: always that of its present values, so it needs no state and no sync.

    Args:
        weight: float32, any shape.
        spec: its axis says whether the range is scalar or [channels].

    Returns:
        The fitted (min, max).
    """
    return ops.fit_range(
        *ops.min_max(weight, axis=spec.axis, group_size=spec.group_size),
        num_bits=spec.num_bits,
        narrow_range=spec.narrow_range,
        symmetric=spec.symmetric,
        power_of_two=spec.power_of_two,
    )


def quantize_weight(weight: tf.Tensor, spec: QuantizerSpec) -> tf.Tensor:
    """Fake-quantizes a weight tensor with the range of its present values; shape and dtype stay."""
    return ops.fake_quant(
        weight,
        *weight_range(weight, spec),
        num_bits=spec.num_bits,
        narrow_range=spec.narrow_range,
        axis=spec.axis,
        group_size=spec.group_size,
    )
