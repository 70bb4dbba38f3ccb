"""The fused LSTM operation against the composition of plain ones, and what only the fused one promises."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from activations import sigmoid, tanh

from dqat import native, ops
from dqat.layers import lstm_sequence
from dqat.observers import MSE, Fixed, LastValue, LearnedStep, MovingAverage
from dqat.quantizers import Quantizer
from dqat.specs import QuantizerSpec

INFINITY = float("inf")
# Hidden and cell range: none yet; wide; so narrow that much is clipped.
RANGES = {
    "without": ((INFINITY, -INFINITY), (INFINITY, -INFINITY)),
    "wide": ((-1.0, 1.0), (-8.0, 8.0 - 8 / 2**15)),
    "narrow": ((-0.4, 0.5), (-1.0, 1.0 - 1 / 2**15)),
}
CELL = QuantizerSpec(num_bits=16, symmetric=True, power_of_two=True)
NAMES = ("outputs", "hidden", "cell", "records", "x", "kernel", "recurrent", "bias", "initial hidden", "initial cell")
# Of x, kernel and recurrent kernel, as if of trained layers: sums keep 0 to 3 bits for a second rounding.
SCALES = np.float32([[0.01] * 4, [0.03, 0.01, 0.01, 0.005], [0.005, 0.008, 0.013, 0.025]])
# 7: less than a block of 16 units; 24: a block and a half; 528: so many that threads divide the units.
SHAPES = [(3, 4, 5, 7), (33, 5, 12, 24), (50, 3, 20, 64), (20, 3, 9, 528), (1, 1, 1, 1)]


def arguments(shape, rng, gain=1.0):
    """x, kernel, recurrent kernel, bias, initial hidden and cell state for (batch, time, features, units)."""
    batch, time, features, units = shape

    def normal(*size, by=1.0):
        return tf.constant(rng.standard_normal(size, np.float32) * np.float32(by))

    return [
        normal(batch, time, features),
        normal(features, 4 * units, by=gain * 3 / features**0.5),
        normal(units, 4 * units, by=gain / units**0.5),
        normal(4 * units, by=gain),
        normal(batch, units, by=0.3),
        normal(batch, units),
    ]


def on_grid(values, ranges):
    """x, both kernels and the hidden state as whole multiples of SCALES and of the hidden range's scale."""
    x, kernel, recurrent, bias, hidden, cell = (np.asarray(value) for value in values)

    def rounded(value, scale, most):
        return tf.constant(np.clip(np.round(value / scale), -most, most) * scale)

    columns = [np.repeat(scales, recurrent.shape[0]) for scales in SCALES]
    (low, high), _ = ranges
    return [
        rounded(x, SCALES[0, 0], 255),
        rounded(kernel, columns[1], 127),
        rounded(recurrent, columns[2], 127),
        tf.constant(bias),
        tf.constant(hidden) if high < low else rounded(hidden, np.float32(high - low) / np.float32(255), 255),
        tf.constant(cell),
    ]


def quantizers(ranges):
    """Quantizers of the hidden and of the cell state that have these ranges."""
    found = Quantizer(name="hidden"), Quantizer(CELL, name="cell_state")
    for quantizer, (low, high) in zip(found, ranges, strict=True):
        quantizer.build([None, 1])
        quantizer.min.assign(low)
        quantizer.max.assign(high)
    return found


def run(function, values, ranges, slopes=None, **options):
    """Everything in NAMES that `function` gives; without gradients where there are no slopes."""
    with tf.GradientTape() as tape:
        tape.watch(values)
        x, kernel, recurrent, bias, *states = values
        outputs, last, records = function(
            x, (kernel, recurrent), bias, *quantizers(ranges), initial_state=states, **options
        )
        results = [outputs, *last]
        loss = tf.add_n([tf.reduce_sum(a * b) for a, b in zip(results, slopes, strict=True)]) if slopes else None
    results = [*results, tf.stack([*records[0], *records[1]])]
    if slopes:
        results += tape.gradient(loss, values)
    return [np.asarray(each) for each in results]


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_fused_operation_is_the_composition(rng, shape, ranges):
    """Within float32 rounding, which differs in the order of a product's sums and in the last bits of tanh.

    Without rounding to levels, results agree to 1e-5 of the largest; a sum of up to 528 products is off by some
    epsilons (6e-8) of its size, and so are the few steps that follow. With it, a value on the edge between two
    levels may come out on either, one level apart: 3e-5 of the range for the cell state, which gradients then
    inherit, and rarely one of 255 levels for the hidden state.
    """
    batch, time, _features, units = shape
    for backwards, masked in itertools.product([False, True], repeat=2):
        values = arguments(shape, rng)
        slopes = [
            tf.constant(rng.standard_normal(size, np.float32)) for size in ([batch, time, units], *[[batch, units]] * 2)
        ]
        mask = tf.constant(rng.random((batch, time)) < 0.6) if masked else None
        fused, composed = (
            dict(zip(NAMES, run(each, values, RANGES[ranges], slopes, mask=mask, go_backwards=backwards), strict=True))
            for each in (lstm_sequence.fused, lstm_sequence.composed)
        )
        flipped = ranges != "without" and np.any(np.abs(fused["outputs"] - composed["outputs"]) > 1e-6)
        for name in NAMES:
            got, expected = fused[name], composed[name]
            assert got.shape == expected.shape
            if name == "records":
                # Nothing was recorded where all is masked.
                np.testing.assert_array_equal(np.isinf(got), np.isinf(expected))
                got, expected = got[np.isfinite(got)], expected[np.isfinite(expected)]
            apart = np.abs(got - expected).max(initial=0.0) / max(np.abs(expected).max(initial=0.0), 1e-3)
            bound = 1e-5 if ranges == "without" else 2e-2 if flipped else 2e-4
            assert apart <= bound, (name, backwards, masked)
        assert np.mean(np.abs(fused["outputs"] - composed["outputs"]) > 1e-6) < 1e-3


@pytest.mark.parametrize("scales", [None, SCALES], ids=["float", "integer"])
@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_with_the_same_products_and_activations_it_is_the_composition_to_the_bit(
    rng, monkeypatch, shape, ranges, scales
):
    """Outputs, states and records, also with the integer kernel's roundings; so no value lies on another level, and
    gradients are the same but for rounding.

    Their sums run over batch * time * 4 * units products at most, some hundred on the way to any one of them that
    matter; 4e-6 of the largest, 64 epsilons, is what is allowed.
    """
    batch, time, _features, units = shape
    monkeypatch.setattr(tf, "sigmoid", sigmoid)
    monkeypatch.setattr(tf, "tanh", tanh)
    monkeypatch.setattr(
        tf,
        "tensordot",
        lambda x, kernel, axes: tf.reshape(
            ops.matmul(tf.reshape(x, [-1, x.shape[-1]]), kernel), [*x.shape[:-1], kernel.shape[-1]]
        ),
    )
    for backwards, masked in itertools.product([False, True], repeat=2):
        values = arguments(shape, rng)
        values = values if scales is None else on_grid(values, RANGES[ranges])
        slopes = [
            tf.constant(rng.standard_normal(size, np.float32)) for size in ([batch, time, units], *[[batch, units]] * 2)
        ]
        mask = tf.constant(rng.random((batch, time)) < 0.6) if masked else None
        fused, composed = (
            dict(
                zip(
                    NAMES,
                    run(
                        each,
                        values,
                        RANGES[ranges],
                        slopes,
                        mask=mask,
                        go_backwards=backwards,
                        operand_scales=scales,
                    ),
                    strict=True,
                )
            )
            for each in (lstm_sequence.fused, lstm_sequence.composed)
        )
        for name in NAMES[:4]:
            np.testing.assert_array_equal(fused[name], composed[name], err_msg=f"{name} {backwards} {masked}")
        for name in NAMES[4:]:
            apart = np.abs(fused[name] - composed[name]).max() / max(np.abs(composed[name]).max(), 1e-3)
            assert apart <= 4e-6, (name, backwards, masked, apart)


def test_time_may_come_first(rng):
    values, mask = arguments((5, 4, 3, 18), rng), rng.random((5, 4)) < 0.7
    x, *rest = values
    rest, states = rest[:3], rest[3:]
    for backwards in (False, True):
        found = []
        for time_major in (False, True):
            given = [tf.transpose(x, [1, 0, 2]), mask.T] if time_major else [x, mask]
            with tf.GradientTape() as tape:
                tape.watch([given[0], *rest, *states])
                results = ops.quantized_lstm(
                    given[0], *rest, *RANGES["wide"], initial_state=states, mask=given[1],
                    go_backwards=backwards, time_major=time_major,
                )  # fmt: skip
                outputs = tf.transpose(results.outputs, [1, 0, 2]) if time_major else results.outputs
                loss = tf.reduce_sum(outputs * tf.reshape(tf.range(5 * 4 * 18, dtype=tf.float32), [5, 4, 18]))
            to_x, *gradients = tape.gradient(loss, [given[0], *rest, *states])
            to_x = tf.transpose(to_x, [1, 0, 2]) if time_major else to_x
            found.append([outputs, *results[1:3], *results.hidden_record, *results.cell_record, to_x, *gradients])
        for batch_first, time_first in zip(*found, strict=True):
            np.testing.assert_allclose(batch_first, time_first, rtol=1e-5, atol=1e-4)


def test_a_weight_without_a_code_counts_in_the_gradients_too(rng):
    """Recurrent weights of so many units are kept as codes during the backward pass, in bfloat16, which has no 515."""
    values = on_grid(arguments((3, 4, 5, 272), rng), RANGES["wide"])
    recurrent = values[2].numpy()
    recurrent[7, 11] = np.float32(515) * SCALES[2, 0]
    values[2] = tf.constant(recurrent)
    slopes = [tf.ones([3, 4, 272]), *[tf.ones([3, 272])] * 2]
    fused, composed = (
        run(each, values, RANGES["wide"], slopes, operand_scales=SCALES)
        for each in (lstm_sequence.fused, lstm_sequence.composed)
    )
    for name, got, expected in zip(NAMES[4:], fused[4:], composed[4:], strict=True):
        np.testing.assert_allclose(got, expected, rtol=0.0, atol=5e-5 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("units", [24, 64, 528])
def test_a_row_has_the_same_bits_in_every_batch(rng, units):
    """So the records of a batch that is split over replicas, merged, are those of the whole one."""
    values = on_grid(arguments((32, 4, 12, units), rng), RANGES["wide"])
    whole = run(lstm_sequence.fused, values, RANGES["wide"], operand_scales=SCALES)
    for parts in ([16, 16], [30, 2], [1, 31], [7, 9, 16]):
        ends = np.cumsum(parts)
        found = [
            run(
                lstm_sequence.fused,
                [v[end - size : end] if i in (0, 4, 5) else v for i, v in enumerate(values)],
                RANGES["wide"],
                operand_scales=SCALES,
            )
            for size, end in zip(parts, ends, strict=True)
        ]
        for index in range(3):
            np.testing.assert_array_equal(np.concatenate([part[index] for part in found]), whole[index])
        records = np.stack([part[3] for part in found])
        np.testing.assert_array_equal(records[:, ::2].min(0), whole[3][::2])
        np.testing.assert_array_equal(records[:, 1::2].max(0), whole[3][1::2])


DIGEST = """
import hashlib, sys
import numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
sys.path.insert(0, "tests")
import test_lstm_op as t
digest = hashlib.sha256()
for shape in [(13, 5, 20, 40), (18, 3, 70, 530)]:
    rng = np.random.default_rng(3)
    values = t.arguments(shape, rng)
    batch, time, _, units = shape
    slopes = [tf.constant(rng.standard_normal(s, np.float32)) for s in ([batch, time, units], *[[batch, units]] * 2)]
    for scales in (None, t.SCALES):
        values = values if scales is None else t.on_grid(values, t.RANGES["wide"])
        for each in t.run(t.lstm_sequence.fused, values, t.RANGES["wide"], slopes, operand_scales=scales):
            digest.update(each.tobytes())
print(digest.hexdigest())
"""


def test_nothing_depends_on_the_number_of_threads(run_python):
    digests = {run_python("-c", DIGEST, threads).split()[-1] for threads in ("1", "2", "5")}
    assert len(digests) == 1


@pytest.mark.parametrize("ranges", ["without", "wide"])
def test_gradients_are_finite_differences_where_nothing_is_clipped(rng, ranges):
    """With 16 bits for both states the levels, 2.4e-4 or less apart, are small against the step."""
    values = arguments((6, 5, 4, 18), rng, gain=0.4)
    slope = tf.constant(rng.standard_normal((6, 5, 18), np.float32))

    def loss(values):
        x, kernel, recurrent, bias, *states = values
        results = ops.quantized_lstm(x, kernel, recurrent, bias, *RANGES[ranges], initial_state=states, hidden_bits=16)
        return tf.reduce_sum(slope * results.outputs) + tf.reduce_sum(results.cell)

    with tf.GradientTape() as tape:
        tape.watch(values)
        total = loss(values)
    gradients = tape.gradient(total, values)
    for index, gradient in enumerate(gradients):
        direction = rng.standard_normal(gradient.shape).astype(np.float32)
        direction = direction / np.linalg.norm(direction) + gradient.numpy() / np.linalg.norm(gradient)
        direction *= np.float32(3e-2)
        ends = [
            float(loss([v + sign * direction if i == index else v for i, v in enumerate(values)])) for sign in (1, -1)
        ]
        expected = float(tf.reduce_sum(gradient * direction))
        # What is left: the third order of the step; and some 500 cell states, each up to half a level off.
        noise = 0.0 if ranges == "without" else 4e-3
        assert abs((ends[0] - ends[1]) / 2 - expected) <= 1e-2 * abs(expected) + noise, index


def test_a_nan_marks_the_record_unless_its_timestep_is_masked(rng):
    x, *rest = arguments((4, 3, 5, 20), rng)
    x = x.numpy()
    x[2, 1, 3] = np.nan
    for scales in (None, SCALES):
        results = ops.quantized_lstm(x, *rest[:3], *RANGES["wide"], operand_scales=scales)
        assert [float(v) for v in (*results.hidden_record, *results.cell_record)] == [-INFINITY, INFINITY] * 2
    mask = np.ones((4, 3), bool)
    mask[2, 1] = False
    masked = ops.quantized_lstm(x, *rest[:3], *RANGES["wide"], mask=mask)
    assert np.all(np.isfinite([*masked.hidden_record, *masked.cell_record]))
    np.testing.assert_array_equal(masked.outputs[2, 1], masked.outputs[2, 0])


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (3, 0, 4, 5), (2, 3, 0, 5)], ids=str)
def test_an_empty_batch_or_sequence_records_nothing(rng, shape):
    values = arguments((*shape[:2], max(shape[2], 1), shape[3]), rng)
    values[0], values[1] = values[0][..., : shape[2]], values[1][: shape[2]]
    slopes = [tf.ones([shape[0], shape[1], shape[3]]), *[tf.ones([shape[0], shape[3]])] * 2]
    results = dict(zip(NAMES, run(lstm_sequence.fused, values, RANGES["wide"], slopes), strict=True))
    if 0 in shape[:2]:
        np.testing.assert_array_equal(results["records"], [INFINITY, -INFINITY] * 2)
        assert not results["kernel"].any()
        np.testing.assert_array_equal(results["hidden"], values[4])
        np.testing.assert_array_equal(results["initial cell"], np.ones_like(values[5]))
    assert all(np.all(np.isfinite(results[name])) for name in NAMES if name != "records")


WRONG = {
    "x": lambda v: v | {"x": v["x"][0]},
    "kernel": lambda v: v | {"kernel": v["kernel"][1:]},
    "recurrent_kernel": lambda v: v | {"recurrent_kernel": v["recurrent_kernel"][1:]},
    "bias": lambda v: v | {"bias": v["bias"][1:]},
    "initial_hidden": lambda v: v | {"initial_hidden": v["initial_hidden"][1:]},
    "initial_cell": lambda v: v | {"initial_cell": v["initial_cell"][:, 1:]},
    "mask": lambda v: v | {"mask": np.ones((3, 5), bool)},
    "hidden_min": lambda v: v | {"hidden_min": 2.0},
    "cell_max": lambda v: v | {"cell_max": np.float32([1.0, 1.0])},
    "operand_scales": lambda v: v | {"operand_scales": SCALES[:2]},
    "no units": lambda v: (
        v | {"kernel": np.zeros((5, 0), np.float32), "recurrent_kernel": np.zeros((0, 0), np.float32)}
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_refused(rng, wrong):
    names = ("x", "kernel", "recurrent_kernel", "bias", "initial_hidden", "initial_cell")
    values = dict(zip(names, arguments((3, 4, 5, 7), rng), strict=True))
    values |= {"mask": np.ones((3, 4), bool)}
    values |= {"hidden_min": -1.0, "hidden_max": 1.0, "cell_min": -8.0, "cell_max": 8.0, "operand_scales": SCALES}
    native.ops.dqat_quantized_lstm(**values)
    values = WRONG[wrong](values)
    with pytest.raises(tf.errors.InvalidArgumentError):
        native.ops.dqat_quantized_lstm(**values)
    if wrong not in ("hidden_min", "mask", "bias", "no units"):
        with pytest.raises(ValueError):
            tf.function(lambda: native.ops.dqat_quantized_lstm(**values)).get_concrete_function()


def test_bits_that_no_grid_has_are_refused(rng):
    with pytest.raises(tf.errors.InvalidArgumentError, match="cell_bits must be 2 to 16, got 17"):
        ops.quantized_lstm(*arguments((3, 4, 5, 7), rng)[:4], *RANGES["wide"], cell_bits=17)


def test_the_gradient_refuses_wrong_shapes(rng):
    x, kernel, recurrent, bias, hidden, cell = arguments((3, 4, 5, 7), rng)
    state, sequence, gates = tf.zeros([3, 7]), tf.zeros([3, 4, 7]), tf.zeros([3, 4, 28])
    right = [
        sequence,
        state,
        state,
        x,
        kernel,
        recurrent,
        bias,
        hidden,
        cell,
        np.zeros((0, 0), bool),
        *[-1.0, 1.0] * 2,
        SCALES,
    ]
    native.ops.dqat_quantized_lstm_grad(*right, sequence, gates, sequence)
    for index in (0, 1, 2, 15, 16, 17):
        wrong = [*right, sequence, gates, sequence]
        wrong[index] = wrong[index][:2]
        with pytest.raises(tf.errors.InvalidArgumentError):
            native.ops.dqat_quantized_lstm_grad(*wrong)


@pytest.mark.parametrize(
    "observer, is_fused",
    [(MovingAverage(), True), (LastValue(), True), (Fixed(-1.0, 1.0), True), (MSE(), False), (LearnedStep(), False)],
    ids=lambda value: type(value).__name__ if not isinstance(value, bool) else "",
)
def test_observers_that_need_more_than_extremes_take_the_composition(observer, is_fused):
    hidden, cell = Quantizer(observer=observer, name="hidden"), Quantizer(CELL, name="cell_state")
    assert lstm_sequence.fits_fused(tf.zeros([1, 1, 1]), hidden, cell) == is_fused


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_matmul_is_the_product_and_has_its_gradient(rng, transpose_a, transpose_b):
    for rows, depth, columns in [(1, 1, 1), (7, 300, 65), (200, 33, 130), (3, 0, 4), (0, 3, 4)]:
        a, b = rng.standard_normal((rows, depth)), rng.standard_normal((depth, columns))
        slope = rng.standard_normal((rows, columns))
        given = [tf.constant((m.T if t else m).astype(np.float32)) for m, t in ((a, transpose_a), (b, transpose_b))]
        with tf.GradientTape() as tape:
            tape.watch(given)
            product = ops.matmul(*given, transpose_a=transpose_a, transpose_b=transpose_b)
            loss = tf.reduce_sum(product * slope.astype(np.float32))
        to_a, to_b = tape.gradient(loss, given)
        np.testing.assert_allclose(product, a @ b, atol=1e-5 * max(depth, 1))
        to_a, to_b = (g.numpy().T if t else g.numpy() for g, t in ((to_a, transpose_a), (to_b, transpose_b)))
        np.testing.assert_allclose(to_a, slope @ b.T, atol=1e-5 * max(columns, 1))
        np.testing.assert_allclose(to_b, a.T @ slope, atol=1e-5 * max(rows, 1))


def test_a_row_of_matmul_has_the_same_bits_alone(rng):
    a, b = (tf.constant(rng.standard_normal(size, np.float32)) for size in ((41, 300), (300, 90)))
    whole = ops.matmul(a, b)
    for first, end in [(0, 1), (1, 20), (20, 41), (40, 41)]:
        np.testing.assert_array_equal(ops.matmul(a[first:end], b), whole[first:end])


def test_matmul_refuses_matrices_that_do_not_fit():
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"don't fit: shapes \[2,3\] and \[2,3\]"):
        ops.matmul(tf.zeros([2, 3]), tf.zeros([2, 3]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be matrices"):
        ops.matmul(tf.zeros([2, 3, 1]), tf.zeros([2, 3]))


FUZZ = """
import numpy as np, tensorflow as tf
from dqat import native, ops
random, outcomes = np.random.default_rng(7), {"right": 0, "refused": 0}
names = ("x", "kernel", "recurrent_kernel", "bias", "initial_hidden", "initial_cell", "mask")
def fits(x, kernel, recurrent, bias, hidden, cell, mask):
    gates = 4 * recurrent[0]
    return (
        len(x) == 3 and recurrent[0] > 0 and recurrent[1:] == [gates] and kernel == [x[2], gates]
        and bias in ([0], [gates]) and hidden == cell == [x[0], recurrent[0]] and mask in ([0, 0], x[:2])
    )
for call in range(1500):
    batch, time, features, units = (int(v) for v in random.choice([0, 1, 2, 3, 17], 4, p=[0.1, 0.2, 0.3, 0.2, 0.2]))
    shapes = [[batch, time, features], [features, 4 * units], [units, 4 * units], [4 * units]]
    shapes += [[batch, units], [batch, units], [batch, time]]
    shapes[3] = [0] if random.random() < 0.2 else shapes[3]
    shapes[6] = [0, 0] if random.random() < 0.5 else shapes[6]
    if random.random() < 0.4:
        index = int(random.integers(7))
        wrong = [int(v) for v in random.choice([0, 1, 2, 3], len(shapes[index]))]
        if random.random() < 0.2:
            wrong = [2**46, *[0] * (len(wrong) - 1)][:: int(random.choice([-1, 1]))]
        if random.random() < 0.2:
            wrong = [*wrong, 1]
        if 2**46 in wrong and 0 not in wrong:
            wrong = [*wrong, 0]
        shapes[index] = wrong
    values = {name: random.standard_normal(shape).astype("f") for name, shape in zip(names[:6], shapes)}
    values["mask"] = tf.zeros(shapes[6], tf.bool)
    values["operand_scales"] = np.full((0, 0) if random.random() < 0.5 else (3, 4), 1e-2, "f")
    pairs = [(-1.0, 1.0), (0.0, 0.0), (np.inf, -np.inf), (0.0, 3e-36), (1.0, -1.0), (np.nan, 1.0)]
    hidden, cell = (int(v) for v in random.choice(6, 2, p=[0.5, 0.1, 0.2, 0.1, 0.05, 0.05]))
    refused = not fits(*shapes) or max(hidden, cell) > 3
    values |= dict(zip(("hidden_min", "hidden_max"), pairs[hidden])) | dict(zip(("cell_min", "cell_max"), pairs[cell]))
    try:
        results = native.ops.dqat_quantized_lstm(**values, go_backwards=bool(random.integers(2)))
    except tf.errors.InvalidArgumentError:
        assert refused, (call, shapes, hidden, cell)
        outcomes["refused"] += 1
        continue
    assert not refused, (call, shapes, hidden, cell)
    assert results[0].shape == (*shapes[0][:2], units) and bool(tf.reduce_all(tf.math.is_finite(results[0])))
    outcomes["right"] += 1
for shape_a, shape_b in [((2**46, 0), (0, 2**46)), ((0, 2**46), (2**46, 0)), ((2**46, 0), (0, 1))]:
    try:
        ops.matmul(np.zeros(shape_a, "f"), np.zeros(shape_b, "f"))
    except (tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError):
        continue
    assert 2**46 in shape_a[1:]
print(outcomes["right"] > 400 and outcomes["refused"] > 300, outcomes)
"""


def test_random_calls_are_right_or_refused_and_none_ends_the_process(run_python):
    assert run_python("-c", FUZZ).split()[0] == "True"
