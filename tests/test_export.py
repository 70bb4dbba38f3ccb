import numpy as np
import pytest
import tensorflow as tf
from conftest import compiled, speech_model

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
