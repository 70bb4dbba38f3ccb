"""The integer LSTM against TFLite's own interpreter, on exported models."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_addons as tfa

import dqat
from dqat import integer
from dqat.export.flatbuffer import Flatbuffer, LstmTensors
from dqat.keras_api import keras
from dqat.layers.peephole_lstm import PEEPHOLES

BIASES = (12, 13, 14, 15)  # after TFLite's lstm_shared.h, as LstmTensors


def lstm_arguments(file, operator):
    """What `integer.lstm` needs to compute an LSTM of a file."""
    scale = lambda index: file.parameters(operator.inputs[index])  # noqa: E731
    stacked = lambda places: np.stack([file.constant(operator.inputs[place]) for place in places])  # noqa: E731
    (input_scale, input_zero_point), (hidden_scale, hidden_zero_point) = scale(0), scale(LstmTensors.HIDDEN_STATE)
    peepholes = [place for place in LstmTensors.PEEPHOLES if operator.inputs[place] >= 0]
    return {
        "peepholes": stacked(peepholes) if peepholes else None,
        "peephole_scales": [scale(place)[0] for place in peepholes],
        "input_weights": stacked(LstmTensors.INPUT_WEIGHTS),
        "recurrent_weights": stacked(LstmTensors.RECURRENT_WEIGHTS),
        "bias": stacked(BIASES),
        "input_scale": input_scale,
        "input_zero_point": input_zero_point,
        "input_weight_scales": [scale(place)[0] for place in LstmTensors.INPUT_WEIGHTS],
        "recurrent_weight_scales": [scale(place)[0] for place in LstmTensors.RECURRENT_WEIGHTS],
        "hidden_scale": hidden_scale,
        "hidden_zero_point": hidden_zero_point,
        "cell_scale": scale(LstmTensors.CELL_STATE)[0],
        "cell_clip": operator.builtinOptions.cellClip,
    }


def compare(path, samples):
    """For each LSTM of a file: its output in the interpreter and that of `integer.lstm` on the same input."""
    file = Flatbuffer(path.read_bytes())
    interpreter = tf.lite.Interpreter(str(path), experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]
    scale, zero_point = given["quantization"]
    pairs = []
    for sample in samples:
        interpreter.reset_all_variables()
        codes = integer.quantize(sample[np.newaxis], scale=scale, zero_point=zero_point)
        interpreter.set_tensor(given["index"], codes.astype(np.int8))
        interpreter.invoke()
        for operator in file.lstms():
            arguments = lstm_arguments(file, operator)
            output, *_ = integer.lstm(interpreter.get_tensor(operator.inputs[0]), **arguments)
            pairs.append((interpreter.get_tensor(operator.outputs[0]), output))
    return pairs


def test_a_trained_stack_on_real_speech_is_equal_in_every_bit(exported, speech):
    pairs = compare(exported.path, speech[1][0][:60])
    assert len(pairs) == 2 * 60
    for expected, got in pairs:
        np.testing.assert_array_equal(got, expected)
    assert len(np.unique(np.concatenate([got.ravel() for _, got in pairs]))) > 200


@pytest.mark.parametrize("time, cell", [(29, "plain"), (100, "plain"), (200, "plain"), (100, "peephole")])
def test_random_weights_and_data_are_equal_in_every_bit(rng, tmp_path, time, cell):
    keras.utils.set_random_seed(time)
    inputs = keras.Input((time, 6))
    if cell == "peephole":
        lstm = keras.layers.RNN(tfa.rnn.PeepholeLSTMCell(20), return_sequences=True, name="lstm")
    else:
        lstm = keras.layers.LSTM(20, return_sequences=True, name="lstm")
    float_model = keras.Model(inputs, lstm(inputs))
    if cell == "peephole":
        for role in PEEPHOLES:
            getattr(lstm.cell, role).assign(rng.normal(size=20))
    # Gates that saturate, and a cell state that reaches its clip.
    lstm.cell.kernel.assign(lstm.cell.kernel * 4.0)
    lstm.cell.bias.assign(rng.normal(size=80))
    model = dqat.quantize_model(float_model)
    data = rng.normal(size=(16, time, 6)).astype(np.float32)
    for _ in range(2):
        model(data, training=True)
    path = dqat.export_tflite(model, tmp_path / "lstm.tflite").path
    (operator,) = Flatbuffer(path.read_bytes()).lstms()
    assert all((operator.inputs[place] >= 0) == (cell == "peephole") for place in LstmTensors.PEEPHOLES)
    for expected, got in compare(path, data):
        np.testing.assert_array_equal(got, expected)


def test_a_sequence_in_two_parts_goes_on_from_the_states(exported, rng):
    file = Flatbuffer(exported.path.read_bytes())
    arguments = lstm_arguments(file, file.lstms()[0])
    x = rng.integers(-128, 128, (5, 12, arguments["input_weights"].shape[2])).astype(np.int8)
    whole, *last = integer.lstm(x, **arguments)
    first, hidden, cell = integer.lstm(x[:, :7], **arguments)
    second, *states = integer.lstm(x[:, 7:], **arguments, hidden=hidden, cell=cell)
    np.testing.assert_array_equal(np.concatenate([first, second], 1), whole)
    for got, expected in zip(states, last, strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(whole[:, -1], last[0])


def test_fixed_point_functions_are_close_to_the_real_ones():
    x = np.arange(-(2**15), 2**15).astype(np.int16)
    # gemmlowp's error: a few units of 2^-15.
    logistic = integer.logistic(x) / 2**15
    assert np.abs(logistic - 1 / (1 + np.exp(x / -(2.0**12)))).max() < 2**-12
    for bits in range(7):
        assert np.abs(integer.tanh(x, integer_bits=bits) / 2**15 - np.tanh(x / 2.0 ** (15 - bits))).max() < 2**-11


WRONG = {
    "input": np.zeros((2, 3), np.int8),
    "input_weights": np.zeros((4, 5, 3), np.int8),
    "recurrent_weights": np.zeros((3, 5, 5), np.int8),
    "bias": np.zeros((4, 6), np.int32),
    "hidden": np.zeros((1, 5), np.int8),
    "input_weight_scales": [0.1] * 3,
    "recurrent_weight_scales": [0.1, 0.1, 0.1, 0.0],
    "cell_scale": 0.001,
    "cell_clip": -1.0,
    "peepholes": np.zeros((2, 5), np.int16),
    "peephole_scales": [0.1, 0.1],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name):
    arguments = {
        "input": np.zeros((2, 3, 4), np.int8),
        "input_weights": np.zeros((4, 5, 4), np.int8),
        "recurrent_weights": np.zeros((4, 5, 5), np.int8),
        "bias": np.zeros((4, 5), np.int32),
        "input_scale": 0.1,
        "input_zero_point": 0,
        "input_weight_scales": [0.1] * 4,
        "recurrent_weight_scales": [0.1] * 4,
        "hidden_scale": 0.1,
        "hidden_zero_point": 0,
        "cell_scale": 2.0**-12,
        "peepholes": np.zeros((3, 5), np.int16),
        "peephole_scales": [0.1] * 3,
    }
    integer.lstm(**arguments)
    with pytest.raises(ValueError, match="scale" if "scale" in name else name):
        integer.lstm(**arguments | {name: WRONG[name]})
    with pytest.raises(TypeError):
        integer.lstm(**arguments | {"input": np.zeros((2, 3, 4), np.int32)})
