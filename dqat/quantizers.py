"""Quantizers: Keras layers that hold a range, and the quantization of weights, which needs no state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from dqat import ops, serving
from dqat.keras_api import deserialize, keras, register, serialize
from dqat.observers import EMPTY, Fixed, LearnedStep, MovingAverage, Observer, Range, Record
from dqat.range_sync import RangeSync
from dqat.specs import QuantizerSpec

#: Options of variables that every replica updates for itself, with the same reduced records and so to the same
#: bits. A checkpoint holds the first replica's, and gives it to all.
PER_REPLICA = {
    "trainable": False,
    "synchronization": tf.VariableSynchronization.ON_READ,
    "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
}
#: What a quantizer can compute of its input before it quantizes.
ACTIVATIONS = {"linear": lambda x: x, "relu": tf.nn.relu, "relu6": tf.nn.relu6}
#: A learned step that an optimizer's update would bring below this stays here.
_SMALLEST_STEP = 2.0**-24


class StepInUse(NamedTuple):
    """A learned step, float32, and whether its levels are signed, bool."""

    step: tf.Tensor
    signed: tf.Tensor


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
        is_shared: whether several tensors have this range: it is then the one known at the start of the step in
            every sync mode, since their records must come together first.
        spec: in use now: as given, but for bits that `set_least_bits` has raised.
        own_spec: as given.
        requested_observer: as given; `observer` is the one that suits the spec.
        skipped: int64 scalar, records left out for a NaN or an Inf.
        counts: int64 [bins], the histogram in units of 1/1024; for observers that need counts only. `lowest`
            and `highest`, float32 scalars, are then the extremes of all values since the start.
        step: float32 scalar, trainable, 0 before the first record; for `LearnedStep` only.

    Raises:
        ValueError: where the observer can't work with the spec.
    """

    def __init__(self, spec: QuantizerSpec | None = None, observer: Observer | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._autograph = False  # nothing here branches on a tensor, and converting each call takes time
        self.spec = self.own_spec = spec or QuantizerSpec()
        self.requested_observer = observer or MovingAverage()
        self.observer = self.requested_observer.suited_to(self.spec)
        self.path = self.name
        self.supports_masking = True
        self.range_sync: RangeSync | None = None
        self.is_shared = False

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
        self.min, self.max = self._add_floats(zip(("min", "max"), start, strict=True), shape)
        self.skipped = self._add_integers("skipped", [])
        if self.observer.needs_counts:
            self.counts = self._add_integers("counts", [ops.HISTOGRAM_BINS])
            self.lowest, self.highest = self._add_floats(zip(("lowest", "highest"), EMPTY, strict=True), [])
        if isinstance(self.observer, LearnedStep):
            trained = {"trainable": True, "synchronization": tf.VariableSynchronization.AUTO}
            (self.step,) = self._add_floats([("step", 0.0)], [], **trained, constraint=_not_negative)
        super().build(input_shape)

    def _add_floats(self, starts: Any, shape: list[int], **options: Any) -> list[tf.Variable]:
        return [
            self.add_weight(
                name=f"{self.name}_{name}",
                shape=shape,
                dtype=tf.float32,
                initializer=keras.initializers.Constant(value),
                experimental_autocast=False,
                **{**PER_REPLICA, **options},
            )
            for name, value in starts
        ]

    def _add_integers(self, name: str, shape: list[int]) -> tf.Variable:
        return self.add_weight(
            name=f"{self.name}_{name}", shape=shape, dtype=tf.int64, initializer="zeros", **PER_REPLICA
        )

    def prescribe(self, spec: QuantizerSpec, observer: Fixed) -> None:
        """From now on quantizes as `spec` says, in a range that is known; call it before the model is compiled."""
        self.spec = self.own_spec = spec
        self.observer = self.requested_observer = observer
        self.min.assign(tf.fill(self.min.shape, float(observer.min)))
        self.max.assign(tf.fill(self.max.shape, float(observer.max)))

    def set_least_bits(self, least: int) -> None:
        """From the next trace on quantizes with so many bits at least; 0 for those of the spec."""
        self.spec = self.own_spec.with_least_bits(least)

    @property
    def has_range(self) -> bool:
        """Whether `range` can be asked."""
        return True

    def range(self) -> Range:
        """The range in use now: fitted to the spec, not nudged; empty before the first record."""
        if isinstance(self.observer, LearnedStep):
            step, signed = self._step_in_use()
            levels = ops.learned_levels(self.spec.num_bits, signed, self.spec.narrow_range)
            return tuple(
                tf.where(step > 0.0, step * level, nothing) for level, nothing in zip(levels, EMPTY, strict=True)
            )
        return self._fit((self.min.read_value(), self.max.read_value()))

    def scale(self) -> tf.Tensor:
        """The distance of two levels of the range in use; not positive before the first record."""
        return range_scale(self.range(), self.spec)

    def in_use(self) -> Range | StepInUse:
        """What `quantize_and_track` quantizes with. A recurrence reads it once, at its start."""
        return self._step_in_use() if isinstance(self.observer, LearnedStep) else self.range()

    def _step_in_use(self) -> StepInUse:
        return StepInUse(self.step.read_value(), self.min.read_value() < 0.0)

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

    def quantize_and_track(
        self,
        x: tf.Tensor,
        in_use: Range | StepInUse,
        *,
        repeats: int | tf.Tensor = 1,
        activation: str = "linear",
        exact: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, Record]:
        """Fake-quantizes with what `in_use` gave and records `x` in the same pass.

        Args:
            x: float32 [batch, ...].
            in_use: of this quantizer.
            repeats: the number of tensors like `x` in a step, such as timesteps; a learned step's gradient is
                scaled by the elements of a whole sample.
            activation: of `x`, "linear", "relu" or "relu6": what is quantized and recorded is its result.
            exact: what TFLite's operator gives, like `x`, where that is not the level next to `x`; it is given in the
                quantized value's place. Record and gradient are those of `x`.
        """
        one_pass = self.spec.axis is None and not isinstance(in_use, StepInUse) and not self.observer.needs_counts
        if not one_pass:
            x, activation = ACTIVATIONS[activation](x), "linear"
        options = {"num_bits": self.spec.num_bits, "narrow_range": self.spec.narrow_range}
        if isinstance(in_use, StepInUse):
            elements = tf.reduce_prod(tf.shape(x, tf.int64)[1:]) * tf.cast(repeats, tf.int64)
            y, *record = ops.fake_quant_learned_track(
                x, in_use.step, signed=in_use.signed, elements=elements, **options
            )
        elif self.observer.needs_counts:
            y, *record = ops.fake_quant_histogram(x, *in_use, **options)
        else:
            granularity = {"axis": self.spec.axis, "group_size": self.spec.group_size}
            y, *record = ops.fake_quant_track(x, *in_use, activation=activation, **granularity, **options)
        return _with_values(y, exact), tuple(record)

    def record(self, x: tf.Tensor) -> Record:
        """The record of `x` alone."""
        if self.observer.needs_counts:
            return tuple(ops.histogram(x))
        return tuple(ops.min_max(x, axis=self.spec.axis, group_size=self.spec.group_size))

    def call(
        self,
        x: tf.Tensor,
        training: bool | tf.Tensor | None = None,
        activation: str = "linear",
        exact: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Quantizes the activation of `x`; records it where `training`.

        Args:
            x: what to quantize.
            training: whether this is a training step.
            activation: "linear", "relu" or "relu6".
            exact: see `quantize_and_track`.
        """
        return _with_values(self._quantized(x, training, activation), exact)

    def _quantized(self, x: tf.Tensor, training: bool | tf.Tensor | None, activation: str) -> tf.Tensor:
        fixed = isinstance(self.observer, Fixed)
        at_rest = fixed or training is None or training is False or self._sync().frozen
        if not at_rest and (self._sync().mode != "exact" or self.is_shared):
            y, record = self.quantize_and_track(x, self.in_use(), activation=activation)
            self.submit(record, training)
            return y
        x = ACTIVATIONS[activation](x)
        if at_rest:
            saved = serving.fake_quant(x, self.range, self.spec)
            return self.quantize(x, self.range()) if saved is None else saved
        record = self.masked(self.record(x), training)
        return self._sync().quantize_exactly(self, record, x, lambda range_: self._quantize_in(x, range_))

    def _quantize_in(self, x: tf.Tensor, observed: Range) -> tf.Tensor:
        if isinstance(self.observer, LearnedStep):
            return self.quantize_and_track(x, self.in_use())[0]
        return self.quantize(x, self._fit(observed))

    def submit(self, record: Record, training: bool | tf.Tensor) -> None:
        """Leaves a record for the end of the step; an empty one where `training` is a tensor that is false."""
        self._sync().submit(self, self.masked(record, training))

    def masked(self, record: Record, training: bool | tf.Tensor) -> Record:
        """The record where `training`, else an empty one."""
        if isinstance(training, (bool, int)):
            return record
        training = tf.cast(training, tf.bool)
        return tuple(
            tf.where(training, part, nothing) for part, nothing in zip(record, self.empty_record(), strict=True)
        )

    def _sync(self) -> RangeSync:
        if self.range_sync is None:
            self.range_sync = RangeSync()
        return self.range_sync

    def empty_record(self) -> Record:
        """A record of nothing, in the shape of the range."""
        extremes = tuple(tf.fill(self.min.shape, nothing) for nothing in EMPTY)
        return (*extremes, tf.zeros_like(self.counts)) if self.observer.needs_counts else extremes

    def observe(self, record: Record) -> Range:
        """Updates the range with a reduced record that contains 0 or is empty; returns it, unfitted."""
        before = self.min.read_value(), self.max.read_value()
        counted = self.observer.needs_counts
        updated = self._observe_counts(record) if counted else self.observer.update(before, record)
        if isinstance(self.observer, LearnedStep):
            self._adapt_step(before, updated)
        self.min.assign(updated[0])
        self.max.assign(updated[1])
        return updated

    def _observe_counts(self, record: Record) -> Range:
        # The extremes never fade: a bin that is still counted is never cut off by them.
        extremes = tf.minimum(self.lowest, record[0]), tf.maximum(self.highest, record[1])
        counts = self.observer.accumulate(self.counts.read_value(), record)
        for variable, value in zip((self.lowest, self.highest, self.counts), (*extremes, counts), strict=True):
            variable.assign(value)
        return self.observer.range_of(counts, extremes, self.spec)

    def _adapt_step(self, before: Range, extremes: Range) -> None:
        """Gives the step its first value, and keeps the upper end of the range when levels become signed."""
        step, signed = self.step.read_value(), extremes[0] < 0.0
        lowest, highest = ops.learned_levels(self.spec.num_bits, signed, self.spec.narrow_range)
        first = tf.maximum(tf.math.divide_no_nan(extremes[0], lowest), extremes[1] / highest)
        first = tf.where(extremes[0] > extremes[1], 0.0, first)
        _, unsigned_highest = ops.learned_levels(self.spec.num_bits, False, self.spec.narrow_range)
        becomes_signed = tf.logical_and(signed, before[0] >= 0.0)
        kept = tf.where(becomes_signed, step * (unsigned_highest / highest), step)
        self.step.assign(tf.where(step > 0.0, kept, first))

    def count_skipped(self, bad: tf.Tensor) -> None:
        """Counts a record that was left out."""
        self.skipped.assign_add(tf.cast(bad, tf.int64))

    def get_config(self) -> dict[str, Any]:
        """Spec and observer beside Keras' own fields."""
        return {
            **super().get_config(),
            "spec": serialize(self.own_spec),
            "observer": serialize(self.requested_observer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Quantizer":
        """The inverse of `get_config`."""
        return cls(**{**config, "spec": deserialize(config["spec"]), "observer": deserialize(config["observer"])})


@register("dqat")
class SharedQuantizer(Quantizer):
    """Quantizes with another quantizer's range, and gives it its records: for tensors that must share a range.

    Args:
        owner: the path ("layer/role") of the quantizer that holds the range, or that quantizer. A path is found
            by the model that both belong to; until then values pass through.
    """

    def __init__(self, owner: "str | Quantizer", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._owner_path = owner if isinstance(owner, str) else ""
        object.__setattr__(self, "owner", None)
        if not isinstance(owner, str):
            self.connect(owner)

    @property
    def owner_path(self) -> str:
        """Where the range is found."""
        return self._owner_path if self.owner is None else self.owner.path

    @property
    def has_range(self) -> bool:
        """Whether the owner was found yet."""
        return self.owner is not None

    def connect(self, owner: Quantizer) -> None:
        """Tells which quantizer holds the range."""
        object.__setattr__(self, "owner", owner)  # not tracked: another layer has it
        self.spec, self.own_spec = owner.spec, owner.own_spec
        self.observer, self.requested_observer = owner.observer, owner.requested_observer

    def build(self, input_shape: Any) -> None:
        """There are no variables."""
        keras.layers.Layer.build(self, input_shape)

    def range(self) -> Range:
        """That of the owner."""
        return self.owner.range()

    def in_use(self) -> Range | StepInUse:
        """That of the owner."""
        return self.owner.in_use()

    def empty_record(self) -> Record:
        """That of the owner."""
        return self.owner.empty_record()

    def submit(self, record: Record, training: bool | tf.Tensor) -> None:
        """Leaves the record with the owner's."""
        self.owner.submit(record, training)

    def _quantized(self, x: tf.Tensor, training: bool | tf.Tensor | None, activation: str) -> tf.Tensor:
        """As the owner does."""
        if self.owner is None:
            return ACTIVATIONS[activation](x)
        return self.owner(x, training=training, activation=activation)

    def get_config(self) -> dict[str, Any]:
        """Where the range is found."""
        return {**keras.layers.Layer.get_config(self), "owner": self.owner_path}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SharedQuantizer":
        """The inverse of `get_config`."""
        return cls(**config)


def _with_values(y: tf.Tensor, exact: tf.Tensor | None) -> tf.Tensor:
    """The values of `exact`, where there is one, with the gradient of `y`."""
    return y if exact is None else tf.stop_gradient(exact) + (y - tf.stop_gradient(y))


def _not_negative(step: tf.Tensor) -> tf.Tensor:
    # 0 stands for "not known yet" and stays.
    return tf.where(tf.equal(step, 0.0), step, tf.maximum(step, _SMALLEST_STEP))


def __getattr__(name: str) -> Any:
    # tfmot's users look for these here; they build on this module.
    if name in ("AllValuesQuantizer", "FixedQuantizer", "LastValueQuantizer", "MovingAverageQuantizer"):
        from dqat import quantizer_factories

        return getattr(quantizer_factories, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def range_scale(range_: Range, spec: QuantizerSpec) -> tf.Tensor:
    """The distance of two levels of a range."""
    return (range_[1] - range_[0]) / (2.0**spec.num_bits - (2.0 if spec.narrow_range else 1.0))


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


def quantize_weight(weight: tf.Tensor, spec: QuantizerSpec, range_: Callable[[], Range] | None = None) -> tf.Tensor:
    """Fake-quantizes a weight tensor with the range of its present values; shape and dtype stay.

    A symmetric range leaves no weight outside, so that the gradient is passed on as it is, without a pass over the
    weights. (The op's own gradient would stop at a largest weight that lies outside by a float32 rounding.)

    Args:
        weight: float32, any shape.
        spec: how.
        range_: gives that range, for the SavedModels that keep it as a constant.
    """
    saved = None if range_ is None else serving.fake_quant(weight, range_, spec)
    if saved is not None:
        return saved

    def quantized(weight: tf.Tensor) -> tf.Tensor:
        return ops.fake_quant(
            weight,
            *weight_range(weight, spec),
            num_bits=spec.num_bits,
            narrow_range=spec.narrow_range,
            axis=spec.axis,
            group_size=spec.group_size,
        )

    if not spec.symmetric:
        return quantized(weight)
    return tf.custom_gradient(lambda weight: (quantized(weight), tf.identity))(weight)
