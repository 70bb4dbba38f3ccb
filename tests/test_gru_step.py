"""The fused timestep of the GRU against the composition of plain operations that it stands for."""

import numpy as np
import pytest
import tensorflow as tf
from activations import sigmoid, tanh

from dqat import native, ops
from dqat.keras_api import keras
from dqat.layers import gru_step
from dqat.layers.cells import form_of
from dqat.observers import MSE, Fixed, LearnedStep, MovingAverage
from dqat.quantizers import Quantizer

INFINITY = float("inf")
RANGES = {"without": (INFINITY, -INFINITY), "wide": (-8.5, 8.5), "narrow": (-0.4, 0.5)}
# 7: less than a block of 16 units; 40: two blocks and a half.
SHAPES = [(1, 1), (3, 7), (33, 16), (9, 40)]


class Numerics:
    """What `GRUForm.step` computes with, each point on its own."""

    is_export = rounds_as_kernels = False

    def __init__(self, ranges, mask):
        self.ranges, self.mask, self.records = ranges, mask, {}

    def point(self, name, value, *, limit=None, kind="activation"):
        value = value if limit is None else tf.clip_by_value(value, -limit, limit)
        quantized, *record = ops.fake_quant_track(value, *self.ranges[name])
        self.records[name] = record if self.mask is None else ops.min_max(tf.boolean_mask(value, self.mask))
        return quantized


def composed(monkeypatch, values, ranges, mask):
    """The state after and the records, of `GRUForm.step`."""
    projected, product, hidden = values
    form = form_of(keras.layers.GRUCell(hidden.shape[1]))
    numerics = Numerics(ranges, mask)
    first = gru_step.POINTS[0]
    monkeypatch.setattr("dqat.layers.keras_cells.recurrent_product", lambda run, _: run.point(first, product))
    after, _ = form.step(projected, (hidden,), numerics)
    if mask is not None:
        after = tf.where(mask[:, tf.newaxis], after, hidden)
    return after, [numerics.records[name] for name in gru_step.POINTS]


def fused(_monkeypatch, values, ranges, mask):
    ends = [[ranges[name][end] for name in gru_step.POINTS] for end in range(2)]
    after, records = ops.gru_step(*values, ends, mask=mask)
    return after, list(zip(*records, strict=True))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("batch, units", SHAPES)
def test_with_the_same_activations_it_is_the_composition(rng, monkeypatch, batch, units, ranges, masked):
    """States and records to the bit; gradients, which multiply in another order, to 1e-6 of the largest."""
    monkeypatch.setattr("dqat.layers.cell_form.ACTIVATIONS", {"tanh": (tanh, 8.0), "sigmoid": (sigmoid, 8.0)})
    ranges = dict.fromkeys(gru_step.POINTS, RANGES[ranges]) | {
        "gates": (0.0, 255 / 256),
        "candidate": (-1.0, 127 / 128),
    }
    shapes = [(batch, 3 * units), (batch, 3 * units), (batch, units)]
    values = [tf.constant(rng.standard_normal(s, np.float32) * f) for s, f in zip(shapes, (4, 4, 1), strict=True)]
    slope = tf.constant(rng.standard_normal((batch, units), np.float32))
    mask = tf.constant(rng.random(batch) < 0.6) if masked else None
    found = []
    for function in (fused, composed):
        with tf.GradientTape() as tape:
            tape.watch(values)
            after, records = function(monkeypatch, values, ranges, mask)
            loss = tf.reduce_sum(after * slope)
        gradients = tape.gradient(loss, values, unconnected_gradients="zero")
        found.append((after, np.array(records), gradients))
    (after, records, gradients), (expected, expected_records, expected_gradients) = found
    np.testing.assert_array_equal(after, expected)
    np.testing.assert_array_equal(records, expected_records)
    for got, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, other, rtol=1e-6, atol=1e-6 * np.abs(other).max())


def test_a_row_has_the_same_bits_in_every_batch(rng):
    values = [tf.constant(rng.standard_normal(shape, np.float32)) for shape in [(32, 120), (32, 120), (32, 40)]]
    ends = [np.full(10, end, np.float32) for end in RANGES["wide"]]
    whole, (low, high) = ops.gru_step(*values, ends)
    parts = [ops.gru_step(*(v[a:b] for v in values), ends) for a, b in ((0, 1), (1, 20), (20, 32))]
    np.testing.assert_array_equal(tf.concat([part[0] for part in parts], 0), whole)
    np.testing.assert_array_equal(np.min([part[1][0] for part in parts], 0), low)
    np.testing.assert_array_equal(np.max([part[1][1] for part in parts], 0), high)


def test_a_nan_marks_the_records_of_what_it_reaches_unless_it_is_masked(rng):
    projected, product, hidden = (rng.standard_normal(s).astype("f") for s in [(4, 9), (4, 9), (4, 3)])
    product[2, 4] = np.nan
    ends = [np.full(10, end, np.float32) for end in RANGES["wide"]]
    _, (low, high) = ops.gru_step(projected, product, hidden, ends)
    # In the reset gate: neither the update gate nor what it keeps and opens has seen it.
    reached = [name not in ("kept", "openness") for name in gru_step.POINTS]
    np.testing.assert_array_equal(np.isinf(low), reached)
    np.testing.assert_array_equal(np.isinf(high), reached)
    after, (low, high) = ops.gru_step(projected, product, hidden, ends, mask=[True, True, False, True])
    assert np.isfinite([low, high]).all()
    np.testing.assert_array_equal(after[2], hidden[2])


WRONG = {
    "projected": lambda v: v | {"projected": v["projected"][:, 1:]},
    "product": lambda v: v | {"product": v["product"][1:]},
    "hidden": lambda v: v | {"hidden": v["hidden"][0]},
    "mask": lambda v: v | {"mask": np.ones(4, bool)},
    "min": lambda v: v | {"min": v["min"][1:]},
    "max": lambda v: v | {"max": v["min"] - 1},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_refused(rng, wrong):
    values = {"projected": rng.standard_normal((3, 12)), "product": rng.standard_normal((3, 12))}
    values |= {"hidden": rng.standard_normal((3, 4)), "min": np.full(10, -1.0), "max": np.full(10, 1.0)}
    values = {name: value.astype(np.float32) for name, value in values.items()} | {"mask": np.ones(3, bool)}
    native.ops.dqat_gru_step(**values)
    with pytest.raises(tf.errors.InvalidArgumentError):
        native.ops.dqat_gru_step(**WRONG[wrong](values))
    slope = np.zeros((3, 4), np.float32)
    native.ops.dqat_gru_step_grad(slope, **values)
    with pytest.raises(tf.errors.InvalidArgumentError):
        native.ops.dqat_gru_step_grad(slope, **WRONG[wrong](values))
    with pytest.raises(tf.errors.InvalidArgumentError):
        native.ops.dqat_gru_step_grad(slope[1:], **values)


def quantized_points(**changed):
    return {name: changed.get(name, Quantizer(name=name)) for name in gru_step.POINTS}


def test_what_it_can_not_do_takes_the_composition():
    x, form = tf.zeros([1, 12]), form_of(keras.layers.GRUCell(4))
    assert gru_step.fits(x, form, quantized_points())
    for observer in (Fixed(-1.0, 1.0), MovingAverage()):
        assert gru_step.fits(x, form, quantized_points(kept=Quantizer(observer=observer)))
    for observer in (MSE(), LearnedStep()):
        assert not gru_step.fits(x, form, quantized_points(kept=Quantizer(observer=observer)))
    for options in ({"reset_after": False}, {"activation": "relu"}):
        assert not gru_step.fits(x, form_of(keras.layers.GRUCell(4, **options)), quantized_points())
    assert not gru_step.fits(x, form_of(keras.layers.SimpleRNNCell(4)), quantized_points())
    assert not gru_step.fits(tf.cast(x, tf.float16), form, quantized_points())
