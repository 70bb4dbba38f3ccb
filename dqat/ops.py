"""The operations as Python functions, and their gradients."""

from typing import Any

import tensorflow as tf

from dqat import native

_ops = native.ops

TensorLike = Any
Range = tuple[tf.Tensor, tf.Tensor]


def _attributes(axis: int | None, group_size: int) -> dict[str, Any]:
    if axis is None:
        if group_size != 1:
            raise ValueError(f"group_size {group_size} needs a channel axis, and axis is None")
        return {"per_channel": False}
    return {"per_channel": True, "axis": axis, "group_size": group_size}


def fake_quant(
    x: TensorLike,
    min: TensorLike,
    max: TensorLike,
    *,
    num_bits: int = 8,
    narrow_range: bool = False,
    axis: int | None = None,
    group_size: int = 1,
) -> tf.Tensor:
    """Rounds `x` to the levels of the nudged range [min, max].

    With the same range, output and gradient to `x` are bit for bit those of
    `tf.quantization.fake_quant_with_min_max_vars` (`..._per_channel` with an axis), after Jacob et al. 2017,
    section 3. The gradient to `min` (`max`) is the sum of the incoming gradient where `x` lies below (above)
    the nudged range.

    Args:
        x: float32, float16 or bfloat16, any shape; arithmetic is in float32.
        min: float32, scalar, or [channels / group_size] with an axis. (+inf, -inf) stands for "no range
            yet": the values pass through.
        max: like `min`; finite with min < max, or both 0.
        num_bits: 2 to 16.
        narrow_range: uses the levels 1 to 2^num_bits - 1.
        axis: channel axis of `x`, negative from the end; None for one range per tensor.
        group_size: so many consecutive channels share a range.

    Returns:
        Like `x`.

    Raises:
        tf.errors.InvalidArgumentError: for a range of wrong shape or value (ValueError where the shapes are
            known when a graph is built).
    """
    return _ops.dqat_fake_quant(
        x, min, max, num_bits=num_bits, narrow_range=narrow_range, **_attributes(axis, group_size)
    )


def fake_quant_track(
    x: TensorLike,
    min: TensorLike,
    max: TensorLike,
    *,
    num_bits: int = 8,
    narrow_range: bool = False,
    axis: int | None = None,
    group_size: int = 1,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`fake_quant` that also records the smallest and largest value of `x`, in the same memory pass.

    Args:
        x: see `fake_quant`; so are the other arguments.
        min: see `fake_quant`.
        max: see `fake_quant`.
        num_bits: see `fake_quant`.
        narrow_range: see `fake_quant`.
        axis: see `fake_quant`.
        group_size: see `fake_quant`.

    Returns:
        y, like `x`, and batch_min and batch_max, like `min`: of the values before quantization. Where `x`
        (or a channel of it) is empty they are (+inf, -inf); where it has a NaN or an Inf, (-inf, +inf). No
        gradient flows through them.

    Raises:
        tf.errors.InvalidArgumentError: as `fake_quant`.
    """
    return _ops.dqat_fake_quant_track(
        x, min, max, num_bits=num_bits, narrow_range=narrow_range, **_attributes(axis, group_size)
    )


def min_max(x: TensorLike, *, axis: int | None = None, group_size: int = 1) -> Range:
    """The record of `x` alone, as `fake_quant_track` gives it.

    Args:
        x: float32, float16 or bfloat16, any shape.
        axis: channel axis, or None for one record per tensor.
        group_size: so many consecutive channels share a record.

    Returns:
        batch_min and batch_max, float32, scalar or [channels / group_size].

    Raises:
        tf.errors.InvalidArgumentError: where `axis` is not an axis of `x`.
    """
    return _ops.dqat_min_max(x, **_attributes(axis, group_size))


def fit_range(
    min: TensorLike,
    max: TensorLike,
    *,
    num_bits: int = 8,
    narrow_range: bool = False,
    symmetric: bool = False,
    power_of_two: bool = False,
) -> Range:
    """The range to quantize with, from a recorded one: contains 0, symmetric or a power of two on request.

    Args:
        min: float32, any shape; an empty range (+inf, -inf) stays empty.
        max: like `min`.
        num_bits: 2 to 16.
        narrow_range: as in `fake_quant`.
        symmetric: 0 stands on the middle level.
        power_of_two: the scale is a power of two and the range within 1 to 64, which is what TFLite's int16
            tanh reads.

    Returns:
        The fitted (min, max); not nudged.
    """
    return _ops.dqat_fit_range(
        min, max, num_bits=num_bits, narrow_range=narrow_range, symmetric=symmetric, power_of_two=power_of_two
    )


def _fake_quant_gradient(op: tf.Operation, dy: tf.Tensor) -> list[tf.Tensor]:
    names = ("num_bits", "narrow_range", "per_channel", "axis", "group_size")
    return list(_ops.dqat_fake_quant_grad(dy, *op.inputs[:3], **{name: op.get_attr(name) for name in names}))


@tf.RegisterGradient("Dqat>FakeQuant")
def _(op: tf.Operation, dy: tf.Tensor) -> list[tf.Tensor]:
    return _fake_quant_gradient(op, dy)


@tf.RegisterGradient("Dqat>FakeQuantTrack")
def _(op: tf.Operation, dy: tf.Tensor, *_records: tf.Tensor) -> list[tf.Tensor]:
    return _fake_quant_gradient(op, dy)


tf.no_gradient("Dqat>MinMax")
tf.no_gradient("Dqat>FitRange")
