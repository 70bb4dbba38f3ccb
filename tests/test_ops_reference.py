"""The ops against `reference.py`, where TensorFlow has no such op: any channel axis, 9 to 16 bits, symmetric."""

import numpy as np
import pytest
import reference
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import dqat

EPSILON = np.finfo(np.float32).eps


def bits_of(array):
    return np.asarray(array, np.float32).view(np.int32)


@st.composite
def cases(draw):
    """x, dy, a fitted range and the options: any axis or none, 2 to 16 bits, symmetric or not."""
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=5))
    axis = draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    magnitude = 10.0 ** draw(st.floats(-4, 4))
    x, dy = (generator.normal(size=shape).astype(np.float32) for _ in range(2))
    x *= np.float32(magnitude)
    channels = () if axis is None else (shape[axis],)
    ends = np.sort(magnitude * generator.normal(size=(2, *channels)), axis=0).astype(np.float32)
    options = {"num_bits": draw(st.integers(2, 16)), "narrow_range": draw(st.booleans())}
    symmetric = draw(st.booleans())
    return x, dy, ends, axis, options, symmetric


@given(cases())
def test_ranges_outputs_records_and_gradients_are_those_of_the_reference(case):
    x, dy, ends, axis, options, symmetric = case
    fitted = dqat.ops.fit_range(*ends, symmetric=symmetric, **options)
    low, high = reference.fit_range(*ends, symmetric=symmetric, **options)
    np.testing.assert_array_equal(fitted, (low, high))

    with tf.GradientTape() as tape:
        inputs = [tf.constant(value) for value in (x, low, high)]
        tape.watch(inputs)
        y, *records = dqat.ops.fake_quant_track(*inputs, axis=axis, **options)
    dx, dmin, dmax = tape.gradient(y, inputs, output_gradients=tf.constant(dy))
    np.testing.assert_array_equal(bits_of(y), bits_of(reference.fake_quant(x, low, high, axis=axis, **options)))
    np.testing.assert_array_equal(records, reference.min_max(x, axis=axis))
    expected = reference.gradients(dy, x, low, high, axis=axis, **options)
    np.testing.assert_array_equal(bits_of(dx), bits_of(expected[0]))
    assert (np.abs(dmin - expected[1]) <= x.size * EPSILON * expected[3]).all()
    assert (np.abs(dmax - expected[2]) <= x.size * EPSILON * expected[4]).all()


@settings(max_examples=200)
@given(cases())
def test_outputs_lie_on_at_most_as_many_levels_and_within_half_a_step(case):
    x, _, ends, axis, options, symmetric = case
    low, high = dqat.ops.fit_range(*ends, symmetric=symmetric, **options)
    y = dqat.ops.fake_quant(x, low, high, axis=axis, **options).numpy()
    grid = reference.Grid(
        *(reference.along(part.numpy(), x, axis) for part in (low, high)), options["num_bits"], options["narrow_range"]
    )
    levels = y / grid.scale
    np.testing.assert_allclose(levels, np.round(levels), atol=0.01)
    assert (y >= grid.low).all() and (y <= grid.high).all()
    inside = (x >= grid.low) & (x <= grid.high)
    assert (np.abs(y - x) <= 0.51 * grid.scale)[inside].all()
    if symmetric:
        # The grid of the negated values is that of the values, but for the one level more on the negative side.
        clipped = np.clip(x, -grid.high, grid.high)
        mirrored = dqat.ops.fake_quant(-clipped, low, high, axis=axis, **options).numpy()
        straight = dqat.ops.fake_quant(clipped, low, high, axis=axis, **options).numpy()
        assert (np.abs(mirrored + straight) <= 1.01 * grid.scale).all()


# What a numeric gradient can say of a function of steps. The gradients are straight-through: rounding counts as
# the identity. The function itself is flat between steps, so inside the range no numeric gradient agrees. Three
# things can be differentiated truly:
# - to x outside the range: output and analytic gradient are constant there;
# - to max (min) from values above (below) the range, where the other end is 0: nudging then leaves the range as
#   it is, so the output is max (min) itself and moves with it at rate 1 a value, which is what the op sums up;
# - to x inside, over differences of whole steps: y(x + k * scale) - y(x) is k * scale exactly, slope 1.
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("num_bits", [2, 8, 16])
def test_numeric_gradients_agree_where_the_function_is_smooth(axis, num_bits):
    shape = [] if axis is None else [2]
    for sign in (1.0, -1.0):
        outside = tf.constant(sign * np.array([[2.0, 3.0, 1.5], [9.0, 1.25, 4.0]]), tf.float32)
        end = tf.fill(shape, sign)

        def quantized(x, end, sign=sign):
            ends = (tf.zeros_like(end), end) if sign > 0 else (end, tf.zeros_like(end))
            return dqat.ops.fake_quant(x, *ends, num_bits=num_bits, axis=axis)

        analytic, numeric = tf.test.compute_gradient(quantized, [outside, end], delta=2.0**-4)
        np.testing.assert_array_equal(analytic[0], np.zeros((6, 6)))
        np.testing.assert_array_equal(numeric[0], np.zeros((6, 6)))
        # A row a value, a column a channel: each clipped value moves with the end of its own channel.
        np.testing.assert_array_equal(analytic[1], np.ones((6, 1)) if axis is None else np.repeat(np.eye(2), 3, axis=0))
        np.testing.assert_allclose(numeric[1], analytic[1], atol=1e-3)


@pytest.mark.parametrize("num_bits", [4, 8, 12])
def test_over_whole_steps_the_straight_through_gradient_is_the_slope(num_bits):
    step = 2.0 ** (1 - num_bits)
    high = np.float32(1.0 - step)
    x = np.linspace(-0.4, 0.4, 23).astype(np.float32)

    def quantized(values):
        return dqat.ops.fake_quant(values, -1.0, high, num_bits=num_bits)

    (analytic,), (numeric,) = tf.test.compute_gradient(quantized, [tf.constant(x)], delta=step)
    np.testing.assert_array_equal(analytic, np.eye(23))
    np.testing.assert_allclose(numeric, np.eye(23), atol=1e-3)


def test_the_sums_for_min_and_max_take_clipped_values_alone(rng):
    x = rng.normal(size=(50, 40)).astype(np.float32)
    dy = rng.integers(-8, 9, size=x.shape).astype(np.float32)  # exact sums
    for axis, over in ((None, (0, 1)), (0, (1,)), (1, (0,))):
        channels = [] if axis is None else [x.shape[axis]]
        # A power of two, so that nudging leaves the ends where they are.
        low, high = np.full(channels, -1.0, np.float32), np.full(channels, 127 / 128, np.float32)
        with tf.GradientTape() as tape:
            inputs = [tf.constant(low), tf.constant(high)]
            tape.watch(inputs)
            y = dqat.ops.fake_quant(x, *inputs, axis=axis)
        dmin, dmax = tape.gradient(y, inputs, output_gradients=tf.constant(dy))
        np.testing.assert_array_equal(dmin, np.where(x < -1, dy, 0).sum(axis=over))
        np.testing.assert_array_equal(dmax, np.where(x > 127 / 128, dy, 0).sum(axis=over))
