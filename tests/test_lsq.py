import dataclasses

import numpy as np
import pytest
import reference as definition
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


@pytest.mark.parametrize(
    "step, axis, expected", [([0.1, 0.1], None, r"\[\]"), (0.1, -1, r"\[3\]"), ([0.1] * 2, 0, r"\[3\]")]
)
def test_a_step_of_wrong_shape_is_refused(step, axis, expected):
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"step and signed must have shape {expected}, got"):
        dqat.ops.fake_quant_learned(np.ones(3, np.float32), step, axis=axis)
    function = tf.function(lambda: dqat.ops.fake_quant_learned(np.ones(3, np.float32), step, axis=axis))
    with pytest.raises(ValueError, match="Shape must be rank|Dimensions must be equal"):
        function.get_concrete_function()


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize(
    "shape, axis, group_size",
    [
        ((70_001,), None, 1),
        ((513, 129), -1, 1),
        ((1001, 6), -1, 3),
        ((6, 7, 300), 1, 1),
        ((0, 5), 1, 1),
        ((3, 5, 0), 1, 1),
    ],
)
def test_channels_and_small_floats_are_computed_as_the_definition_says(rng, dtype, shape, axis, group_size):
    x, dy = (tf.cast(rng.normal(size=shape), dtype) for _ in range(2))
    channels = [] if axis is None else [shape[axis] // group_size]
    step = np.asarray(0.02 * (0.1 + rng.random(channels)), np.float32)
    signed = rng.random(channels) < 0.7
    if channels and channels[0] > 4:
        step[3] = 0.0  # no step yet
    options = {"num_bits": 6, "narrow_range": True}
    wide = [value.numpy().astype(np.float32) for value in (x, dy)]
    if axis is not None:
        axis %= len(shape)
        split = (*shape[:axis], *channels, group_size, *shape[axis + 1 :])
        wide = [value.reshape(split) for value in wide]
    dx, dstep, size = definition.learned_gradients(wide[1], wide[0], step, signed, 77, axis=axis, **options)
    y = definition.fake_quant(wide[0], *definition.learned_range(step, signed, 6, True), axis=axis, **options)
    granularity = {"axis": axis, "group_size": group_size}
    got = run(x, dy, step, signed=signed, elements=77, **granularity, **options)
    tracked = dqat.ops.fake_quant_learned_track(x, step, signed=signed, **granularity, **options)
    for ours, expected in ((got[0], y), (tracked[0], y), (got[1], dx)):
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours, tf.cast(expected.reshape(shape), dtype))
    assert got[2].dtype == tf.float32
    assert got[2].shape == tuple(channels)
    assert (np.abs(got[2] - dstep) <= 2e-6 * size).all()
    for ours, expected in zip(tracked[1:], dqat.ops.min_max(x, **granularity), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_each_channel_is_what_a_tensor_of_its_own_would_be(rng):
    """Powers of two, where multiplying with the inverse of a scale is dividing by it."""
    x, dy = (rng.normal(size=(4, 3, 50)).astype(np.float32) for _ in range(2))
    step = np.float32([2.0**-6, 0.0, 2.0**-4])
    whole = run(x, dy, step, signed=[True, True, False], axis=1)
    for channel, signed in enumerate([True, True, False]):
        alone = run(x[:, channel], dy[:, channel], step[channel], signed=signed)
        np.testing.assert_array_equal(whole[0][:, channel], alone[0])
        np.testing.assert_array_equal(whole[1][:, channel], alone[1])
        assert float(whole[2][channel]) == pytest.approx(float(alone[2]), rel=1e-5)


@pytest.mark.parametrize("axis", [None, 0])
def test_the_numeric_gradient_agrees_where_values_are_clipped(axis):
    """Outside the range the output is the step times the outermost level: smooth, and constant in x."""
    x = tf.constant([[900.0, -700.0, 300.0], [200.0, -400.0, 500.0]])
    step = tf.fill([] if axis is None else [2], 1.0)
    levels = np.where(x > 0, 7.0, -8.0).reshape(-1)

    def quantized(x, step):
        return dqat.ops.fake_quant_learned(x, step, num_bits=4, elements=1, axis=axis) * np.sqrt(7.0)

    analytic, numeric = tf.test.compute_gradient(quantized, [x, step], delta=2.0**-4)
    np.testing.assert_array_equal(analytic[0], np.zeros((6, 6)))
    np.testing.assert_array_equal(numeric[0], np.zeros((6, 6)))
    # The op scales the gradient by 1 / sqrt(elements * highest level); the output is scaled by its inverse.
    moves = levels[:, np.newaxis] if axis is None else np.kron(np.eye(2), np.ones((3, 1))) * levels[:, np.newaxis]
    np.testing.assert_allclose(analytic[1], moves, rtol=1e-6)
    np.testing.assert_allclose(numeric[1] / np.sqrt(7.0), moves, rtol=1e-3, atol=1e-3)


def test_static_shapes_survive_unknown_ones():
    function = tf.function(
        lambda x: dqat.ops.fake_quant_learned_track(x, [0.1] * 3, elements=3, axis=-1), jit_compile=False
    )
    y, low, high = function.get_concrete_function(tf.TensorSpec([None, 3])).outputs
    assert y.shape.as_list() == [None, 3]
    assert low.shape == high.shape == [3]
    y, low, _ = function.get_concrete_function(tf.TensorSpec(None)).outputs
    assert y.shape.rank is None
    assert low.shape == [3]


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
    return dataclasses.replace(dqat.Scheme(), observer=LearnedStep(), **options)


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
