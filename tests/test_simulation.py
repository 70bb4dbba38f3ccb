"""The integer simulation against the interpreter: what it gives is what the exported file gives."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import compiled
from recurrent_models import FRAMES, chain, lstm

import dqat
from dqat import integer
from dqat.keras_api import keras
from dqat.parity import Runner

layers = keras.layers

MODELS = {
    "lstm": lstm(),
    "lstm, backwards, no bias": lstm(go_backwards=True, use_bias=False),
    "lstm, stacked": chain(lambda: layers.LSTM(8, return_sequences=True), lambda: layers.LSTM(6)),
    "bidirectional lstm": chain(lambda: layers.Bidirectional(layers.LSTM(8))),
    "gru": chain(lambda: layers.GRU(8)),
    "gru, reset before, no bias": chain(lambda: layers.GRU(8, reset_after=False, use_bias=False)),
    "gru, relu": chain(lambda: layers.GRU(8, activation="relu")),
    "simple rnn": chain(lambda: layers.SimpleRNN(8)),
    "simple rnn, relu, stacked": chain(
        lambda: layers.SimpleRNN(8, activation="relu", return_sequences=True, go_backwards=True),
        lambda: layers.SimpleRNN(6, activation="sigmoid"),
    ),
    "dense, gru, flatten": chain(
        lambda: layers.Dense(10, activation="relu"),
        lambda: layers.GRU(6, return_sequences=True),
        lambda: layers.Dropout(0.1),
        lambda: layers.Flatten(),
    ),
}


def trained(build, speech):
    keras.utils.set_random_seed(0)
    x, y = speech[0][0][:, -FRAMES:], speech[0][1]
    model = compiled(build(), 1e-2)
    model.fit(x, y, batch_size=27, epochs=2, verbose=0)
    quantized = compiled(dqat.quantize_model(model), 1e-3)
    quantized.fit(x, y, batch_size=27, epochs=1, verbose=0)
    return quantized


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_interpreter_with_builtin_kernels_bit_for_bit(name, speech, tmp_path):
    model = trained(MODELS[name], speech)
    samples = speech[1][0][:120, -FRAMES:]
    path = dqat.export_tflite(model, tmp_path / "model.tflite").path
    runner = Runner(path, "builtin")
    ((codes,), (scale, zero_point)) = runner.run([samples]), runner.output_parameters[0]
    expected = integer.dequantize(codes, scale=scale, zero_point=zero_point)
    found = dqat.simulate(model, samples)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 50
    simulated = dqat.simulate(model, samples, simulation="float")
    np.testing.assert_array_equal(simulated, model(samples, training=False))
    assert np.abs(found - simulated).max() < 9 * scale


def test_a_sequence_in_two_parts_goes_on_from_the_hidden_state(rng):
    codes = lambda *shape: rng.integers(-127, 128, shape).astype(np.int8)  # noqa: E731
    points = "input input_product recurrent_product gates_sum gates reset_product candidate_sum candidate kept openness"
    grids = {point: (0.01, 3) for point in (*points.split(), "new", "hidden", "hidden_sum")}
    options = {"kernel_scale": 0.01, "recurrent_kernel_scale": 0.01, "grids": grids}
    x = codes(2, 7, 5)
    for function, gates in ((integer.simple_rnn, 1), (integer.gru, 3)):
        weights = codes(gates * 4, 5), codes(gates * 4, 4), np.arange(gates * 4, dtype=np.int32)
        whole, last = function(x, *weights, **options)
        first, hidden = function(x[:, :3], *weights, **options)
        second, state = function(x[:, 3:], *weights, **options, hidden=hidden)
        np.testing.assert_array_equal(np.concatenate([first, second], axis=1), whole)
        np.testing.assert_array_equal(state, last)


def test_what_has_no_integer_reference_is_named(speech):
    model = dqat.quantize_model(chain(lambda: layers.LSTM(4, activation="relu", name="odd"))())
    model(speech[0][0][:20, -FRAMES:], training=True)
    with pytest.raises(ValueError, match=r"layer 'odd' \(LSTMCell\) has no integer reference"):
        dqat.simulate(model, speech[1][0][:2, -FRAMES:])
    with pytest.raises(ValueError, match="simulation must be 'float' or 'integer', got 'exact'"):
        dqat.simulate(model, speech[1][0][:2, -FRAMES:], simulation="exact")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"grids": {}}, "grids must have the point 'hidden'"),
        ({"activation": "elu"}, "activation must be tanh, sigmoid, relu or linear, got elu"),
        ({"kernel_scale": 0.0}, "the scale of kernel must be finite and positive"),
        ({"hidden": np.zeros((2, 5), np.int8)}, "hidden must be int8"),
        ({"bias": np.zeros(3, np.int32)}, "a bias must have shape"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    grids = {point: (0.1, 0) for point in ("input", "input_product", "recurrent_product", "hidden_sum", "hidden")}
    arguments = {
        "input": np.zeros((1, 2, 3), np.int8),
        "kernel": np.zeros((4, 3), np.int8),
        "recurrent_kernel": np.zeros((4, 4), np.int8),
        "bias": None,
        "kernel_scale": 0.1,
        "recurrent_kernel_scale": 0.1,
        "grids": grids,
    }
    integer.simple_rnn(**arguments)
    with pytest.raises(ValueError, match=message):
        integer.simple_rnn(**arguments | change)


def test_a_model_without_ranges_is_refused():
    model = dqat.quantize_model(lstm()())
    with pytest.raises(ValueError, match="no range recorded yet"):
        dqat.simulate(model, tf.zeros([1, FRAMES, 12]))
