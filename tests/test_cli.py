import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from typer.testing import CliRunner

import dqat
from dqat.cli import app
from dqat.export import checksum
from dqat.export.flatbuffer import Flatbuffer
from dqat.keras_api import keras


@pytest.fixture
def dqat_command():
    """Calls `dqat` with arguments in this process: gives exit status, standard output, standard error."""

    def call(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


def assert_one_line_error(found):
    status, out, err = found
    assert (status, out) == (2, "")
    assert err.startswith("dqat: ") and err.count("\n") == 1


def damaged_files(content, count):
    """Truncated, bit-flipped and random files, in turn."""
    rng = random.Random(0)
    for number in range(count):
        kind = number % 3
        if kind == 0:
            yield content[: rng.randrange(len(content))]
        elif kind == 1:
            flipped = bytearray(content)
            for _ in range(rng.choice((1, 8, 64))):
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            yield bytes(flipped)
        else:
            head = rng.randbytes(4) + b"TFL3" if number % 2 else b""
            yield head + rng.randbytes(rng.randrange(5000))


def test_a_thousand_damaged_files_give_one_line_and_exit_status_2(exported, tmp_path, dqat_command):
    path = tmp_path / "damaged.tflite"
    for content in damaged_files(exported.path.read_bytes(), 1000):
        path.write_bytes(content)
        assert_one_line_error(dqat_command("inspect", path))
        assert_one_line_error(dqat_command("compare", exported.path, path))
        assert_one_line_error(dqat_command("verify", "model.keras", path, "samples.npy"))


def test_damaged_files_without_a_checksum_never_end_the_process(exported, tmp_path, dqat_command):
    content = exported.path.read_bytes()
    foreign = content.replace(b"dqat.sha256:", b"another.tool")
    path = tmp_path / "damaged.tflite"
    statuses = set()
    for damaged in damaged_files(foreign, 300):
        path.write_bytes(damaged)
        found = dqat_command("inspect", path)
        statuses.add(found[0])
        if found[0]:
            assert_one_line_error(found)
    assert statuses == {0, 2}  # a flipped bit of a weight leaves a file like any other


def test_files_that_are_not_there_give_one_line(tmp_path, dqat_command):
    assert_one_line_error(dqat_command("inspect", tmp_path / "missing.tflite"))
    assert_one_line_error(dqat_command("export", tmp_path / "missing.keras", tmp_path / "out.tflite"))


@pytest.fixture(scope="module")
def saved(trained, float_trained, exported, speech, tmp_path_factory):
    """A folder of what a user may confuse: models, files and samples."""
    folder = tmp_path_factory.mktemp("saved")
    trained.save(folder / "qat.keras")
    float_trained.save(folder / "float.keras")
    (folder / "model.tflite").write_bytes(exported.path.read_bytes())
    dqat.export_tflite(trained, folder / "stream.tflite", streaming=True)
    (folder / "text.keras").write_text("no model")
    (folder / "noise.npy").write_bytes(b"\x93NUMPY nonsense")
    samples = speech[1][0][:4]
    np.save(folder / "samples.npy", samples)
    np.save(folder / "short.npy", samples[:, :5])
    np.save(folder / "nan.npy", np.full_like(samples, np.nan))
    np.savez(folder / "other.npz", picture=samples)
    return folder


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("quantize text.keras out.keras", "text.keras can't be loaded as a Keras model"),
        ("quantize float.keras out.txt", "output must end in .keras or .h5, got"),
        ("quantize qat.keras out.keras", "is quantized already"),
        ("export qat.keras out.tflite --loop", "is one already: leave it out"),
        (
            "quantize float.keras out.keras --range-sync sometimes",
            "one of delayed, exact, off, got 'sometimes'",
        ),
        ("export float.keras out.tflite", "is not quantized"),
        ("export qat.keras out.tflite --target tpu", "target must be one of"),
        ("export qat.keras out.tflite --io int4", "io must be one of int8, int16, float32, got 'int4'"),
        ("verify qat.keras stream.tflite samples.npy", "takes one frame a call"),
        ("verify qat.keras model.tflite short.npy", "expected shape=(None, 29, 12), found shape=(4, 5, 12)"),
        ("verify qat.keras model.tflite nan.npy", "samples must be finite"),
        ("verify qat.keras model.tflite noise.npy", "format version"),
        ("verify qat.keras model.tflite other.npz", "there is no speech among picture"),
        ("verify qat.keras model.tflite samples.npy --metric f1", "metric must be one of"),
        ("verify qat.keras model.tflite samples.npy --labels samples.npy --metric f1", "metric must be one of"),
        ("inspect qat.keras", "is no TFLite file"),
    ],
)
def test_what_a_user_may_get_wrong_is_one_line_that_says_it(arguments, words, saved, dqat_command):
    command, *rest = arguments.split()
    found = dqat_command(command, *(saved / one if "." in one else one for one in rest))
    assert_one_line_error(found)
    assert words in found[2]


def test_quantize_as_json_tells_what_is_quantized_and_makes_the_folder(saved, tmp_path, dqat_command):
    output = tmp_path / "new" / "folder" / "qat.keras"
    status, out, err = dqat_command("quantize", saved / "float.keras", output, "--json")
    assert status == 0, err
    assert {"layer", "kind", "tensor", "how"} <= json.loads(out)[0].keys()
    assert output.exists()


def test_a_real_shell_sees_no_word_of_the_converter(saved, tmp_path):
    command = [sys.executable, "-m", "dqat.cli", "export", saved / "qat.keras", tmp_path / "model.tflite"]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert (found.returncode, found.stderr) == (0, "")
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" in found.stdout


def test_inspect_prints_operators_and_says_that_all_are_integer(exported, dqat_command):
    status, out, _ = dqat_command("inspect", exported.path)
    assert status == 0
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" in out
    assert "integer only" in out


def test_inspect_as_json_has_every_scale(exported, dqat_command):
    _, out, _ = dqat_command("inspect", exported.path, "--json")
    tensors = json.loads(out)["subgraphs"][0]["tensors"]
    scales = {scale for tensor in tensors for scale in tensor["scales"]}
    assert {scale for scale, _ in exported.parameters.values()} <= scales


def test_compare_ends_with_1_where_files_differ(exported, tmp_path, dqat_command):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    other = tmp_path / "other.tflite"
    other.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    assert dqat_command("compare", exported.path, exported.path)[0] == 0
    status, out, _ = dqat_command("compare", exported.path, other, "--json")
    assert status == 1
    assert json.loads(out)[0]["where"] == "operator 0"


def test_a_saved_model_is_quantized_exported_and_verified_from_the_shell(
    float_trained, trained, speech, tmp_path, dqat_command
):
    float_trained.save(tmp_path / "float.keras")
    trained.save(tmp_path / "trained.keras")
    np.save(tmp_path / "samples.npy", speech[1][0][:20])

    status, out, err = dqat_command("quantize", tmp_path / "float.keras", tmp_path / "qat.keras")
    assert status == 0, err
    assert "cell_state" in out
    assert_one_line_error(dqat_command("export", tmp_path / "qat.keras", tmp_path / "qat.tflite"))  # not trained yet
    status, _, err = dqat_command("export", tmp_path / "trained.keras", tmp_path / "model.tflite")
    assert status == 0, err
    verify = ("verify", tmp_path / "trained.keras", tmp_path / "model.tflite", tmp_path / "samples.npy")
    status, out, err = dqat_command(*verify, "--json", "--within-1-lsb", "0.99")
    assert status == 0, err
    found = json.loads(out)
    share = found["within_1_lsb"]
    assert share >= 0.99
    assert found["first_apart"] is None and len(found["layers"]) == 5
    assert dqat_command(*verify, "--within-1-lsb", "1.0")[0] == (0 if share == 1.0 else 1)


def test_verify_ends_with_1_and_names_the_layer_where_file_and_simulation_part(
    trained, exported, speech, tmp_path, dqat_command
):
    trained.save(tmp_path / "trained.keras")
    np.save(tmp_path / "samples.npy", speech[1][0][:20])
    np.save(tmp_path / "labels.npy", speech[1][1][:20])
    flatbuffer = Flatbuffer(exported.path.read_bytes())
    inputs = flatbuffer.lstms()[1].inputs
    inputs[2], inputs[3] = inputs[3], inputs[2]
    (tmp_path / "swapped.tflite").write_bytes(checksum.seal(flatbuffer))
    for file, status, words in (
        (tmp_path / "swapped.tflite", 1, "part first at lstm_1/hidden"),
        (exported.path, 0, ""),
    ):
        found, out, err = dqat_command(
            "verify", tmp_path / "trained.keras", file, tmp_path / "samples.npy", "--labels", tmp_path / "labels.npy"
        )
        assert found == status, err
        assert words in out and "accuracy" in out


def test_inspect_shows_what_the_file_tells_of_its_training(exported, dqat_command):
    _, out, _ = dqat_command("inspect", exported.path)
    assert "36 quantization-aware steps" in out
    _, out, _ = dqat_command("inspect", exported.path, "--json")
    assert json.loads(out)["told"]["training"]["steps"] == 36


def test_every_command_has_help_with_an_example(dqat_command):
    for command in ("doctor", "inspect", "compare", "quantize", "export", "verify"):
        status, out, _ = dqat_command(command, "--help")
        assert status == 0 and "Example" in out


def test_doctor_tries_what_it_reports(dqat_command):
    status, out, _ = dqat_command("doctor", "--json")
    states = {check["what"]: check["state"] for check in json.loads(out)}
    assert status == 0
    assert {states[what] for what in ("Python", "TensorFlow", "dqat's ops", "Horovod")} == {"works"}
    assert states["CUDA"] in ("works", "missing")
