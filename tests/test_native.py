import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import dqat
from dqat import native


def test_build_info_names_versions_instruction_sets_and_cuda():
    info = dqat.build_info()
    assert info["tensorflow"] == tf.__version__
    assert info["instruction_set"] in info["instruction_sets"]
    assert "baseline" in info["instruction_sets"]
    assert info["cuda"] in (True, False)
    assert info["dqat"] and info["compiler"]


def test_another_tensorflow_is_refused_before_the_library_is_loaded():
    # A TensorFlow of another minor version is more than a test can install; the record of the build is the other
    # side of the same comparison.
    script = """
import sys, types
record = sys.modules["dqat.build_record"] = types.ModuleType("dqat.build_record")
record.TENSORFLOW_VERSION = "2.12.0"
import dqat
"""
    for use in ("dqat.ops", "dqat.build_info()", "import tensorflow; dqat.build_info()"):
        result = subprocess.run([sys.executable, "-c", script + use], capture_output=True, text=True)
        assert result.returncode == 1, use
        assert f"dqat was built for TensorFlow 2.12 (2.12.0), and this is TensorFlow {tf.__version__}" in result.stderr
        assert "undefined symbol" not in result.stderr


def test_quantization_parameters_are_those_of_the_ops():
    found = native.module.quantization_parameters(np.float32(-3.0), np.float32(4.0))
    assert found["zero_point"] == -19
    np.testing.assert_allclose(found["scale"], 7.0 / 255, rtol=1e-6)
    levels = dqat.ops.fake_quant([-100.0, 100.0], -3.0, 4.0).numpy()
    assert [found["nudged_min"], found["nudged_max"]] == pytest.approx(levels, rel=1e-6)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((1.0, -1.0), {}, "range must be finite with min < max"),
        ((np.inf, -np.inf), {}, "range must be finite"),
        ((-1.0, 1.0), {"num_bits": 40}, "num_bits must be 2 to 16, got 40"),
        (([-1.0], [1.0, 1.0]), {}, "same shape"),
    ],
)
def test_wrong_arguments_of_the_module_are_value_errors(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        native.module.quantization_parameters(*arguments, **options)


def test_every_public_name_is_there_and_no_module_hides_behind_a_functions_name():
    for name in dqat.__all__:
        value = getattr(dqat, name)
        assert (type(value).__name__ == "module") == (value is sys.modules.get(f"dqat.{name}")), name
    assert callable(dqat.coverage) and callable(dqat.verify) and callable(dqat.ranges)
    with pytest.raises(AttributeError, match="module 'dqat' has no attribute 'nothing'"):
        dqat.nothing  # noqa: B018
