import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from conftest import compiled, speech_model

import dqat
from dqat import native
from dqat.keras_api import keras
from dqat.model import QuantizedModel, named_quantizers
from dqat.observers import LearnedStep

LEVELS = [(bits, signed, narrow) for bits in (2, 4, 8, 16) for signed in (True, False) for narrow in (True, False)]


def bounds(num_bits, signed, narrow):
    """(-Qn, Qp) as the paper has them, one level less at one end where narrow."""
    if signed:
        return -(2 ** (num_bits - 1)) + narrow, 2 ** (num_bits - 1) - 1
    return 0, 2**num_bits - 1 - narrow


def reference(x, dy, step, low, high, elements):
    """Equations 1 to 3 and 5 of Esser et al. 2020 in float64, halves rounded up."""
    v = np.float64(x) / np.float64(step)
    rounded = np.floor(v + 0.5)
    y = np.clip(rounded, low, high) * np.float64(step)
    slope = np.where(v <= low, low, np.where(v >= high, high, rounded - v))
    return y, dy * ((v > low) & (v < high)), (np.float64(dy) * slope).sum() / np.sqrt(elements * high), slope


def run(x, dy, step, **options):
    x, step = tf.constant(x), tf.constant(step, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([x, step])
        y = dqat.ops.fake_quant_learned(x, step, **options)
    return y, *tape.gradient(y, [x, step], output_gradients=tf.constant(dy))


@pytest.mark.parametrize("num_bits, signed, narrow", LEVELS)
def test_output_and_gradients_are_the_papers(rng, num_bits, signed, narrow):
    low, high = bounds(num_bits, signed, narrow)
    # Powers of two, and v in sixteenths: all is exact in float32, so nothing may differ.
    for step in (2.0**-5, 2.0**3):
        inside = rng.uniform(1.5 * low - 2, 1.3 * high + 2, 70_000)
        v = np.round(16 * np.concatenate([inside, [low, high, 0.5, 0, low - 1, high + 9]])) / 16
        x = np.float32(v * step)
        dy = rng.normal(size=x.shape).astype(np.float32)
        y, dx, dstep = run(x, dy, step, num_bits=num_bits, signed=signed, narrow_range=narrow)
        expected_y, expected_dx, expected_dstep, slope = reference(x, dy, step, low, high, x.size)
        np.testing.assert_array_equal(y, expected_y)
        np.testing.assert_array_equal(dx, expected_dx)
        summands = np.abs(dy * slope).sum() / np.sqrt(x.size * high)
        assert abs(float(dstep) - expected_dstep) <= 2e-6 * summands


@pytest.mark.parametrize("num_bits, signed, narrow", LEVELS)
def test_the_output_is_that_of_fake_quant_on_the_steps_range(rng, num_bits, signed, narrow):
    for step in np.float32(10.0 ** rng.uniform(-5, 2, 20)):
        low, high = (step * np.float32(level) for level in bounds(num_bits, signed, narrow))
        x = np.float32(rng.uniform(1.2 * low - step, 1.2 * high, 500))
        y, _, _ = run(x, x, step, num_bits=num_bits, signed=signed, narrow_range=narrow)
        np.testing.assert_array_equal(y, dqat.ops.fake_quant(x, low, high, num_bits=num_bits, narrow_range=narrow))


def test_the_levels_are_those_that_python_knows():
    for num_bits, signed, narrow in LEVELS:
        found = dqat.ops.learned_levels(num_bits, signed, narrow)
        assert tuple(map(float, found)) == bounds(num_bits, signed, narrow)


def test_the_gradient_to_the_step_is_scaled_by_the_number_of_elements(rng):
    x, dy = (rng.normal(size=(6, 50)).astype(np.float32) for _ in range(2))
    whole = run(x, dy, 0.02)[2]
    np.testing.assert_array_equal(whole, run(x, dy, 0.02, elements=300)[2])
    assert float(run(x, dy, 0.02, elements=50)[2]) == pytest.approx(float(whole) * np.sqrt(6), rel=1e-6)


@pytest.mark.parametrize("parts", [2, 4])
def test_the_mean_of_the_parts_gradients_is_that_of_the_whole(rng, parts):
    """Each replica's loss is a mean over its rows; the gradient's scale must not depend on their number."""
    x, dy = (rng.normal(size=(64, 50)).astype(np.float32) for _ in range(2))
    whole = run(x, dy / len(x), 0.02, elements=50)[2]
    rows = len(x) // parts
    split = [
        run(part, slope / rows, 0.02, elements=50)[2]
        for part, slope in zip(np.split(x, parts), np.split(dy, parts), strict=True)
    ]
    assert float(np.mean(split)) == pytest.approx(float(whole), rel=1e-5)


def test_the_gradient_is_the_same_bits_on_every_instruction_set(rng):
    x, dy = (rng.normal(size=100_003).astype(np.float32) for _ in range(2))
    best, results = dqat.build_info()["instruction_set"], []
    try:
        for name in dqat.build_info()["instruction_sets"]:
            native.module.set_instruction_set(name)
            results.append([part.numpy() for part in run(x, dy, 0.0173)])
    finally:
        native.module.set_instruction_set(best)
    for result in results[1:]:
        for ours, theirs in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_gradient_is_the_same_bits_on_any_number_of_threads(tmp_path, run_python):
    script = """
import sys, numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
import dqat
rng = np.random.default_rng(0)
x, dy = (tf.constant(rng.normal(size=500_009), tf.float32) for _ in range(2))
step = tf.constant(0.013)
with tf.GradientTape() as tape:
    tape.watch(step)
    y = dqat.ops.fake_quant_learned(x, step)
np.save(sys.argv[2], tape.gradient(y, step, output_gradients=dy).numpy())
"""
    for threads in (1, 5):
        run_python("-c", script, str(threads), str(tmp_path / f"{threads}.npy"))
    assert np.load(tmp_path / "1.npy") == np.load(tmp_path / "5.npy") != 0


def test_a_step_that_is_not_known_yet_passes_values_through(rng):
    x, dy = (rng.normal(size=(5, 3)).astype(np.float32) for _ in range(2))
    y, dx, dstep = run(x, dy, 0.0)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(dx, dy)
    assert float(dstep) == 0.0


def test_a_nan_has_no_share_in_the_gradient_and_is_recorded():
    x, dy = np.array([0.3, np.nan, -0.2], np.float32), np.ones(3, np.float32)
    _, dx, dstep = run(x, dy, 0.25, elements=9)
    np.testing.assert_array_equal(dx, [1, 0, 1])
    assert float(dstep) == float(run(x[::2], dy[::2], 0.25, elements=9)[2])
    _, low, high = dqat.ops.fake_quant_learned_track(x, 0.25)
    assert (float(low), float(high)) == (-np.inf, np.inf)


@pytest.mark.parametrize("step", [-0.1, np.nan, np.inf, 3e38])
def test_an_impossible_step_is_refused_with_its_value(step):
    with pytest.raises(tf.errors.InvalidArgumentError, match="step must be positive and finite.*got"):
        dqat.ops.fake_quant_learned(np.ones(3, np.float32), step)


def test_a_step_that_is_no_scalar_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"step must be a scalar, got shape \[2\]"):
        dqat.ops.fake_quant_learned(np.ones(3, np.float32), [0.1, 0.1])


@pytest.mark.parametrize("num_bits", [2, 4])
@pytest.mark.parametrize("start", [0.05, 3.0])
def test_descent_finds_the_step_with_the_smallest_error(rng, num_bits, start):
    x = tf.constant(rng.normal(size=(200, 50)), tf.float32)
    step = tf.Variable(start)

    def error(size):
        return tf.reduce_mean((dqat.ops.fake_quant_learned(x, size, num_bits=num_bits) - x) ** 2)

    for index in range(600):
        with tf.GradientTape() as tape:
            # Undoing the gradient's scale: here the step is all there is to train.
            loss = error(step) * np.sqrt(float(tf.size(x)))
        step.assign_sub(0.5 / (1 + index / 200) * tape.gradient(loss, step))
    best = min(float(error(size)) for size in np.float32(np.geomspace(0.05, 3, 300)))
    assert float(error(start)) > 1.5 * best
    assert float(error(step)) < 1.03 * best


def lone_model(spec=None, mode="delayed"):
    inputs = keras.Input((16,))
    quantizer = dqat.quantizers.Quantizer(spec or dqat.QuantizerSpec(), LearnedStep(), name="lone")
    return QuantizedModel(inputs, quantizer(inputs), range_sync=mode), quantizer


@pytest.mark.parametrize("mode", ["delayed", "exact"])
def test_the_step_starts_from_the_first_record(rng, mode):
    model, quantizer = lone_model(mode=mode)
    assert float(quantizer.step) == 0
    x = rng.normal(size=(64, 16)).astype(np.float32)
    model(x, training=True)
    expected = max(-x.min() / np.float32(128), x.max() / np.float32(127))
    assert float(quantizer.step) == expected
    low, high = quantizer.range()
    assert (float(low), float(high)) == (-128 * expected, np.float32(127) * expected)
    model(9 * x, training=True)  # from now on it is the optimizer's
    assert float(quantizer.step) == expected
    found = native.module.quantization_parameters(low.numpy(), high.numpy())
    assert found["zero_point"] == 0


def test_levels_are_unsigned_until_a_negative_value_is_seen(rng):
    model, quantizer = lone_model()
    x = rng.random((64, 16)).astype(np.float32)
    model(x, training=True)
    low, high = (float(part) for part in quantizer.range())
    assert low == 0.0
    assert high == pytest.approx(x.max(), rel=1e-6)
    model(-x, training=True)
    low, high = (float(part) for part in quantizer.range())
    assert high == pytest.approx(x.max(), rel=1e-6)
    assert low == pytest.approx(-x.max() * 128 / 127, rel=1e-6)


def test_training_and_inference_quantize_to_the_same_bits(rng):
    model, quantizer = lone_model()
    x = rng.normal(size=(64, 16)).astype(np.float32)
    model(x, training=True)
    quantizer.step.assign(0.0137)
    np.testing.assert_array_equal(model(x, training=True), model(x, training=False))
    assert len(np.unique(model(x))) <= 256


@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam, keras.optimizers.SGD, keras.optimizers.legacy.SGD])
def test_no_update_makes_the_step_negative(rng, optimizer):
    model, quantizer = lone_model()
    x = rng.normal(size=(64, 16)).astype(np.float32)
    model.compile(optimizer(1e4), "mse")
    model.fit(x, 0 * x, epochs=3, batch_size=64, verbose=0)
    assert float(quantizer.step) == 2.0**-24
    assert np.isfinite(model(x)).all()


def test_the_gradient_counts_the_elements_of_one_sample(rng):
    model, quantizer = lone_model()
    x = rng.normal(size=(64, 16)).astype(np.float32)
    dy = rng.normal(size=x.shape).astype(np.float32)
    model(x, training=True)
    with tf.GradientTape() as tape:
        y = model(x, training=True)
    got = tape.gradient(y, quantizer.step, output_gradients=dy)
    np.testing.assert_array_equal(got, run(x, dy, quantizer.step.numpy(), elements=16)[2])
    with tf.GradientTape() as tape:
        y, _ = quantizer.quantize_and_track(tf.constant(x), quantizer.in_use(), repeats=10)
    got = tape.gradient(y, quantizer.step, output_gradients=dy)
    np.testing.assert_array_equal(got, run(x, dy, quantizer.step.numpy(), elements=160)[2])


def test_channels_are_refused_and_power_of_two_scales_are_averaged():
    with pytest.raises(ValueError, match="LearnedStep finds one range per tensor: axis must be None, got 0"):
        dqat.quantizers.Quantizer(dqat.QuantizerSpec(axis=0), LearnedStep())
    model = dqat.quantize_model(speech_model(), scheme=learned_scheme())
    steps = [variable.name for variable in model.trainable_variables if "step" in variable.name]
    assert len(steps) == 4  # input, hidden state, ReLU, output; not the cell state
    assert "scale a power of two, MovingAverage (decay 0.99) instead of LearnedStep" in str(dqat.coverage(model))


def learned_scheme(**options):
    return dataclasses.replace(dqat.specs.SCHEMES["int8"], observer=LearnedStep(), **options)


@pytest.mark.parametrize("mode", ["delayed", "exact"])
def test_a_model_trains_its_steps_exports_and_verifies(speech, float_trained, mode, tmp_path):
    model = dqat.quantize_model(float_trained, scheme=learned_scheme(), range_sync=mode)
    compiled(model, 5e-4).fit(*speech[0], batch_size=30, epochs=1, verbose=0)
    quantizers = dict(named_quantizers(model))
    learned = {path: q for path, q in quantizers.items() if isinstance(q.observer, LearnedStep)}
    assert set(quantizers) - set(learned) == {"lstm_0/cell_state"}
    before = {path: float(quantizer.step) for path, quantizer in learned.items()}
    model.fit(*speech[0], batch_size=30, epochs=2, verbose=0)
    for path, quantizer in learned.items():
        assert float(quantizer.step) != before[path], path
    accuracy = model.evaluate(*speech[1], verbose=0)[1]
    assert accuracy >= float_trained.evaluate(*speech[1], verbose=0)[1] - 0.03

    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    for path, quantizer in learned.items():
        scale, zero_point = report.parameters[path]
        assert scale == pytest.approx(float(quantizer.step), rel=1e-6)
        assert zero_point == (-128 if path == "relu/output" else 0)
    parity = dqat.verify(model, report.path, speech[1][0][:100])
    assert parity.within_1_lsb > 0.98
    assert parity.same_class >= 0.99

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(speech[1][0][:32]), model(speech[1][0][:32]))
    assert len(loaded.trainable_weights) == len(model.trainable_weights)
