"""The CUDA kernels: on a GPU where there is one, and their code on the CPU everywhere."""

import pathlib
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf

import dqat
from dqat import native

ROOT = pathlib.Path(__file__).parent.parent
INFINITY = float("inf")
KERNELS = (
    "FakeQuantWork",
    "FakeQuantGradWork",
    "ReachKernel",
    "ReachGradWork",
    "MinMaxWork",
    "MergeKernel",
    "FitRangeKernel",
    "CountKernel",
    "PercentileKernel",
    "MinimumErrorKernel",
    "LearnedGradWork",
    "LstmForwardStep",
    "LstmBackwardStep",
    "ProductWork",
    "GruForwardWork",
    "GruBackwardWork",
)
OPERATIONS = (
    "FakeQuant",
    "FakeQuantTrack",
    "FakeQuantGrad",
    "ReachGrad",
    "MinMax",
    "FitRange",
    "Histogram",
    "FakeQuantHistogram",
    "PercentileRange",
    "MinimumErrorRange",
    "FakeQuantLearned",
    "FakeQuantLearnedGrad",
    "GruStep",
    "GruStepGrad",
    "MatMul",
    "QuantizedLstm",
    "QuantizedLstmGrad",
)

needs_gpu = pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="no GPU")
needs_cuda = pytest.mark.skipif(not dqat.build_info()["cuda"], reason="built without CUDA")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")


def library():
    return pathlib.Path(native.module.__spec__.origin)


def same_bits(got, expected):
    """NaNs are equal to each other: the GPU doesn't keep their payload."""
    got, expected = np.asarray(got, np.float32), np.asarray(expected, np.float32)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), ~numbers)
    np.testing.assert_array_equal(got[numbers].view(np.int32), expected[numbers].view(np.int32))


class TestBuild:
    def test_build_info_says_whether_the_kernels_are_in_the_library(self):
        content = library().read_bytes()
        assert all((name.encode() in content) == dqat.build_info()["cuda"] for name in KERNELS)
        assert (b".nv_fatbin" in content) == dqat.build_info()["cuda"]

    def test_build_info_names_architectures_where_there_are_kernels(self):
        info = dqat.build_info()
        assert bool(info["cuda_architectures"]) == info["cuda"]
        assert all(name.startswith(("sm_", "compute_")) for name in info["cuda_architectures"])

    def test_every_operation_has_a_kernel_for_the_gpu_where_built_with_cuda(self):
        from tensorflow.python.framework import kernels

        for operation in OPERATIONS:
            found = {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(f"Dqat>{operation}").kernel}
            assert found == ({"CPU", "GPU"} if dqat.build_info()["cuda"] else {"CPU"})

    @needs_nm
    def test_the_library_brings_its_own_cuda_runtime_and_shows_it_to_nobody(self):
        # TensorFlow exports functions of the same names, for another version of CUDA.
        symbols = subprocess.run(["nm", "-D", library()], capture_output=True, text=True, check=True).stdout
        assert "TF_" in symbols or "tensorflow" in symbols
        assert not [line for line in symbols.splitlines() if "cuda" in line.lower()]


@needs_compiler
@pytest.mark.parametrize("name", ["cuda_on_host", "cuda_observers_on_host"])
def test_the_kernels_code_gives_the_cpus_bits_on_the_host(tmp_path, name):
    core = (
        *("fake_quant", "histogram", "histogram_range", "instruction_set", "learned_step", "reach_rows", "rows"),
        *("slope_reach", "streaming"),
    )
    sources = [ROOT / f"tests/cc/{name}.cc", *(ROOT / f"cc/core/{source}.cc" for source in core)]
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fopenmp-simd", "-ffp-contract=off"]
    program = tmp_path / name
    compile_command = ["g++", *flags, "-DDQAT_INSTRUCTION_SET=baseline", f"-I{ROOT / 'cc'}", *sources, "-o", program]
    compiled = subprocess.run(compile_command, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@needs_compiler
@pytest.mark.skipif(
    dqat.build_info()["instruction_set"] == "baseline", reason="no fused multiply-add on this processor"
)
def test_the_recurrent_kernels_code_gives_the_cpus_bits_on_the_host(tmp_path):
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fopenmp-simd", f"-I{ROOT / 'cc'}"]
    flags += ["-DDQAT_INSTRUCTION_SET=baseline", "-ffp-contract=off"]
    tiles, program = tmp_path / "product_tiles.o", tmp_path / "cuda_lstm_on_host"
    core = (
        "code_products",
        "code_tiles",
        "gru_rows",
        "gru_step",
        "lstm_forward",
        "lstm_backward",
        "lstm_products",
        "lstm_rows",
        "lstm_slope_product",
        "lstm_tables",
        "lstm_weight_gradients",
        "products",
        "instruction_set",
        "streaming",
        "fake_quant",
        "rows",
    )
    sources = [ROOT / "tests/cc/cuda_lstm_on_host.cc", *(ROOT / f"cc/core/{source}.cc" for source in core)]
    # As the library's own are compiled: only the products fuse.
    fused = ["-mavx2", "-mfma", "-ffp-contract=fast", "-c", ROOT / "cc/core/product_tiles.cc", "-o", tiles]
    for rest in (fused, [*sources, tiles, "-o", program]):
        compiled = subprocess.run(["g++", *flags, *rest], capture_output=True, text=True)
        assert compiled.returncode == 0, compiled.stderr
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def on(device, function, *arguments, **options):
    with tf.device(device):
        return function(*(tf.constant(argument, tf.float32) for argument in arguments), **options)


def tracked(x, low, high, **options):
    return dqat.ops.fake_quant_track(x, low, high, **options)[0]


def gradients(x, dy, low, high, function=dqat.ops.fake_quant, **options):
    with tf.GradientTape() as tape:
        tape.watch([x, low, high])
        y = function(x, low, high, **options)
    return tape.gradient(y, [x, low, high], output_gradients=dy)


@needs_gpu
@needs_cuda
@pytest.mark.parametrize(
    "shape, axis",
    [
        ((0,), None),
        ((1,), None),
        ((1_000_003,), None),
        ((0, 5), -1),
        ((3000, 12), -1),
        ((2, 100_000), -1),
        ((900, 65), 0),
        ((33, 7, 1000), 1),
        ((700, 9, 31), 1),
    ],
)
@pytest.mark.parametrize("num_bits, narrow_range", [(8, False), (4, True), (16, False)])
class TestGpu:
    @pytest.fixture
    def case(self, rng, shape, axis, num_bits, narrow_range):
        channels = [] if axis is None else [shape[axis]]
        x, dy = rng.normal(size=shape), rng.normal(size=shape)
        low, high = -rng.random(channels), 0.01 + rng.random(channels)
        if channels and channels[0] > 4:
            low[1], high[1] = 0.0, 0.0
            low[3], high[3] = INFINITY, -INFINITY
        options = {"axis": axis, "num_bits": num_bits, "narrow_range": narrow_range}
        return tuple(np.asarray(value, np.float32) for value in (x, dy, low, high)), options

    def test_outputs_and_records_have_the_cpus_bits(self, case):
        (x, _, low, high), options = case
        x.reshape(-1)[::4001] = np.nan
        for function in (lambda *a, **o: [dqat.ops.fake_quant(*a, **o)], dqat.ops.fake_quant_track):
            got = on("GPU:0", function, x, low, high, **options)
            expected = on("CPU:0", function, x, low, high, **options)
            assert "GPU" in got[0].device
            for ours, other in zip(got, expected, strict=True):
                same_bits(ours, other)
        got, expected = (on(device, dqat.ops.min_max, x, axis=options["axis"]) for device in ("GPU:0", "CPU:0"))
        for ours, other in zip(got, expected, strict=True):
            same_bits(ours, other)

    @pytest.mark.parametrize("function", [dqat.ops.fake_quant, tracked])
    def test_gradients_are_the_cpus_and_the_same_in_every_run(self, case, function):
        (x, dy, low, high), options = case
        got, again, expected = (
            on(device, gradients, x, dy, low, high, function=function, **options)
            for device in ("GPU:0", "GPU:0", "CPU:0")
        )
        for first, second in zip(got, again, strict=True):
            same_bits(first, second)
        same_bits(got[0], expected[0])
        axis = options["axis"]
        reduced = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)
        bound = x.size * np.finfo(np.float32).eps * np.abs(dy).sum(axis=reduced)
        assert (np.abs(got[1].numpy() - expected[1].numpy()) <= bound).all()
        assert (np.abs(got[2].numpy() - expected[2].numpy()) <= bound).all()


@needs_gpu
@needs_cuda
class TestGpuRanges:
    @pytest.mark.parametrize("low, high", [(1.0, -1.0), (np.nan, 1.0), (-INFINITY, INFINITY), (2.0, 2.0)])
    def test_an_invalid_range_gives_nan(self, low, high):
        x = np.linspace(-1.0, 1.0, 5000)
        y = on("GPU:0", dqat.ops.fake_quant, x, low, high)
        found = on("GPU:0", gradients, x, np.ones_like(x), low, high)
        assert all(np.isnan(value).all() for value in (y, *found))

    @pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"num_bits": 16, "power_of_two": True}])
    def test_fitted_ranges_have_the_cpus_bits(self, rng, options):
        low, high = np.sort(30 * rng.normal(size=(2, 1000)), axis=0)
        low[0], high[0] = INFINITY, -INFINITY
        got, expected = (on(device, dqat.ops.fit_range, low, high, **options) for device in ("GPU:0", "CPU:0"))
        for ours, other in zip(got, expected, strict=True):
            same_bits(ours, other)


def on_both(function, *arguments, **options):
    """Results on the GPU, again there, and on the CPU."""
    results = []
    for device in ("GPU:0", "GPU:0", "CPU:0"):
        with tf.device(device):
            found = function(*(tf.identity(argument) for argument in arguments), **options)
        assert device in found[0].device
        results.append(found)
    return results


@needs_gpu
@needs_cuda
@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16], ids=lambda dtype: dtype.name)
class TestGpuObservers:
    @pytest.mark.parametrize("size", [0, 1, 255, 1_000_003])
    @pytest.mark.parametrize("range_", [(-0.7, 1.3), (INFINITY, -INFINITY)])
    def test_histograms_have_the_cpus_bits(self, rng, dtype, size, range_):
        x = np.maximum(rng.standard_cauchy(size), -3.0)
        x[::4001] = np.nan
        x[::7] = 0.0
        x = tf.cast(x, dtype)
        for function, ranges in ((dqat.ops.histogram, ()), (dqat.ops.fake_quant_histogram, range_)):
            got, again, expected = on_both(function, x, *map(tf.constant, ranges))
            for first, second, other in zip(got, again, expected, strict=True):
                same_bits(tf.cast(first, tf.float32), tf.cast(other, tf.float32))
                same_bits(tf.cast(first, tf.float32), tf.cast(second, tf.float32))
            np.testing.assert_array_equal(got[-1], expected[-1])

    @pytest.mark.parametrize(
        "shape, axis", [((0,), None), ((1_000_003,), None), ((3000, 12), -1), ((33, 7, 1000), 1), ((0, 5), -1)]
    )
    @pytest.mark.parametrize("num_bits, narrow_range", [(8, False), (2, True), (16, False)])
    def test_learned_steps_are_the_cpus(self, rng, dtype, shape, axis, num_bits, narrow_range):
        channels = [] if axis is None else [shape[axis]]
        x, dy = (tf.cast(rng.normal(size=shape), dtype) for _ in range(2))
        step = tf.constant(2.0**-num_bits * (1 + rng.random(channels)), tf.float32)
        signed = tf.constant(rng.random(channels) < 0.7)
        options = {"num_bits": num_bits, "narrow_range": narrow_range, "axis": axis}

        def everything(x, dy, step, signed):
            with tf.GradientTape() as tape:
                tape.watch([x, step])
                found = dqat.ops.fake_quant_learned_track(x, step, signed=signed, elements=100, **options)
            return [*found, *tape.gradient(found[0], [x, step], output_gradients=dy)]

        got, again, expected = on_both(everything, x, dy, step, signed)
        for first, second in zip(got, again, strict=True):
            same_bits(tf.cast(first, tf.float32), tf.cast(second, tf.float32))
        for first, other in zip(got[:4], expected[:4], strict=True):
            same_bits(tf.cast(first, tf.float32), tf.cast(other, tf.float32))
        np.testing.assert_allclose(got[4], expected[4], rtol=1e-3, atol=1e-2)


@needs_gpu
@needs_cuda
class TestGpuHistogramRanges:
    @pytest.fixture
    def histogram(self, rng):
        low, high, counts = dqat.ops.histogram(rng.normal(size=100_000).astype(np.float32))
        return counts, low, high

    @pytest.mark.parametrize("upper", [100.0, 99.99, 75.5])
    def test_percentiles_have_the_cpus_bits(self, histogram, upper):
        got, again, expected = on_both(dqat.ops.percentile_range, *histogram, lower=100 - upper, upper=upper)
        for first, second, other in zip(got, again, expected, strict=True):
            same_bits(first, other)
            same_bits(first, second)

    @pytest.mark.parametrize("options", [{}, {"num_bits": 2}, {"num_bits": 4, "symmetric": True}])
    def test_ranges_of_minimum_error_are_the_cpus(self, histogram, options):
        got, again, expected = on_both(dqat.ops.minimum_error_range, *histogram, **options)
        for first, second, other in zip(got, again, expected, strict=True):
            same_bits(first, second)
            np.testing.assert_allclose(first, other, rtol=1 / 32)  # a neighbouring bin where two errors are the same

    def test_wrong_arguments_give_nan(self, histogram):
        counts, low, high = histogram
        for arguments in ((counts - 1, low, high), (counts, high, low), (counts, low, tf.constant(INFINITY))):
            for function in (dqat.ops.percentile_range, dqat.ops.minimum_error_range):
                with tf.device("GPU:0"):
                    assert all(np.isnan(part) for part in function(*map(tf.identity, arguments)))


def np_floats(*values):
    return [np.asarray(value, np.float32) for value in values]


@needs_gpu
@needs_cuda
class TestGpuRecurrent:
    @pytest.mark.parametrize("transpose_a", [False, True])
    @pytest.mark.parametrize("transpose_b", [False, True])
    def test_products_have_the_bits_of_the_cpus_fused_multiply_adds(self, rng, transpose_a, transpose_b):
        for rows, depth, columns in [(1, 1, 1), (7, 300, 65), (200, 33, 130), (3, 0, 4)]:
            a = rng.standard_normal((depth, rows) if transpose_a else (rows, depth))
            b = rng.standard_normal((columns, depth) if transpose_b else (depth, columns))
            options = {"transpose_a": transpose_a, "transpose_b": transpose_b}
            got, again, expected = on_both(
                lambda a, b, options=options: [dqat.ops.matmul(a, b, **options)], *np_floats(a, b)
            )
            same_bits(got[0], again[0])
            same_bits(got[0], expected[0])

    @pytest.mark.parametrize("batch, time, features, units", [(3, 4, 5, 7), (33, 5, 12, 24), (20, 3, 9, 528)])
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("backwards", [False, True])
    @pytest.mark.parametrize("scale", [None, 0.02])
    def test_results_and_gradients_have_the_cpus_bits(
        self, rng, batch, time, features, units, masked, backwards, scale
    ):
        scales = None if scale is None else np.full((3, 4), scale, np.float32)
        mask = rng.random((batch, time)) < 0.6 if masked else None
        arguments = [
            rng.standard_normal((batch, time, features)),
            rng.standard_normal((features, 4 * units)) / features**0.5,
            rng.standard_normal((units, 4 * units)) / units**0.5,
            rng.standard_normal(4 * units),
            0.3 * rng.standard_normal((batch, units)),
            rng.standard_normal((batch, units)),
            -0.4, 0.5, -1.0, 1.0 - 2.0**-15,
        ]  # fmt: skip

        def everything(x, kernel, recurrent, bias, hidden, cell, *ends):
            with tf.GradientTape() as tape:
                tape.watch([x, kernel, recurrent, bias, hidden, cell])
                found = dqat.ops.quantized_lstm(
                    x, kernel, recurrent, bias, ends[:2], ends[2:], initial_state=(hidden, cell), mask=mask,
                    operand_scales=scales, go_backwards=backwards,
                )  # fmt: skip
                loss = tf.reduce_sum(found.outputs * tf.range(units, dtype=tf.float32)) + tf.reduce_sum(found.cell)
            gradients = tape.gradient(loss, [x, kernel, recurrent, bias, hidden, cell])
            return [*found[:3], *found.hidden_record, *found.cell_record, *gradients]

        got, again, expected = on_both(everything, *np_floats(*arguments))
        for first, second, other in zip(got, again, expected, strict=True):
            same_bits(first, second)
            same_bits(first, other)

    @pytest.mark.parametrize("masked", [False, True])
    def test_a_gru_step_has_the_cpus_bits(self, rng, masked):
        mask = rng.random(33) < 0.6 if masked else None
        shapes = [(33, 120), (33, 120), (33, 40), (33, 40)]

        def everything(projected, product, hidden, slope, low, high):
            with tf.GradientTape() as tape:
                tape.watch([projected, product, hidden])
                after, records = dqat.ops.gru_step(projected, product, hidden, (low, high), mask=mask)
            return [after, *records, *tape.gradient(after, [projected, product, hidden], output_gradients=slope)]

        ends = [np.full(10, end) for end in (-0.7, 0.9)]
        got, again, expected = on_both(everything, *np_floats(*map(rng.standard_normal, shapes), *ends))
        for first, second, other in zip(got, again, expected, strict=True):
            same_bits(first, second)
            same_bits(first, other)
