"""Weights that keep a structure while they train: pruned ones stay zero, clustered ones stay equal."""

import warnings

import numpy as np
import tensorflow as tf

#: A kernel with more distinct values is none that was clustered, as in TensorFlow Model Optimization.
MOST_CLUSTERS = 1024
#: Group of the weights that stay zero, and of those that train by themselves.
ZERO, FREE = -1, -2


def groups_of(weight: np.ndarray, kept: str, name: str) -> np.ndarray:
    """Which weights belong together.

    Args:
        weight: any shape.
        kept: one of `dqat.specs.KEPT`.
        name: for warnings.

    Returns:
        int32 of the same shape: equal numbers for weights that stay equal, `ZERO` or `FREE`.
    """
    zeros = (weight == 0) & (kept != "clusters")
    groups = np.full(weight.shape, FREE, np.int32)
    if kept != "zeros":
        values, found = np.unique(weight, return_inverse=True)
        if 1 < len(values) <= MOST_CLUSTERS:
            groups = found.reshape(weight.shape).astype(np.int32)
        else:
            warnings.warn(
                f"{name} has {len(values)} distinct weights, so it was not clustered (2 to {MOST_CLUSTERS} are); they "
                "train by themselves",
                stacklevel=4,
            )
    return np.where(zeros, np.int32(ZERO), groups)


def keep(weight: tf.Tensor, groups: tf.Tensor) -> tf.Tensor:
    """The weight with its structure: each cluster's mean, and zeros.

    A weight's gradient is the mean of its cluster's. Clusters of equal weights so stay equal under any optimizer that
    works element by element, and the projection here changes nothing but rounding.

    Args:
        weight: float32.
        groups: of `groups_of`.
    """
    clustered = groups >= 0
    ids = tf.reshape(groups, [-1])
    count = tf.maximum(tf.reduce_max(ids) + 1, 1)
    total = tf.math.unsorted_segment_sum(tf.reshape(weight, [-1]), ids, count)  # ids below 0 count nowhere
    sizes = tf.math.unsorted_segment_sum(tf.ones_like(ids, weight.dtype), ids, count)
    means = tf.gather(tf.math.divide_no_nan(total, sizes), tf.maximum(groups, 0))
    return tf.where(groups == ZERO, tf.zeros_like(weight), tf.where(clustered, means, weight))
