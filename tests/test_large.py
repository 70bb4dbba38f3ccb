"""A tensor of more than 2^31 elements, really computed: nightly only, since it takes 22 GB of memory and two minutes.

HYPOTHESIS_PROFILE=nightly python -m pytest tests/test_large.py
"""

import os

import pytest

nightly = pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="nightly only (HYPOTHESIS_PROFILE=nightly): takes 22 GB"
)

SCRIPT = """
import numpy as np, tensorflow as tf
import dqat
bfloat16 = tf.bfloat16.as_numpy_dtype
# 2,049 copies of a pattern, then two values that are larger than all others.
rng = np.random.default_rng(0)
pattern = rng.normal(size=1_048_575).astype(bfloat16)
copies = 2049
x = np.empty(copies * pattern.size, bfloat16)
assert x.size > 2**31
x.reshape(copies, -1)[:] = pattern
x[-2:] = -100.0, 200.0
last = x[-pattern.size:].copy()

def expect(got, function):
    # Every copy, and the last one with its extremes, is what it is alone.
    got = got.numpy().reshape(copies, -1)
    bits = [function(part).numpy().reshape(-1).view(np.uint16) for part in (pattern, last)]
    for index in range(copies):
        np.testing.assert_array_equal(got[index].view(np.uint16), bits[index == copies - 1])

def channels(values, axis):
    # A tensor: NumPy's arrays of bfloat16 would be taken as float32.
    return tf.constant(values if axis is None else values.reshape(-1, 3))

for axis in (None, -1):
    low, high = (-0.5, 0.75) if axis is None else ([-0.5, -0.25, -1.0], [0.75, 0.5, 1.0])
    big = channels(x, axis)
    y, *record = dqat.ops.fake_quant_track(big, low, high, axis=axis)
    assert y.shape == big.shape
    alone = lambda part: dqat.ops.fake_quant(channels(part, axis), low, high, axis=axis)
    expect(y, alone)
    del y
    for got, fold in zip(record, (np.min, np.max)):
        ends = [tf.cast(channels(part, axis), tf.float32).numpy() for part in (last, pattern)]
        over = None if axis is None else 0
        np.testing.assert_array_equal(got, fold([fold(end, axis=over) for end in ends], axis=0))
    for got, again in zip(dqat.ops.min_max(big, axis=axis), record):
        np.testing.assert_array_equal(got, again)
    print("track", axis, flush=True)

    # The values are their own incoming gradient, to save a third tensor.
    options = {"per_channel": axis is not None, "axis": -1, "num_bits": 8}
    gradient = lambda part: dqat.native.ops.dqat_fake_quant_grad(part, part, low, high, **options)
    dx, *sums = gradient(big)
    expect(dx, lambda part: gradient(channels(part, axis))[0])
    del dx
    for got, part, rest in zip(sums, gradient(channels(pattern, axis))[1:], gradient(channels(last, axis))[1:]):
        expected = np.float64(part) * (copies - 1) + np.float64(rest)
        np.testing.assert_allclose(got, expected, rtol=1e-3)
    if axis is None:
        words = dqat.native.ops.dqat_fake_quant_track(big, low, high).reach
        for got, other in zip(dqat.native.ops.dqat_reach_grad(big, words)[1:], sums):
            np.testing.assert_array_equal(got, other)
        del words
    print("gradient", axis, flush=True)

    step = 0.01 if axis is None else [0.01, 0.02, 0.005]
    signed = np.ones(np.shape(step), bool)
    learned = lambda part: dqat.native.ops.dqat_fake_quant_learned_grad(part, part, step, signed, 1, **options)
    dx, got = learned(big)
    expect(dx, lambda part: learned(channels(part, axis))[0])
    del dx
    one, other = (np.float64(learned(channels(part, axis))[1]) for part in (pattern, last))
    expected = one * (copies - 1) + other
    np.testing.assert_allclose(got, expected, rtol=1e-3)
    print("learned step", axis, flush=True)

y, low, high, counts = dqat.ops.fake_quant_histogram(tf.constant(x), -0.5, 0.75)
assert (float(low), float(high)) == (-100.0, 200.0)
alone = [dqat.ops.histogram(tf.constant(part))[2].numpy() for part in (pattern, last)]
np.testing.assert_array_equal(counts, (copies - 1) * alone[0] + alone[1])
expect(y, lambda part: dqat.ops.fake_quant(tf.constant(part), -0.5, 0.75))
print("histogram", flush=True)
"""


@nightly
@pytest.mark.timeout(900)
def test_more_than_two_to_the_31_elements_are_computed_like_few(run_python):
    assert run_python("-c", SCRIPT).split() == [
        *(["track", "None", "gradient", "None", "learned", "step", "None"]),
        *(["track", "-1", "gradient", "-1", "learned", "step", "-1"]),
        "histogram",
    ]
