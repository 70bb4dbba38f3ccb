import numpy as np
import pytest
import tensorflow as tf

from dqat.observers import EMPTY, AllValues, Fixed, LastValue, MovingAverage

OBSERVERS = [LastValue(), AllValues(), MovingAverage(0.9)]


def follow(observer, records, start=EMPTY):
    range_ = tuple(tf.constant(value) for value in start)
    for record in records:
        range_ = observer.update(range_, tuple(tf.constant(value, tf.float32) for value in record))
    return tuple(float(part) for part in range_)


@pytest.mark.parametrize("observer", OBSERVERS, ids=repr)
def test_the_first_record_is_taken_over(observer):
    assert follow(observer, [(-1.5, 2.5)]) == (-1.5, 2.5)


@pytest.mark.parametrize("observer", OBSERVERS, ids=repr)
def test_an_empty_record_changes_nothing(observer):
    assert follow(observer, [(-1.5, 2.5), EMPTY]) == (-1.5, 2.5)
    assert follow(observer, [EMPTY]) == EMPTY


def test_last_value_forgets_and_all_values_does_not():
    records = [(-1.0, 5.0), (-2.0, 1.0)]
    assert follow(LastValue(), records) == (-2.0, 1.0)
    assert follow(AllValues(), records) == (-2.0, 5.0)


def test_moving_average_keeps_its_decay():
    low, high = follow(MovingAverage(0.9), [(-1.0, 5.0), (-2.0, 1.0)])
    assert (low, high) == (pytest.approx(-1.1), pytest.approx(4.6))


def test_moving_average_of_small_values_needs_no_warm_up():
    """tfmot's starts at ±6 and is still at ±2.24 after 1,000 such steps."""
    low, high = follow(MovingAverage(0.999), [(-0.05, 0.05)] * 10)
    assert (low, high) == (pytest.approx(-0.05), pytest.approx(0.05))


def test_channels_start_one_by_one():
    range_ = tuple(tf.fill([2], value) for value in EMPTY)
    range_ = MovingAverage(0.5).update(range_, (tf.constant([-1.0, np.inf]), tf.constant([1.0, -np.inf])))
    range_ = MovingAverage(0.5).update(range_, (tf.constant([-3.0, -4.0]), tf.constant([3.0, 4.0])))
    np.testing.assert_array_equal(range_, [[-2.0, -4.0], [2.0, 4.0]])


@pytest.mark.parametrize("make", [lambda: MovingAverage(1.0), lambda: MovingAverage(-0.1), lambda: Fixed(1.0, 2.0)])
def test_impossible_options_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()
