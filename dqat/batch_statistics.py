"""BatchNormalization over all replicas where Keras does not do it: on an engine outside of tf.distribute.

`BatchNormalization(synchronized=True)` asks tf.distribute for sums over the replicas. Here the same layer asks the
engine, for one vector of sums, squared sums and counts; its formula is Keras' own (mean of squares less the square
of the mean), so that it agrees with one process on the whole batch, and it stays the layer that export folds.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from dqat.keras_api import keras

#: Takes a float32 vector and a name, gives the sum over the replicas, with its gradient.
Total = Callable[[tf.Tensor, str], tf.Tensor]


def synchronize(norm: keras.layers.BatchNormalization, total: Total) -> None:
    """The layer's statistics in training are those of all replicas' rows; a replica may have none.

    Args:
        norm: with `synchronized=True`.
        total: called once for each call of the layer, in the same order on all replicas.
    """
    # Not tracked, and not part of what is saved.
    object.__setattr__(norm, "_sync_calculate_mean_and_var", functools.partial(_mean_and_variance, norm.name, total))


def _mean_and_variance(
    name: str, total: Total, x: tf.Tensor, axes: Sequence[int], keep_dims: bool, mask: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    values = tf.cast(x, tf.float32)
    counts = tf.ones_like(values)
    if mask is not None:
        counts *= tf.cast(mask, tf.float32)[..., tf.newaxis]
    sums = [tf.reduce_sum(part, axes, keepdims=True) for part in (values * counts, tf.square(values) * counts, counts)]
    shape = tf.shape(sums[0])
    vector = tf.concat([tf.reshape(part, [-1]) for part in sums], axis=0)
    first, second, count = tf.split(total(vector, name), 3)
    mean, squares = first / count, second / count
    found: list[Any] = [tf.reshape(part, shape) for part in (mean, squares - tf.square(mean))]
    if not keep_dims:
        found = [tf.squeeze(part, axes) for part in found]
    return tuple(tf.cast(part, x.dtype) for part in found)
