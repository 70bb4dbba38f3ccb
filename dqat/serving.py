"""Fake-quantization in a SavedModel: TensorFlow's own operations on constant ranges, wherever they can do it.

The bits are those of dqat's operations. What is saved so needs no op library to serve, and TensorFlow's TFLite
converter reads it as it reads any quantization-aware model.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from dqat.observers import Range
from dqat.specs import QuantizerSpec

_saving: contextvars.ContextVar[bool] = contextvars.ContextVar("dqat_saving", default=False)


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """What is traced inside is for a SavedModel."""
    token = _saving.set(True)
    try:
        yield
    finally:
        _saving.reset(token)


def is_saving() -> bool:
    """Whether a SavedModel is traced now."""
    return _saving.get()


def fake_quant(x: tf.Tensor, range_: Callable[[], Range], spec: QuantizerSpec) -> tf.Tensor | None:
    """Fake-quantizes with the present range as a constant, while a SavedModel is traced.

    Args:
        x: float32.
        range_: gives the range, fitted; called outside of the graph under construction.
        spec: how to quantize.

    Returns:
        Like `x`; None where nothing is being saved, or where TensorFlow's operations can't do it: ranges per group
        of channels, or per channel on another axis than the last, and other dtypes.
    """
    if not _saving.get() or x.dtype != tf.float32:
        return None
    if spec.axis is not None and (spec.group_size != 1 or spec.axis not in (-1, x.shape.rank - 1)):
        return None
    with tf.init_scope():
        if not tf.executing_eagerly():
            return None
        low, high = (part.numpy() for part in range_())
    if np.isposinf(low).all():
        return tf.identity(x)  # no range yet
    if not np.isfinite([low, high]).all():
        return None
    one_or_each = (
        tf.quantization.fake_quant_with_min_max_vars
        if spec.axis is None
        else tf.quantization.fake_quant_with_min_max_vars_per_channel
    )
    return one_or_each(x, low, high, num_bits=spec.num_bits, narrow_range=spec.narrow_range)


def as_constant(make: Callable[[], tf.Tensor]) -> tf.Tensor:
    """A tensor that is computed from variables; while a SavedModel is traced, its present value as a constant."""
    if _saving.get():
        with tf.init_scope():
            if tf.executing_eagerly():
                return tf.constant(make().numpy())
    return make()
