"""BatchNormalization over replicas: parts of a batch, whose sums come together, give what the whole gives."""

import numpy as np
import pytest
import tensorflow as tf

from dqat.batch_statistics import synchronize
from dqat.keras_api import keras


def normalization(total=None, shape=(None, 5, 3)):
    norm = keras.layers.BatchNormalization(synchronized=True, name="norm")
    norm.build(shape)
    if total is not None:
        synchronize(norm, total)
    return norm


def over_parts(parts):
    """What each part's layer gives, and the layers, where the sums are those of all parts."""
    sums = []

    def collect(vector, name):
        assert name == "norm"
        sums.append(vector)
        return vector

    for part in parts:  # a first pass for the sums alone
        normalization(collect)(part, training=True)
    norms = [normalization(lambda vector, name: tf.add_n(sums)) for _ in parts]
    return [norm(part, training=True) for norm, part in zip(norms, parts, strict=True)], norms


@pytest.mark.parametrize("rows", [(4, 4), (5, 2), (7, 0)], ids=str)
def test_parts_of_a_batch_are_normalized_as_the_whole(rng, rows):
    batch = rng.normal(2.0, 3.0, size=(sum(rows), 5, 3)).astype(np.float32)
    outputs, norms = over_parts(np.split(batch, [rows[0]]))
    whole = normalization()
    expected = whole(batch, training=True)
    np.testing.assert_allclose(np.concatenate(outputs), expected, rtol=1e-5, atol=1e-5)
    for norm in norms:
        np.testing.assert_allclose(norm.moving_mean, whole.moving_mean, rtol=1e-5)
        np.testing.assert_allclose(norm.moving_variance, whole.moving_variance, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_a_lone_part_gives_the_bits_of_keras_own_layer(rng, masked):
    batch = rng.normal(2.0, 3.0, size=(6, 5, 3)).astype(np.float32)
    mask = tf.constant(rng.random((6, 5)) < 0.7) if masked else None
    ours, theirs = normalization(lambda vector, name: vector), normalization()
    found, expected = (norm(batch, training=True, mask=mask) for norm in (ours, theirs))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(ours.moving_variance, theirs.moving_variance)
