import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import compiled, speech_model
from layer_table import ROWS
from recurrent_models import FRAMES, FUSED, UNROLLED

import dqat
from dqat import native
from dqat.export.flatbuffer import Flatbuffer, LstmTensors
from dqat.keras_api import keras
from dqat.model import named_quantizers


def test_a_model_without_ranges_is_refused_by_the_quantizers_names(tmp_path):
    model = dqat.quantize_model(speech_model())
    with pytest.raises(
        ValueError, match=r"no range recorded yet for speech_quantizer, lstm_0/cell_state.*at least one step"
    ):
        dqat.export_tflite(model, tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


def test_a_float_model_and_an_unknown_target_are_refused(trained, tmp_path):
    with pytest.raises(TypeError, match="is not quantized"):
        dqat.export_tflite(speech_model(), tmp_path / "model.tflite")
    with pytest.raises(
        ValueError, match="target must be one of tflite, edgetpu, nnapi, microcontroller, got 'toaster'"
    ):
        dqat.export_tflite(trained, tmp_path / "model.tflite", target="toaster")


def test_the_file_is_integer_from_input_to_output(exported):
    flatbuffer = Flatbuffer(exported.path.read_bytes())
    assert flatbuffer.float_tensors() == []
    assert flatbuffer.operator_names().count("UNIDIRECTIONAL_SEQUENCE_LSTM") == 2
    assert not {"QUANTIZE", "DEQUANTIZE", "WHILE"} & set(flatbuffer.operator_names())
    interpreter = tf.lite.Interpreter(str(exported.path))
    interpreter.allocate_tensors()
    types = {np.dtype(details["dtype"]).name for details in interpreter.get_tensor_details() if details["shape"].size}
    assert types <= {"int8", "int16", "int32", "int64", "bool"}
    assert interpreter.get_input_details()[0]["dtype"] == interpreter.get_output_details()[0]["dtype"] == np.int8


def test_scales_and_zero_points_in_the_file_are_those_of_the_trained_ranges(trained, exported):
    flatbuffer = Flatbuffer(exported.path.read_bytes())
    first, second = flatbuffer.lstms()
    places = {
        "speech_quantizer": flatbuffer.graph.inputs[0],
        "lstm_0/hidden": first.outputs[0],
        "lstm_0/cell_state": first.inputs[LstmTensors.CELL_STATE],
        "lstm_1/hidden": second.outputs[0],
        "lstm_1/cell_state": second.inputs[LstmTensors.CELL_STATE],
        "speaker/output": flatbuffer.graph.outputs[0],
    }
    quantizers = dict(named_quantizers(trained))
    for path, place in places.items():
        low, high = quantizers[path].range()
        expected = native.module.quantization_parameters(
            low.numpy(), high.numpy(), num_bits=quantizers[path].spec.num_bits
        )
        scale, zero_point = flatbuffer.parameters(place)
        assert zero_point == expected["zero_point"], path
        assert scale == float(expected["scale"]), path
        assert exported.parameters[path] == (scale, zero_point)
    assert set(exported.parameters) == set(quantizers)


def test_hidden_state_output_and_hidden_scale_agree(exported):
    flatbuffer = Flatbuffer(exported.path.read_bytes())
    for lstm in flatbuffer.lstms():
        indices = (
            lstm.outputs[0],
            lstm.inputs[LstmTensors.HIDDEN_STATE],
            lstm.intermediates[LstmTensors.EFFECTIVE_HIDDEN_SCALE],
        )
        assert len({flatbuffer.parameters(index) for index in indices}) == 1


def test_a_swapped_gate_is_refused(trained, tmp_path, monkeypatch):
    from dqat.export import tflite

    convert = tflite._to_integers

    def swap(model, content):
        flatbuffer = Flatbuffer(convert(model, content))
        lstm = flatbuffer.lstms()[0]
        lstm.inputs[1], lstm.inputs[2] = lstm.inputs[2], lstm.inputs[1]
        return flatbuffer.to_bytes()

    monkeypatch.setattr(tflite, "_to_integers", swap)
    with pytest.raises(dqat.ExportError, match="no LSTM with the trained weights of 'lstm_0'"):
        dqat.export_tflite(trained, tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_scale_is_refused(trained, tmp_path, monkeypatch):
    from dqat.export import tflite

    convert = tflite._to_integers

    def widen(model, content):
        flatbuffer = Flatbuffer(convert(model, content))
        flatbuffer.tensor(flatbuffer.lstms()[1].inputs[LstmTensors.CELL_STATE]).quantization.scale *= 2
        return flatbuffer.to_bytes()

    monkeypatch.setattr(tflite, "_to_integers", widen)
    with pytest.raises(dqat.ExportError, match="of lstm_1/cell_state"):
        dqat.export_tflite(trained, tmp_path / "model.tflite")


def test_two_exports_are_the_same_bytes(trained, exported, tmp_path):
    again = dqat.export_tflite(trained, tmp_path / "again.tflite")
    assert again.path.read_bytes() == exported.path.read_bytes()


#: Writes every model of a folder as a file beside it.
EXPORT_ALL = """
import pathlib, sys
sys.path.insert(0, "tests")
import recurrent_models  # registers a cell of its own
import dqat
from dqat.keras_api import keras
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.keras")):
    dqat.export_tflite(keras.models.load_model(path), pathlib.Path(sys.argv[2]) / f"{path.stem}.tflite")
"""


def test_two_processes_write_the_same_bytes_for_every_kind_of_model(trained, exported, speech, tmp_path, run_python):
    models = {
        "convolution": ROWS["Conv2D, BatchNormalization, ReLU"],
        "shared": ROWS["shared layer"],
        "steps": ROWS["SeparableConv2D"],
        "concatenation": ROWS["Concatenate"],
    }
    for name, row in models.items():
        model, samples = dqat.quantize_model(row.model()), row.samples(8)
        model(samples if len(samples) > 1 else samples[0], training=True)
        model.save(tmp_path / f"{name}.keras")
    for name, build in (("gru", UNROLLED["gru"]), ("bidirectional", FUSED["bidirectional lstm, stacked"])):
        model = dqat.quantize_model(build())
        model(speech[0][0][:8, :FRAMES], training=True)
        model.save(tmp_path / f"{name}.keras")
    trained.save(tmp_path / "trained.keras")
    for folder in ("one", "other"):
        run_python("-c", EXPORT_ALL, str(tmp_path), str(tmp_path / folder))
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == len(models) + 3
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name
    assert (tmp_path / "one" / "trained.tflite").read_bytes() == exported.path.read_bytes()


#: A kill takes seconds, since TensorFlow must be imported first.
KILLS = 20 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 4


#: Exports a model to one path for ever, under the control of its standard streams.
EXPORT_FOREVER = """
import sys
import dqat
from dqat.keras_api import keras
model = keras.models.load_model(sys.argv[1])
print("ready", flush=True)
while True:
    dqat.export_tflite(model, sys.argv[2])
"""


def test_a_file_may_be_read_by_whom_the_user_lets_read(exported):
    mask = os.umask(0)
    os.umask(mask)
    assert exported.path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_an_export_that_is_killed_leaves_the_old_file_or_the_whole_new_one(trained, exported, tmp_path):
    """The new file has other contents than the old one, and kills come at any moment of several exports."""
    trained.save(tmp_path / "model.keras")
    path, old, new = tmp_path / "out" / "model.tflite", b"the old file", exported.path.read_bytes()
    path.parent.mkdir()
    moments, seen = random.Random(0), set()
    for kill in range(KILLS):
        path.write_bytes(old)
        process = subprocess.Popen(
            [sys.executable, "-c", EXPORT_FOREVER, tmp_path / "model.keras", path],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        process.stdout.readline()
        # The first export takes longest: half of the kills come in it, the others around the replacing.
        deadline = time.monotonic() + 120
        while kill % 2 and path.read_bytes() == old and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.5))
        process.kill()
        process.wait()
        content = path.read_bytes()
        assert content in (old, new)
        seen.add(content)
    assert seen == {old, new}


def test_float_ends_are_the_same_model_behind_two_conversions(speech, trained, exported, tmp_path):
    report = dqat.export_tflite(trained, tmp_path / "float.tflite", io="float32")
    assert report.operators == ("QUANTIZE", *exported.operators, "DEQUANTIZE")
    file = dqat.inspect_tflite(report.path)
    assert file.float_islands == [["QUANTIZE"], ["DEQUANTIZE"]]
    interpreter = tf.lite.Interpreter(str(report.path))
    runner = interpreter.get_signature_runner("serving_default")
    output = runner(speech=speech[1][0][:1])["speaker"]
    assert output.dtype == np.float32
    inside, ours = (dqat.verify(trained, path, speech[1][0][:40]) for path in (exported.path, report.path))
    # TFLite's QUANTIZE rounds halves in other ways than fake-quant.
    scale = exported.parameters["speaker/output"][0]
    assert (np.abs(ours.integer - inside.integer) < 1.5 * scale).mean() >= 0.99
    np.testing.assert_allclose(output[0], ours.integer[0], atol=1e-6)
    assert ours.first_apart is None and len(ours.layers) == len(inside.layers)
    with pytest.raises(ValueError, match="io must be one of int8, int16, float32, got 'float16'"):
        dqat.export_tflite(trained, report.path, io="float16")


@pytest.mark.parametrize("batch_size", [4, None])
def test_a_file_takes_several_samples_a_call(tmp_path, batch_size):
    row = ROWS["Conv2D, BatchNormalization, ReLU"]
    model, samples = dqat.quantize_model(row.model()), row.samples(11)[0]
    model(samples, training=True)
    one = dqat.verify(model, dqat.export_tflite(model, tmp_path / "one.tflite").path, samples)
    path = dqat.export_tflite(model, tmp_path / "several.tflite", batch_size=batch_size).path
    assert dqat.inspect_tflite(path).subgraphs[0].tensors[0].shape[0] == (batch_size or -1)
    np.testing.assert_array_equal(dqat.verify(model, path, samples).integer, one.integer)
    interpreter = tf.lite.Interpreter(str(path))
    if batch_size is None:
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], [11, *samples.shape[1:]])
        interpreter.allocate_tensors()
        assert interpreter.get_output_details()[0]["shape"][0] == 11


def test_recurrent_files_hold_the_states_of_one_sequence(trained, tmp_path):
    with pytest.raises(
        ValueError, match="batch_size must be 1 for a model with recurrent layers .lstm_0, lstm_1., got 4"
    ):
        dqat.export_tflite(trained, tmp_path / "model.tflite", batch_size=4)


def test_the_file_tells_what_was_trained(trained, exported):
    told = dqat.inspect_tflite(exported.path).told
    assert told["dqat"] == dqat.build_info()["dqat"]
    assert told["training"] == {"steps": 36, "range_sync": "delayed", "observed": [0, None]}
    found = {path: (one["scale"], one["zero_point"]) for path, one in told["quantizers"].items()}
    assert found == exported.parameters
    flatbuffer = Flatbuffer(exported.path.read_bytes())
    (pairs,) = told["quantizers"]["relu/output"]["tensors"].values()
    assert flatbuffer.parameters(pairs[0][1]) == exported.parameters["relu/output"]


STACKS = {
    "last output": lambda: [keras.layers.LSTM(8), keras.layers.Dense(3)],
    "sequences": lambda: [keras.layers.LSTM(8, return_sequences=True), keras.layers.Dense(3)],
    "sequences only": lambda: [keras.layers.LSTM(8, return_sequences=True)],
    "no bias": lambda: [keras.layers.LSTM(8, use_bias=False), keras.layers.Dense(3, use_bias=False)],
    "unrolled": lambda: [keras.layers.LSTM(8, unroll=True), keras.layers.Dense(3)],
    "softmax": lambda: [keras.layers.LSTM(8), keras.layers.Dense(3, activation="softmax")],
    "sigmoid": lambda: [keras.layers.LSTM(8), keras.layers.Dense(3), keras.layers.Activation("sigmoid")],
    "tanh": lambda: [keras.layers.LSTM(8), keras.layers.Dense(6, activation="tanh"), keras.layers.Dense(3)],
    "relu6": lambda: [keras.layers.LSTM(8), keras.layers.Dense(6, activation="relu6"), keras.layers.Dense(3)],
    "relu layer": lambda: [
        keras.layers.LSTM(8),
        keras.layers.Dense(6),
        keras.layers.ReLU(),
        keras.layers.Dense(3),
    ],
    "dense between": lambda: [
        keras.layers.LSTM(8, return_sequences=True),
        keras.layers.Dense(6, activation="relu"),
        keras.layers.LSTM(8),
        keras.layers.Dense(3),
    ],
    "flattened": lambda: [
        keras.layers.Reshape((29, 12)),
        keras.layers.LSTM(4, return_sequences=True),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ],
    "no recurrence": lambda: [
        keras.layers.Flatten(),
        keras.layers.Dense(8, activation="relu"),
        keras.layers.Dense(3),
    ],
}


#: Least share within 1 LSB and largest difference. TFLite's TANH prescribes steps of 1/128: one of them is two
#: LSBs of the small outputs of this untrained model.
BOUNDS = {"tanh": (0.95, 6)}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("mode", ["delayed", "exact"])
def test_every_supported_stack_is_exported_as_it_was_simulated(speech, tmp_path, stack, mode):
    keras.utils.set_random_seed(1)
    model = dqat.quantize_model(keras.Sequential([keras.Input((29, 12)), *STACKS[stack]()]), range_sync=mode)
    for _ in range(3):
        model(speech[0][0][:90], training=True)
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    assert Flatbuffer(report.path.read_bytes()).float_tensors() == []
    parity = dqat.verify(model, report.path, speech[1][0])
    least, largest = BOUNDS.get(stack, (0.99, 4))
    assert parity.within_1_lsb >= least
    assert parity.max_lsb <= largest
    assert len(np.unique(parity.integer)) > 5


def test_an_existing_file_is_replaced_whole(trained, exported, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    dqat.export_tflite(trained, path)
    assert path.read_bytes() == exported.path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_an_lstm_of_128_units_is_at_least_3_4_times_smaller(speech, tmp_path):
    float_model = speech_model((128,))
    model = compiled(dqat.quantize_model(float_model))
    model(speech[0][0][:30], training=True)
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    signature = tf.TensorSpec((1, 29, 12), tf.float32)
    function = tf.function(float_model).get_concrete_function(signature)
    size = len(tf.lite.TFLiteConverter.from_concrete_functions([function], float_model).convert())
    assert size / report.size >= 3.4
