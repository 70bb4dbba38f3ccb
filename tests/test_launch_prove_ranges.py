"""The proof for users, run as they run it."""

import numpy as np
import pytest
from prove_ranges import BATCH, ENGINES, batch_of, run

STEPS = 3


@pytest.fixture(scope="module")
def found():
    return {engine: run("dqat", engine, STEPS) for engine in ENGINES.values()}


def test_the_two_halves_of_a_batch_differ():
    first, second = np.split(batch_of(0), 2)
    assert first.min() >= -2 and first.max() <= 10
    assert second.min() < -7 and second.max() > 19
    assert len(first) == len(second) == BATCH // 2


def test_two_replicas_find_the_range_of_the_whole_batch_with_every_engine(found):
    (whole,) = found["none"]
    assert whole[0] < -7 and whole[1] > 19
    for engine in ("tf", "horovod"):
        assert len(found[engine]) == 2
        for replica in found[engine]:
            np.testing.assert_array_equal(replica.view(np.int32), whole.view(np.int32))
