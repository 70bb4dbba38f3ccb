"""Which rows of a batch a replica gets."""

from typing import Any

import tensorflow as tf


def rows_of_part(batch: Any, rank: int | tf.Tensor, size: int) -> Any:
    """The consecutive rows of one replica; the parts in rank order are the batch, and sizes differ by one at most.

    Args:
        batch: a structure of tensors with the same number of rows.
        rank: the replica's number.
        size: the number of replicas.
    """
    count = tf.shape(tf.nest.flatten(batch)[0], tf.int64)[0]
    rank = tf.cast(rank, tf.int64)
    begin, end = rank * count // size, (rank + 1) * count // size
    return tf.nest.map_structure(lambda rows: rows[begin:end], batch)


def with_weights(x: Any, y: Any, sample_weight: Any = None, *, size: int) -> tuple[Any, Any, tf.Tensor]:
    """A batch with sample weights, by which the mean of the replicas' mean losses is the mean over the batch.

    A replica's mean divides by its own number of rows, which differs between replicas where the batch does not
    divide: each row's weight is the row's number on its replica over the mean number of rows.
    """
    count = tf.shape(tf.nest.flatten(x)[0], tf.int64)[0]
    ranks = tf.range(size, dtype=tf.int64)
    rows = (ranks + 1) * count // size - ranks * count // size
    weights = tf.repeat(tf.cast(rows * size, tf.float32) / tf.cast(count, tf.float32), rows)
    return x, y, weights if sample_weight is None else weights * tf.cast(sample_weight, tf.float32)
