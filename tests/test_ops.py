import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import dqat
from dqat import native

INFINITY = float("inf")


def bits_of(array):
    return np.asarray(array, np.float32).view(np.int32)


@st.composite
def cases(draw):
    """A tensor with values on, inside and outside the range, gradients, and a range or one per channel."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    if draw(st.integers(0, 19)) == 0:
        shape = [draw(st.integers(1, 3000)), draw(st.integers(1, 40))]  # several blocks
    per_channel = draw(st.booleans())
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    magnitude = 10.0 ** draw(st.floats(-4, 4))
    channels = [shape[-1]] if per_channel else []
    kind = draw(st.sampled_from(["both signs", "positive", "negative", "without 0", "zero"]))
    low, high = -magnitude * generator.random(channels), magnitude * (generator.random(channels) + 1e-3)
    if kind == "positive":
        low = np.zeros(channels)
    elif kind == "negative":
        low, high = low - 1e-3 * magnitude, np.zeros(channels)
    elif kind == "without 0":
        low, high = high, high + high
    elif kind == "zero":
        low, high = np.zeros(channels), np.zeros(channels)
    x = generator.normal(size=shape) * magnitude
    x = np.where(generator.random(shape) < 0.1, np.broadcast_to(low, shape), x)
    x = np.where(generator.random(shape) < 0.1, np.broadcast_to(high, shape), x)
    dy = generator.normal(size=shape)
    return (
        *(np.asarray(value, np.float32) for value in (x, dy, low, high)),
        draw(st.integers(2, 8)),
        draw(st.booleans()),
        per_channel,
    )


@pytest.fixture(autouse=True)
def best_instruction_set():
    """Tests may choose another one; the next starts with the best again."""
    yield
    native.module.set_instruction_set(dqat.build_info()["instruction_sets"][-1])


def run(function, x, dy, low, high):
    with tf.GradientTape() as tape:
        inputs = [tf.constant(value) for value in (x, low, high)]
        tape.watch(inputs)
        y = function(*inputs)
    return (y, *tape.gradient(y, inputs, output_gradients=tf.constant(dy)))


@given(cases())
def test_output_and_gradients_are_those_of_tensorflow(case):
    x, dy, low, high, num_bits, narrow, per_channel = case
    theirs = (
        tf.quantization.fake_quant_with_min_max_vars_per_channel
        if per_channel
        else tf.quantization.fake_quant_with_min_max_vars
    )
    options = {"num_bits": num_bits, "narrow_range": narrow}
    expected = run(lambda *args: theirs(*args, **options), x, dy, low, high)
    axis = -1 if per_channel else None
    got = run(lambda *args: dqat.ops.fake_quant(*args, axis=axis, **options), x, dy, low, high)
    tracked = run(lambda *args: dqat.ops.fake_quant_track(*args, axis=axis, **options)[0], x, dy, low, high)
    np.testing.assert_array_equal(bits_of(got[0]), bits_of(expected[0]))
    np.testing.assert_array_equal(bits_of(got[1]), bits_of(expected[1]))
    for ours, other in zip(got, tracked, strict=True):
        np.testing.assert_array_equal(bits_of(ours), bits_of(other))
    # n additions in two orders: each is off by at most n * eps / 2 * sum |dy|.
    reduced = tuple(range(x.ndim - 1)) if per_channel else None
    bound = x.size * np.finfo(np.float32).eps * np.abs(dy).sum(axis=reduced)
    assert (np.abs(got[2] - expected[2]) <= bound).all()
    assert (np.abs(got[3] - expected[3]) <= bound).all()


@given(
    cases(), st.sampled_from(["relu", "relu6"]), st.sampled_from([tf.float32, tf.float16, tf.bfloat16]), st.booleans()
)
def test_an_activation_in_the_same_pass_is_the_one_before_to_the_bit(case, activation, dtype, has_range):
    x, dy, low, high, num_bits, narrow, _ = case
    x = np.where(np.abs(dy) < 0.2, 6 + dy, x)
    x.flat[:9] = np.array([0, -0.0, 6, 5.9999995, np.nan, np.inf, -np.inf, -1, 1e-40])[: x.size]
    low, high = (low.flat[0], high.flat[0]) if has_range else (INFINITY, -INFINITY)
    before = {"relu": tf.nn.relu, "relu6": tf.nn.relu6}[activation]
    options = {"num_bits": num_bits, "narrow_range": narrow}
    apart = together = ()
    for fused in (False, True):
        with tf.GradientTape() as tape:
            values = tf.cast(x, dtype)
            tape.watch(values)
            if fused:
                together = y, *_ = dqat.ops.fake_quant_track(values, low, high, activation=activation, **options)
            else:
                apart = y, *_ = dqat.ops.fake_quant_track(before(values), low, high, **options)
        slope = tape.gradient(y, values, output_gradients=tf.cast(dy, dtype))
        together, apart = ((*together, slope), apart) if fused else (together, (*apart, slope))
    # TensorFlow's ReLU of -0 is +0 in the middle of a tensor and -0 at its end.
    apart, together = ((y + tf.zeros_like(y), *others) for y, *others in (apart, together))
    for ours, expected in zip(together, apart, strict=True):
        ours, expected = (np.asarray(tf.cast(value, tf.float32)) for value in (ours, expected))
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(expected))
        np.testing.assert_array_equal(bits_of(np.nan_to_num(ours)), bits_of(np.nan_to_num(expected)))


@pytest.mark.parametrize(
    "axis, readers", [(None, ["Dqat>FakeQuantTrack"]), (-1, ["Dqat>FakeQuantTrack", "Dqat>FakeQuantGrad"])]
)
def test_a_gradient_reads_nothing_of_a_tensor_with_one_range(axis, readers):
    """So a training step needn't keep it, and its result may be written over it."""

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            low, high = (tf.fill([] if axis is None else [64], end) for end in (-1.0, 0.5))
            y, *_ = dqat.ops.fake_quant_track(tf.identity(x, "tracked"), low, high, axis=axis)
        return tape.gradient(y, x)

    graph = gradient.get_concrete_function(tf.TensorSpec([1000, 64])).graph
    tracked = graph.get_operation_by_name("tracked").outputs[0]
    assert sorted({reader.type for reader in tracked.consumers()}, reverse=True) == readers


def test_an_activation_needs_one_range_and_a_known_name():
    x = tf.ones([4, 3])
    with pytest.raises(tf.errors.InvalidArgumentError, match="activation relu needs one range for the tensor"):
        dqat.ops.fake_quant_track(x, [-1.0] * 3, [1.0] * 3, axis=-1, activation="relu")
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="tanh"):
        dqat.ops.fake_quant_track(x, -1.0, 1.0, activation="tanh")


def test_a_single_channel_is_computed_as_tensorflow_computes_channels(rng):
    # Per channel TensorFlow multiplies with the inverse of the scale, per tensor it divides: a few values in
    # 10,000 differ, at level boundaries.
    x, low, high = rng.normal(size=(200_000, 1)).astype(np.float32), [-0.76475036], [0.56548434]
    theirs = tf.quantization.fake_quant_with_min_max_vars_per_channel(x, low, high, num_bits=15)
    np.testing.assert_array_equal(dqat.ops.fake_quant(x, low, high, num_bits=15, axis=-1), theirs)
    assert (dqat.ops.fake_quant(x, low[0], high[0], num_bits=15) != theirs).numpy().any()


@given(cases())
def test_track_records_the_extremes_of_the_input(case):
    x, _, low, high, num_bits, narrow, per_channel = case
    axis = -1 if per_channel else None
    options = {"num_bits": num_bits, "narrow_range": narrow, "axis": axis}
    _, batch_min, batch_max = dqat.ops.fake_quant_track(x, low, high, **options)
    reduced = tuple(range(x.ndim - 1)) if per_channel else None
    np.testing.assert_array_equal(batch_min, x.min(axis=reduced))
    np.testing.assert_array_equal(batch_max, x.max(axis=reduced))
    for got, other in zip(dqat.ops.min_max(x, axis=axis), (batch_min, batch_max), strict=True):
        np.testing.assert_array_equal(got, other)


@pytest.mark.parametrize("axis", [0, 1, 2, -2, -3])
def test_any_axis_equals_the_last_axis_after_transposing(rng, axis):
    x = rng.normal(size=(6, 7, 300)).astype(np.float32)
    dy = rng.normal(size=x.shape).astype(np.float32)
    channels = x.shape[axis]
    low, high = -rng.random(channels).astype(np.float32), rng.random(channels).astype(np.float32)
    got = run(lambda *args: dqat.ops.fake_quant(*args, axis=axis), x, dy, low, high)
    moved = run(
        lambda *args: dqat.ops.fake_quant(*args, axis=-1),
        np.moveaxis(x, axis, -1),
        np.moveaxis(dy, axis, -1),
        low,
        high,
    )
    np.testing.assert_array_equal(np.moveaxis(got[0].numpy(), axis, -1), moved[0])
    np.testing.assert_array_equal(np.moveaxis(got[1].numpy(), axis, -1), moved[1])
    np.testing.assert_allclose(got[2], moved[2], rtol=0, atol=1e-3)
    np.testing.assert_allclose(got[3], moved[3], rtol=0, atol=1e-3)


SMALL_FLOATS = [tf.float16, tf.bfloat16]


@pytest.mark.parametrize("dtype", SMALL_FLOATS, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shape, axis", [((70_001,), None), ((513, 129), -1), ((1001, 3), -1), ((6, 7, 300), 1)])
def test_small_floats_are_computed_in_float32_and_rounded_once(rng, dtype, shape, axis):
    x, dy = (tf.cast(rng.normal(size=shape), dtype) for _ in range(2))
    channels = [] if axis is None else [shape[axis]]
    low, high = (tf.constant(sign * (0.1 + rng.random(channels)), tf.float32) for sign in (-1, 1))
    got = run(lambda *args: dqat.ops.fake_quant(*args, axis=axis), x, dy, low, high)
    wide = [tf.cast(value, tf.float32) for value in (x, dy)]
    expected = run(lambda *args: dqat.ops.fake_quant(*args, axis=axis), *wide, low, high)
    for ours, theirs in zip(got[:2], expected[:2], strict=True):
        assert ours.dtype == dtype
        np.testing.assert_array_equal(tf.bitcast(ours, tf.uint16), tf.bitcast(tf.cast(theirs, dtype), tf.uint16))
    for ours, theirs in zip(got[2:], expected[2:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-2)  # sums in float32, but in another order
    y, *record = dqat.ops.fake_quant_track(x, low, high, axis=axis)
    np.testing.assert_array_equal(tf.bitcast(y, tf.uint16), tf.bitcast(got[0], tf.uint16))
    for ours, theirs in zip(record, dqat.ops.min_max(wide[0], axis=axis), strict=True):
        assert ours.dtype == tf.float32
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", SMALL_FLOATS, ids=lambda dtype: dtype.name)
def test_every_small_float_is_read_exactly(dtype):
    x = tf.bitcast(tf.constant(np.arange(65536), tf.uint16), dtype)
    values = tf.cast(x, tf.float32).numpy()
    # TensorFlow runs all kernels with float32 denormals as zero; those of float16 are no denormals in float32.
    values = np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)
    for name in dqat.build_info()["instruction_sets"]:
        native.module.set_instruction_set(name)
        low, high = dqat.ops.min_max(tf.reshape(x, [1, -1]), axis=-1)
        np.testing.assert_array_equal(low, np.where(np.isfinite(values), values, -np.inf))
        np.testing.assert_array_equal(high, np.where(np.isfinite(values), values, np.inf))


@pytest.mark.parametrize("dtype", SMALL_FLOATS, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-3, 1.0, 1e4, 1e30], ids=str)
def test_every_level_is_rounded_to_a_small_float_as_tensorflow_rounds(dtype, scale):
    """Normal, denormal and overflowing results."""
    low, high = -32768.0 * scale, 32767.0 * scale
    x = tf.cast(np.linspace(low, high, 65536), dtype)
    y = dqat.ops.fake_quant(x, low, high, num_bits=16)
    expected = tf.cast(dqat.ops.fake_quant(tf.cast(x, tf.float32), low, high, num_bits=16), dtype)
    equal = tf.bitcast(y, tf.uint16) == tf.bitcast(expected, tf.uint16)
    assert tf.reduce_all(equal | (tf.math.is_nan(y) & tf.math.is_nan(expected)))


@pytest.mark.parametrize(
    "shape, axis, group_size", [((5, 12), -1, 4), ((300, 6, 50), 1, 3), ((8, 64), 0, 8), ((3, 96), 1, 48)]
)
def test_a_group_of_channels_shares_a_range(rng, shape, axis, group_size):
    x, dy = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    groups = shape[axis] // group_size
    low, high = (np.asarray(sign * (0.1 + rng.random(groups)), np.float32) for sign in (-1, 1))
    options = {"axis": axis, "group_size": group_size}
    got = run(lambda *args: dqat.ops.fake_quant(*args, **options), x, dy, low, high)
    one_by_one = run(
        lambda *args: dqat.ops.fake_quant(*args, axis=axis),
        x,
        dy,
        np.repeat(low, group_size),
        np.repeat(high, group_size),
    )
    np.testing.assert_array_equal(bits_of(got[0]), bits_of(one_by_one[0]))
    np.testing.assert_array_equal(bits_of(got[1]), bits_of(one_by_one[1]))
    for ours, theirs in zip(got[2:], one_by_one[2:], strict=True):
        np.testing.assert_allclose(ours, np.reshape(theirs, [groups, -1]).sum(-1), atol=1e-3)
    for ours, theirs, fold in zip(
        dqat.ops.min_max(x, **options), dqat.ops.min_max(x, axis=axis), (np.min, np.max), strict=True
    ):
        np.testing.assert_array_equal(ours, fold(np.reshape(theirs, [groups, -1]), axis=-1))


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="group_size 2 does not divide the 3 channels"):
        dqat.ops.min_max(np.ones((2, 3), np.float32), axis=-1, group_size=2)
    with pytest.raises(ValueError, match="group_size 2 needs a channel axis"):
        dqat.ops.min_max(np.ones((2, 3), np.float32), group_size=2)


@pytest.mark.parametrize("channels", [1, 2, 3, 7, 31, 32, 100, 100_000])
def test_any_number_of_channels(rng, channels):
    x, dy = (rng.normal(size=(37, channels)).astype(np.float32) for _ in range(2))
    low, high = (np.asarray(sign * (0.1 + rng.random(channels)), np.float32) for sign in (-1, 1))
    got = run(lambda *args: dqat.ops.fake_quant(*args, axis=-1), x, dy, low, high)
    for channel in range(min(channels, 5)):
        alone = run(
            lambda *args: dqat.ops.fake_quant(*args, axis=0),
            *(np.ascontiguousarray(value[:, channel])[np.newaxis] for value in (x, dy)),
            low[channel : channel + 1],
            high[channel : channel + 1],
        )
        np.testing.assert_array_equal(bits_of(got[0][:, channel]), bits_of(alone[0][0]))
        np.testing.assert_array_equal(bits_of(got[1][:, channel]), bits_of(alone[1][0]))
        np.testing.assert_allclose([got[2][channel], got[3][channel]], [alone[2][0], alone[3][0]], atol=1e-4)
    for ours, theirs in zip(dqat.ops.min_max(x, axis=-1), (x.min(0), x.max(0)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("shape, axis", [((513, 129), -1), ((999, 3), -1), ((3, 5, 40_001), 1), ((100_003,), None)])
def test_every_instruction_set_gives_the_same_bits(rng, shape, axis):
    x, dy = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    channels = [] if axis is None else [shape[axis]]
    low, high = (np.asarray(sign * 0.5 * rng.random(channels), np.float32) for sign in (-1, 1))
    results = {}
    for name in dqat.build_info()["instruction_sets"]:
        native.module.set_instruction_set(name)
        gradients = run(lambda *args: dqat.ops.fake_quant(*args, axis=axis), x, dy, low, high)
        results[name] = [bits_of(v) for v in (*gradients, *dqat.ops.fake_quant_track(x, low, high, axis=axis))]
    for name, result in results.items():
        for got, expected in zip(result, results["baseline"], strict=True):
            np.testing.assert_array_equal(got, expected, err_msg=name)


def test_range_gradients_are_the_same_bits_on_any_number_of_threads(tmp_path, run_python):
    script = """
import sys, numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
import dqat
rng = np.random.default_rng(0)
x, dy = (tf.constant(rng.normal(size=(997, 513)), tf.float32) for _ in range(2))
found = []
for axis, low in ((None, tf.constant(-0.5)), (-1, tf.fill([513], -0.5)), (0, tf.fill([997], -0.5))):
    with tf.GradientTape() as tape:
        tape.watch(low)
        y = dqat.ops.fake_quant(x, low, -low, axis=axis)
    found.append(tape.gradient(y, low, output_gradients=dy).numpy().reshape(-1))
np.save(sys.argv[2], np.concatenate(found))
"""
    for threads in (1, 2, 5):
        run_python("-c", script, str(threads), str(tmp_path / f"{threads}.npy"))
    one = np.load(tmp_path / "1.npy")
    for threads in (2, 5):
        np.testing.assert_array_equal(bits_of(np.load(tmp_path / f"{threads}.npy")), bits_of(one))


def test_nan_and_inf_become_the_record_that_survives_max():
    x = np.array([[1.0, np.nan, -np.inf, 2.0], [3.0, 4.0, 5.0, np.inf]], np.float32)
    for low, high in (
        dqat.ops.min_max(x, axis=-1),
        dqat.ops.fake_quant_track(x, [-1.0] * 4, [1.0] * 4, axis=-1)[1:],
    ):
        np.testing.assert_array_equal(low, [1.0, -np.inf, -np.inf, -np.inf])
        np.testing.assert_array_equal(high, [3.0, np.inf, np.inf, np.inf])
    assert [float(part) for part in dqat.ops.min_max(x)] == [-np.inf, np.inf]


def test_empty_tensor_has_the_empty_record():
    y, low, high = dqat.ops.fake_quant_track(np.zeros((0, 3), np.float32), -1.0, 1.0)
    assert y.shape == (0, 3)
    assert (float(low), float(high)) == (np.inf, -np.inf)


@pytest.mark.parametrize("shape, axis", [((0, 3), -1), ((3, 0), 0), ((2, 5, 0), 1), ((2, 5, 0), 0), ((0, 4, 7), 1)])
def test_channels_of_an_empty_tensor_have_empty_records_and_no_gradient(shape, axis):
    x, channels = tf.zeros(shape), shape[axis]
    low, high = tf.fill([channels], -1.0), tf.fill([channels], 1.0)
    for _ in range(100):  # a kernel that wrote beyond its memory would not last
        y, *record = dqat.ops.fake_quant_track(x, low, high, axis=axis)
    assert y.shape == shape
    np.testing.assert_array_equal(record, [[INFINITY] * channels, [-INFINITY] * channels])
    gradients = run(lambda *args: dqat.ops.fake_quant(*args, axis=axis), x, x, low, high)
    assert gradients[1].shape == shape
    np.testing.assert_array_equal(gradients[2:], np.zeros((2, channels)))


def test_an_empty_range_passes_values_and_gradients_through(rng):
    x = rng.normal(size=(5, 3)).astype(np.float32)
    low, high = np.array([np.inf, -1, np.inf], np.float32), np.array([-np.inf, 1, -np.inf], np.float32)
    y, dx, _, _ = run(lambda *args: dqat.ops.fake_quant(*args, axis=-1), x, np.ones_like(x), low, high)
    np.testing.assert_array_equal(y[:, ::2], x[:, ::2])
    assert (y.numpy()[:, 1] != x[:, 1]).all()
    np.testing.assert_array_equal(dx[:, ::2], 1)


@pytest.mark.parametrize("low, high", [(1.0, -1.0), (np.nan, 1.0), (-1.0, np.inf), (-np.inf, np.inf), (0.5, 0.5)])
def test_an_invalid_range_is_refused_with_its_values(low, high):
    with pytest.raises(tf.errors.InvalidArgumentError, match="range must be finite with min < max.*got min"):
        dqat.ops.fake_quant(np.ones(3, np.float32), low, high)


@pytest.mark.parametrize(
    "low, axis, message",
    [
        ([-1.0], None, "min and max must have shape"),
        ([-1.0, -1.0], -1, "min and max must have shape"),
        (-1.0, -1, "min and max must have shape"),
        ([-1.0] * 3, 2, "axis 2 is not an axis of x"),
    ],
)
def test_a_range_of_wrong_shape_is_refused(low, axis, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        dqat.ops.fake_quant(np.ones((2, 3), np.float32), low, np.negative(low), axis=axis)


@pytest.mark.parametrize("num_bits", [1, 17])
def test_a_wrong_number_of_bits_is_refused(num_bits):
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match="num_bits|>= minimum 2"):
        dqat.ops.fake_quant(1.0, -1.0, 1.0, num_bits=num_bits)


class TestFitRange:
    def test_contains_zero(self):
        assert [float(part) for part in dqat.ops.fit_range(1.0, 2.0)] == [0.0, 2.0]

    def test_symmetric_narrow_range_is_plus_minus_the_largest_magnitude(self):
        low, high = dqat.ops.fit_range(-0.5, 2.0, symmetric=True, narrow_range=True)
        assert (float(low), float(high)) == (-2.0, 2.0)

    def test_symmetric_full_range_has_zero_point_zero(self):
        fitted = dqat.ops.fit_range(-0.5, 2.0, symmetric=True)
        found = native.module.quantization_parameters(*(part.numpy() for part in fitted))
        assert found["zero_point"] == 0
        np.testing.assert_allclose(found["scale"], 2.0 / 127, rtol=1e-6)

    @pytest.mark.parametrize(
        "largest, expected", [(0.01, 1), (1.0, 1), (1.0001, 2), (3.0, 4), (4.0, 4), (60.0, 64), (1e4, 64)]
    )
    def test_power_of_two_is_the_next_one_that_tflite_can_read(self, largest, expected):
        low, high = dqat.ops.fit_range(-largest, 0.0, num_bits=16, power_of_two=True)
        found = native.module.quantization_parameters(low.numpy(), high.numpy(), num_bits=16)
        assert found["scale"] == expected / 32768
        assert found["zero_point"] == 0

    def test_empty_stays_empty(self):
        for options in ({}, {"symmetric": True}, {"power_of_two": True}):
            assert [float(part) for part in dqat.ops.fit_range(INFINITY, -INFINITY, **options)] == [
                INFINITY,
                -INFINITY,
            ]

    def test_what_is_not_finite_stays_so(self):
        for options in ({}, {"symmetric": True}, {"power_of_two": True}):
            fitted = [part.numpy() for part in dqat.ops.fit_range([-INFINITY, np.nan], [INFINITY, 1.0], **options)]
            np.testing.assert_array_equal(fitted, [[-INFINITY, np.nan], [INFINITY, 1.0]])
