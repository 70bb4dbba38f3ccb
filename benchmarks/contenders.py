"""What `benchmarks.ops` times: dqat's ops, TensorFlow's, tfmot's composition and a plain pass over the memory."""

from collections.abc import Callable, Sequence
from functools import partial

import tensorflow as tf

import dqat

Call = Callable[[], object]
Range = Sequence[tf.Tensor]
Average = Callable[[Range], Range]

#: Of the moving averages: tfmot's default.
_DECAY = 0.999


def _range(channels: int | None) -> Range:
    # For standard normal values: 2% are clipped.
    shape = [] if channels is None else [channels]
    return tf.fill(shape, tf.constant(-2.3)), tf.fill(shape, tf.constant(2.4))


def _tensorflow(x: tf.Tensor, dy: tf.Tensor, low: tf.Tensor, high: tf.Tensor, per_channel: bool) -> dict[str, Call]:
    raw = tf.raw_ops
    if per_channel:
        forward, gradient = raw.FakeQuantWithMinMaxVarsPerChannel, raw.FakeQuantWithMinMaxVarsPerChannelGradient
    else:
        forward, gradient = raw.FakeQuantWithMinMaxVars, raw.FakeQuantWithMinMaxVarsGradient
    return {
        "tf_forward": partial(forward, inputs=x, min=low, max=high),
        "tf_gradient": partial(gradient, gradients=dy, inputs=x, min=low, max=high),
    }


def _step(x: tf.Tensor, low: tf.Tensor, high: tf.Tensor, body: Callable[..., tf.Tensor]) -> Call:
    """A tf.function of `x` around `body(values, range, average)`; `average` takes a record, gives the new range.

    The averages are tfmot's, in the same small ops for everyone, so that the steps differ in the large ones.
    """
    lowest, highest = tf.Variable(low), tf.Variable(high)

    def average(record: Range) -> Range:
        new = tf.minimum(record[0], 0.0), tf.maximum(record[1], 0.0)
        return tuple(
            variable.assign_sub((variable - value) * (1.0 - _DECAY), read_value=True)
            for variable, value in zip((lowest, highest), new, strict=True)
        )

    @tf.function
    def step(values: tf.Tensor) -> tf.Tensor:
        return body(values, (lowest.read_value(), highest.read_value()), average)

    return partial(step, x)


def _tfmot(per_channel: bool, values: tf.Tensor, _: Range, average: Average) -> tf.Tensor:
    """The forward pass of tfmot 0.8's MovingAverageQuantizer in training, written anew."""
    axes = list(range(values.shape.rank - 1)) if per_channel else None
    new = average((tf.reduce_min(values, axes), tf.reduce_max(values, axes)))
    if per_channel:
        return tf.quantization.fake_quant_with_min_max_vars_per_channel(values, *new)
    return tf.quantization.fake_quant_with_min_max_vars(values, *new)


def _delayed(axis: int | None, values: tf.Tensor, present: Range, average: Average) -> tf.Tensor:
    y, *record = dqat.ops.fake_quant_track(values, *present, axis=axis)
    average(record)
    return y


def _exact(axis: int | None, values: tf.Tensor, _: Range, average: Average) -> tf.Tensor:
    return dqat.ops.fake_quant(values, *average(dqat.ops.min_max(values, axis=axis)), axis=axis)


def _plain(values: tf.Tensor, *_: object) -> tf.Tensor:
    return values * 0.5


def _quantizer_step(x: tf.Tensor, axis: int | None) -> Call:
    """What dqat's own quantizer adds to a delayed step, without the packing and the collective."""
    spec = dqat.QuantizerSpec(axis=axis)
    quantizer = dqat.quantizers.Quantizer(spec, dqat.observers.MovingAverage(_DECAY))
    quantizer.build(x.shape)

    @tf.function
    def step(values: tf.Tensor) -> tf.Tensor:
        y, record = quantizer.quantize_and_track(values, quantizer.range())
        quantizer.observe(record)
        return y

    return partial(step, x)


def contenders(shape: tuple[int, ...], per_channel: bool) -> dict[str, Call]:
    """All of them on one tensor of standard normal values.

    Args:
        shape: of the tensor; its last axis is the channel axis.
        per_channel: a range for each channel, or one for the tensor.
    """
    generator = tf.random.Generator.from_seed(0)
    x, dy = generator.normal(shape), generator.normal(shape)
    low, high = _range(shape[-1] if per_channel else None)
    axis = -1 if per_channel else None
    attributes = {"num_bits": 8, "narrow_range": False, "per_channel": per_channel, "axis": -1}
    gradient = partial(dqat.native.ops.dqat_fake_quant_grad, dy, x, low, high, **attributes)
    reach = dqat.native.ops.dqat_fake_quant_track(x, low, high, **attributes).reach
    constant = tf.constant(0.5)
    return {
        "pass": partial(tf.raw_ops.Mul, x=x, y=constant),
        "pass_by_channel": partial(tf.raw_ops.Mul, x=x, y=tf.fill(low.shape, constant)),
        "forward": partial(dqat.ops.fake_quant, x, low, high, axis=axis),
        "track": partial(dqat.ops.fake_quant_track, x, low, high, axis=axis),
        "exact": lambda: dqat.ops.fake_quant(x, *dqat.ops.min_max(x, axis=axis), axis=axis),
        "gradient": gradient,
        "tracked_gradient": gradient if per_channel else partial(dqat.native.ops.dqat_reach_grad, dy, reach),
        "pass_of_two": partial(tf.raw_ops.Mul, x=x, y=dy),
        **_tensorflow(x, dy, low, high, per_channel),
        "delayed_step": _step(x, low, high, partial(_delayed, axis)),
        "exact_step": _step(x, low, high, partial(_exact, axis)),
        "quantizer_step": _quantizer_step(x, axis),
        "pass_step": _step(x, low, high, _plain),
        "tfmot_step": _step(x, low, high, partial(_tfmot, per_channel)),
    }
