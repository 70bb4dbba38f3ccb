import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest
import reference
import tensorflow as tf
from conftest import compiled, speech_model

import dqat
from dqat.keras_api import keras
from dqat.model import named_quantizers
from dqat.observers import EMPTY, MSE, Percentile

BINS = reference.BINS
SPECIAL = [0.0, -0.0, 1e-45, 2.0**-24, -(2.0**-24), np.nextafter(2.0**-24, 0), 1.0, np.nextafter(1, 0), -1.0]
SPECIAL += [65535.9, 65536.0, -1e30, 3.4e38, np.inf, -np.inf, np.nan, 31 / 32, 1 + 1 / 32, -1.5]


def tensors():
    rng = np.random.default_rng(0)
    return {
        "special": np.array(SPECIAL, np.float32),
        "normal": rng.normal(size=(997, 113)).astype(np.float32),
        "wide": (rng.normal(size=100_003) * 10.0 ** rng.uniform(-9, 9, 100_003)).astype(np.float32),
        "relu": np.maximum(rng.normal(size=(7, 11, 501)), 0).astype(np.float32),
        "one": np.array(-3.25, np.float32),
        "empty": np.zeros((0, 5), np.float32),
    }


@pytest.mark.parametrize("name", tensors())
def test_counts_are_those_of_the_definition(name):
    x = tensors()[name]
    expected = reference.counts(x)
    assert expected.sum() == np.isfinite(x).sum()
    np.testing.assert_array_equal(dqat.ops.histogram(x)[2], expected)
    np.testing.assert_array_equal(dqat.ops.fake_quant_histogram(x, -1.0, 1.0)[3], expected)
    np.testing.assert_array_equal(dqat.ops.fake_quant_histogram(x, *EMPTY)[3], expected)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("name", tensors())
def test_small_floats_are_counted_as_the_float32_that_they_are(name, dtype):
    with np.errstate(over="ignore"):
        x = tf.cast(tensors()[name], dtype)
    wide = tf.cast(x, tf.float32)
    for function in (dqat.ops.histogram, lambda x: dqat.ops.fake_quant_histogram(x, -0.7, 1.3)):
        *first, low, high, counts = function(x)
        *first_wide, low_wide, high_wide, _ = function(wide)
        np.testing.assert_array_equal(counts, reference.counts(wide.numpy()))
        assert (float(low), float(high)) == (float(low_wide), float(high_wide))
        for y, expected in zip(first, first_wide, strict=True):
            assert y.dtype == dtype
            np.testing.assert_array_equal(*(tf.cast(value, tf.float32) for value in (y, tf.cast(expected, dtype))))


@pytest.mark.parametrize("name", tensors())
@pytest.mark.parametrize("range_", [(-0.7, 1.3), (0.0, 0.0), EMPTY])
def test_all_but_the_counts_is_that_of_fake_quant_track(name, range_):
    x = tf.constant(tensors()[name])
    results = []
    for function in (dqat.ops.fake_quant_track, dqat.ops.fake_quant_histogram):
        inputs = [x, *map(tf.constant, range_)]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(*inputs, num_bits=7, narrow_range=True)
            loss = tf.reduce_sum(outputs[0] ** 2)
        results.append([*outputs[:3], *tape.gradient(loss, inputs)])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("parts", [2, 4])
def test_counts_of_the_parts_add_up_to_those_of_the_whole(rng, parts):
    x = rng.standard_cauchy(size=(403, 301)).astype(np.float32)
    whole = dqat.ops.fake_quant_histogram(x, -1.0, 1.0)[3]
    summed = sum(dqat.ops.fake_quant_histogram(part, -1.0, 1.0)[3] for part in np.array_split(x, parts))
    assert whole.dtype == tf.int64
    np.testing.assert_array_equal(whole, summed)


def histogram_of(x):
    low, high, counts = dqat.ops.histogram(x)
    return counts, tf.minimum(low, 0.0), tf.maximum(high, 0.0)


@pytest.mark.parametrize("percentile", ["99.99", "99.9", "99", "75.5", "100"])
@pytest.mark.parametrize("name", ["normal", "relu", "wide", "one"])
def test_percentiles_leave_out_as_many_values_as_they_may_and_no_more(name, percentile):
    x = tensors()[name].reshape(-1)
    share = (100 - Fraction(percentile)) / 100
    low, high = (
        float(v)
        for v in dqat.ops.percentile_range(*histogram_of(x), lower=100 - float(percentile), upper=float(percentile))
    )
    lower, upper = reference.bin_edges()
    for values, bound, bounds in ((x, high, upper), (-x, -low, -lower[::-1])):
        assert (values > bound).sum() <= share * x.size
        exact = max(values.max(), 0)
        assert bound == exact or bound in bounds
        inward = bounds[bounds < bound].max()  # one bin further in
        assert (values >= inward).sum() > share * x.size or bound == 0
        assert bound <= exact


def test_lower_and_upper_percentile_are_independent(rng):
    x = rng.normal(size=100_000).astype(np.float32)
    counts, low, high = histogram_of(x)
    found = dqat.ops.percentile_range(counts, low, high, lower=0.0, upper=90.0)
    assert float(found[0]) == x.min()
    assert np.percentile(x, 90) <= float(found[1]) <= np.percentile(x, 90) * 33 / 32


def squared_error(x, low, high, num_bits, symmetric=False, narrow=False):
    """Mean squared error of quantizing in float64, the range nudged; inf where there is no range."""
    steps = 2**num_bits - 1 - narrow
    if symmetric:
        half = 2 ** (num_bits - 1)
        bound = max(-low, high)
        low, high = (-bound, bound) if narrow else (-bound * half / (half - 1), bound)
    if high <= low:
        return np.inf
    scale = (high - low) / steps
    zero = np.clip(np.floor(-low / scale + 0.5), 0, steps)
    codes = np.clip(np.floor(x / scale + 0.5), -zero, steps - zero)
    return np.mean((x - codes * scale) ** 2)


DISTRIBUTIONS = {
    "normal": lambda rng: rng.normal(size=4000),
    "outliers": lambda rng: np.concatenate([rng.normal(size=4000), [80.0, -35.0]]),
    "relu": lambda rng: np.maximum(rng.normal(size=4000), 0),
    "skewed": lambda rng: rng.gamma(2.0, size=4000) - 0.5,
    "laplace": lambda rng: rng.laplace(size=4000),
    "negative": lambda rng: -(rng.random(4000) ** 3),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("num_bits", [2, 4, 8])
@pytest.mark.parametrize(
    "options", [{}, {"symmetric": True}, {"symmetric": True, "narrow_range": True}], ids=lambda o: "+".join(o) or "any"
)
def test_the_minimum_error_range_is_the_best_that_brute_force_finds(rng, name, num_bits, options):
    x = DISTRIBUTIONS[name](rng).astype(np.float32)
    counts, lowest, highest = histogram_of(x)
    found = [float(v) for v in dqat.ops.minimum_error_range(counts, lowest, highest, num_bits=num_bits, **options)]
    lowest, highest = float(lowest), float(highest)
    assert lowest <= found[0] <= 0 <= found[1] <= highest

    def error(low, high):
        return squared_error(x, low, high, num_bits, options.get("symmetric"), options.get("narrow_range", False))

    factors = 2.0 ** np.arange(0, -7, -1 / 8)
    ends = zip(factors, factors, strict=True) if options else itertools.product(factors, factors)
    best = min(error(lowest * low, highest * high) for low, high in ends)
    # The sample is not the even spread in a bin that the histogram stands for; with 2 bits a few values decide.
    assert error(*found) <= best * (1.02 if num_bits > 2 else 1.05)
    assert error(*found) <= error(lowest, highest) * 1.0001


def test_more_values_of_the_same_kind_change_no_range(rng):
    counts, low, high = histogram_of(rng.normal(size=10_000).astype(np.float32))
    for function in (dqat.ops.percentile_range, dqat.ops.minimum_error_range):
        once, often = function(counts, low, high), function(counts * 2**30, low, high)
        assert [float(part) for part in once] == [float(part) for part in often]


def test_a_power_of_two_range_is_searched_as_it_will_be_fitted(rng):
    """Nearly all values lie within 1: a range of 16 that holds the outlier too costs 4 bits of all of them."""
    x = np.append(rng.uniform(-1, 1, 10**6), 9.0).astype(np.float32)
    options = {"num_bits": 4, "power_of_two": True}
    found = dqat.ops.minimum_error_range(*histogram_of(x), **options)
    assert float(dqat.ops.fit_range(*found, **options)[0]) == -1.0


@pytest.mark.parametrize("function", [dqat.ops.percentile_range, dqat.ops.minimum_error_range])
def test_nothing_and_zeros_have_ranges_too(function):
    nothing = np.zeros(BINS, np.int64)
    assert tuple(map(float, function(nothing, *EMPTY))) == EMPTY
    assert tuple(map(float, function(*histogram_of(np.zeros(9, np.float32))))) == (0.0, 0.0)


@pytest.mark.parametrize(
    "counts, low, high, options, message",
    [
        (np.zeros(7, np.int64), 0.0, 1.0, {}, r"counts must have shape \[2561\], got \[7\]"),
        (np.full(BINS, -1), 0.0, 1.0, {}, "counts must not be negative, got -1"),
        (np.zeros(BINS, np.int64), 1.0, 2.0, {}, "must be finite and contain 0, got 1 and 2"),
        (np.zeros(BINS, np.int64), 0.0, np.inf, {}, "must be finite and contain 0"),
        (np.zeros(BINS, np.int64), [0.0], 1.0, {}, r"min must be a scalar, got shape \[1\]"),
        (np.zeros(BINS, np.int64), 0.0, 1.0, {"upper": 101.0}, "0 <= lower < 50 < upper <= 100, got .* upper 101"),
        (np.zeros(BINS, np.int64), 0.0, 1.0, {"lower": 50.0}, "0 <= lower < 50 < upper <= 100, got lower 50"),
    ],
)
def test_wrong_arguments_are_refused_with_their_values(counts, low, high, options, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        dqat.ops.percentile_range(counts, low, high, **options)


def test_static_shapes_survive_unknown_ones():
    for spec, static in ((tf.TensorSpec([None, 3]), [None, 3]), (tf.TensorSpec(None), None)):
        function = tf.function(lambda x: dqat.ops.fake_quant_histogram(x, -1.0, 1.0), jit_compile=False)
        y, low, high, counts = function.get_concrete_function(spec).outputs
        assert (y.shape.as_list() if y.shape.rank is not None else None) == static
        assert low.shape == high.shape == []
        assert counts.shape == [BINS]
        low, high, counts = tf.function(dqat.ops.histogram).get_concrete_function(spec).outputs
        assert low.shape == high.shape == []
        assert counts.shape == [BINS]
    for function in (dqat.ops.percentile_range, dqat.ops.minimum_error_range):
        specs = tf.TensorSpec(None, tf.int64), tf.TensorSpec(None), tf.TensorSpec(None)
        assert all(part.shape == [] for part in tf.function(function).get_concrete_function(*specs).outputs)


@pytest.mark.parametrize(
    "function, specs, message",
    [
        (dqat.ops.fake_quant_histogram, ([None], [1], []), "Shape must be rank 0 but is rank 1"),
        (dqat.ops.fake_quant_histogram, ([None], [], [2]), "Shape must be rank 0 but is rank 1"),
        (dqat.ops.percentile_range, ([BINS], [], [1]), "Shape must be rank 0 but is rank 1"),
        (dqat.ops.percentile_range, ([7], [], []), "Dimension 0 in both shapes must be equal, but are 7 and 2561"),
        (dqat.ops.minimum_error_range, ([BINS, 1], [], []), "Shapes must be equal rank, but are 2 and 1"),
        (dqat.ops.minimum_error_range, ([BINS], [2], []), "Shape must be rank 0 but is rank 1"),
    ],
)
def test_a_wrong_static_shape_is_refused_when_the_graph_is_built(function, specs, message):
    first = tf.float32 if function is dqat.ops.fake_quant_histogram else tf.int64
    specs = [tf.TensorSpec(spec, tf.float32 if index else first) for index, spec in enumerate(specs)]
    with pytest.raises(ValueError, match=message):
        tf.function(function).get_concrete_function(*specs)


@pytest.mark.parametrize("decay", [1.0, 0.99, 0.5, 0.0])
def test_fading_is_exact_integer_arithmetic(decay):
    observer = Percentile(decay=decay)
    kept = round(decay * 65536)
    counts, expected = tf.zeros(3, tf.int64), [0, 0, 0]
    for record in ([1, 0, 2**40], [5, 7, 0], [0, 0, 3]):
        counts = observer.accumulate(counts, (tf.constant(-1.0), tf.constant(1.0), tf.constant(record, tf.int64)))
        expected = [old * kept // 65536 + 1024 * new for old, new in zip(expected, record, strict=True)]
        assert counts.numpy().tolist() == expected


def test_an_empty_record_does_not_fade_the_histogram():
    counts = tf.constant([1024, 77], tf.int64)
    record = (*map(tf.constant, EMPTY), tf.zeros(2, tf.int64))
    np.testing.assert_array_equal(MSE(decay=0.5).accumulate(counts, record), counts)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Percentile(50.0), "percentile must be more than 50 and at most 100, got 50"),
        (lambda: Percentile(100.1), "percentile must be more than 50"),
        (lambda: Percentile(lower=50.0), "lower must be at least 0 and less than 50, got 50"),
        (lambda: MSE(decay=1.5), "decay must be 0 to 1, got 1.5"),
    ],
)
def test_impossible_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("observer", [Percentile(), MSE()])
def test_channels_are_refused_with_the_way_out(observer):
    with pytest.raises(ValueError, match=r"axis must be None, got -1. Use MovingAverage per channel"):
        dqat.quantizers.Quantizer(dqat.QuantizerSpec(axis=-1), observer)


def lone_model(observer, range_sync="delayed", **options):
    from dqat.model import QuantizedModel

    inputs = keras.Input((16,))
    quantizer = dqat.quantizers.Quantizer(dqat.QuantizerSpec(), observer, name="lone")
    return QuantizedModel(inputs, quantizer(inputs), range_sync=range_sync, **options), quantizer


@pytest.mark.parametrize("mode", ["delayed", "exact"])
def test_a_quantizer_counts_what_all_its_steps_saw(rng, mode):
    model, quantizer = lone_model(Percentile(99.0, decay=1.0), mode)
    batches = rng.normal(size=(5, 64, 16)).astype(np.float32)
    for batch in batches:
        model(batch, training=True)
    np.testing.assert_array_equal(quantizer.counts, 1024 * reference.counts(batches.reshape(-1)))
    low, high = quantizer.range()
    expected = dqat.ops.percentile_range(*histogram_of(batches), lower=1.0, upper=99.0)
    assert (float(low), float(high)) == tuple(map(float, expected))
    assert (float(quantizer.lowest), float(quantizer.highest)) == (batches.min(), batches.max())
    before = quantizer.counts.numpy()
    model(batches[0], training=False)
    tf.function(lambda training: model(batches[0], training=training))(tf.constant(False))
    np.testing.assert_array_equal(quantizer.counts, before)


def test_exact_mode_quantizes_with_the_percentile_of_the_same_step(rng):
    model, quantizer = lone_model(Percentile(90.0), "exact")
    x = rng.normal(size=(64, 16)).astype(np.float32)
    y = model(x, training=True)
    assert float(tf.reduce_max(y)) == pytest.approx(float(quantizer.range()[1]), rel=0.02)
    assert float(tf.reduce_max(y)) < 0.6 * x.max()


def test_a_skipped_step_counts_nothing(rng):
    model, quantizer = lone_model(MSE(), on_nonfinite="skip")
    x = rng.normal(size=(64, 16)).astype(np.float32)
    model(x, training=True)
    before = [variable.numpy() for variable in (quantizer.counts, *quantizer.range(), quantizer.highest)]
    bad = 100 * x
    bad[3, 5] = np.nan
    model(bad, training=True)
    after = [variable.numpy() for variable in (quantizer.counts, *quantizer.range(), quantizer.highest)]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    assert int(quantizer.skipped) == 1


def test_only_observers_that_need_counts_hold_and_send_them():
    model = dqat.quantize_model(speech_model())
    assert not any("counts" in variable.name for variable in model.variables)
    scheme = dataclasses.replace(dqat.Scheme(), observer=MSE())
    model = dqat.quantize_model(speech_model(), scheme=scheme)
    assert sum("counts" in variable.name for variable in model.variables) == len(list(named_quantizers(model)))
    assert not any("counts" in variable.name for variable in model.trainable_variables)


@pytest.mark.parametrize("mode", ["delayed", "exact"])
@pytest.mark.parametrize("observer", [Percentile(99.9), MSE()], ids=lambda o: type(o).__name__)
def test_a_model_trains_exports_and_verifies(speech, float_trained, observer, mode, tmp_path):
    scheme = dataclasses.replace(dqat.Scheme(), observer=observer)
    model = compiled(dqat.quantize_model(float_trained, scheme=scheme, range_sync=mode), 5e-4)
    model.fit(*speech[0], batch_size=30, epochs=3, verbose=0)
    accuracy = model.evaluate(*speech[1], verbose=0)[1]
    assert accuracy >= float_trained.evaluate(*speech[1], verbose=0)[1] - 0.03
    quantizers = dict(named_quantizers(model))
    entry = quantizers["speech_quantizer"]
    assert float(entry.highest) == speech[0][0].max()
    if isinstance(observer, Percentile):
        assert float(entry.range()[1]) < 0.9 * speech[0][0].max()
    # Hidden states are counted at every timestep: 29 of 24 units for each of 30 samples a step.
    steps, values = 27, 30 * 29 * 24
    counted = int(tf.reduce_sum(quantizers["lstm_0/hidden"].counts)) / 1024 / values
    assert counted == pytest.approx((1 - 0.99**steps) / (1 - 0.99), rel=0.01)

    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    assert set(report.parameters) == set(quantizers)
    parity = dqat.verify(model, report.path, speech[1][0][:100])
    assert parity.within_1_lsb > 0.98
    assert parity.same_class >= 0.99
    assert f"{type(observer).__name__} (decay 0.99" in str(dqat.coverage(model))

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for ours, theirs in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert dict(named_quantizers(loaded))["speech_quantizer"].observer == observer
