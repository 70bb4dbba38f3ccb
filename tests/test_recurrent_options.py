"""Every option of recurrent layers: it goes the whole way, or `quantize_model` says why not."""

import re
import warnings

import numpy as np
import pytest
import tensorflow_addons as tfa
from conftest import compiled
from recurrent_models import FRAMES, cell, chain, lstm

import dqat
from dqat.keras_api import keras

layers = keras.layers


def with_states(make, count):
    """A layer that begins with states that a dense layer made."""

    def build():
        inputs = keras.Input((FRAMES, 12), name="speech")
        states = [layers.Dense(6)(layers.GlobalAveragePooling1D()(inputs)) for _ in range(count)]
        return keras.Model(inputs, layers.Dense(9)(make()(inputs, initial_state=states)))

    return build


def states_of(make, join):
    """A dense layer behind what `join` makes of everything that a layer returns."""

    def build():
        inputs = keras.Input((FRAMES, 12), name="speech")
        return keras.Model(inputs, layers.Dense(9)(join(inputs, *make()(inputs))))

    return build


def both_sequences(mode):
    gru = lambda: layers.GRU(4, return_sequences=True)  # noqa: E731
    return chain(lambda: layers.Bidirectional(gru(), merge_mode=mode), lambda: layers.Flatten())


def both_lstms():
    return layers.Bidirectional(layers.LSTM(4, return_state=True))


def decoded(inputs, _outputs, hidden, cell, other_hidden, other_cell):
    """Bidirectional encoder, one decoder; each cell state has a range of its own."""
    cells = [dqat.layers.QuantizePoint()(state) for state in (cell, other_cell)]
    states = [layers.Concatenate()([hidden, other_hidden]), layers.Concatenate()(cells)]
    return layers.LSTM(8)(inputs, initial_state=states)


#: These are trained, exported and verified.
WORKING = {
    "hidden state beside the output": states_of(
        lambda: layers.LSTM(6, return_state=True),
        lambda _, outputs, hidden, cell: layers.Concatenate()([outputs, hidden]),
    ),
    "hidden state beside the input": states_of(
        lambda: layers.GRU(6, return_state=True),
        lambda inputs, outputs, hidden: layers.Concatenate()([layers.Flatten()(inputs), hidden]),
    ),
    "encoder of both directions": states_of(both_lstms, decoded),
    "two layers on one input": states_of(
        lambda: lambda inputs: (layers.GRU(4)(inputs), layers.GRU(4)(inputs)), lambda _, *both: layers.Add()(both)
    ),
    "initial states of an lstm": with_states(lambda: layers.LSTM(6), 2),
    "initial states of both directions": with_states(lambda: layers.Bidirectional(layers.GRU(6)), 2),
    "unroll": lstm(unroll=True),
    "sigmoid for tanh": lstm(activation="sigmoid"),
    "lstm without activation": lstm(activation="linear"),
    "gru without activation": chain(lambda: layers.GRU(6, activation=None)),
    "simple rnn without activation": chain(lambda: layers.SimpleRNN(6, activation="linear")),
    **{f"sequences of both directions, {mode}": both_sequences(mode) for mode in ("sum", "mul", "ave")},
    "relu of both directions": chain(
        lambda: layers.Bidirectional(layers.SimpleRNN(6), merge_mode="ave"), lambda: layers.ReLU()
    ),
    "sequences of both directions, apart": states_of(
        lambda: layers.Bidirectional(layers.SimpleRNN(6, return_sequences=True), merge_mode=None),
        lambda _, *both: layers.Flatten()(layers.Subtract()(both)),
    ),
    "both directions, different units": chain(
        lambda: layers.Bidirectional(layers.LSTM(6), backward_layer=layers.LSTM(4, go_backwards=True))
    ),
    "recurrent dropout": chain(lambda: layers.GRU(6, recurrent_dropout=0.2, dropout=0.2)),
    "nas with projection": cell(lambda: tfa.rnn.NASCell(8, projection=4)),
    "peephole without bias": cell(lambda: tfa.rnn.PeepholeLSTMCell(6, use_bias=False)),
    "peephole, both directions": chain(
        lambda: layers.Bidirectional(layers.RNN(tfa.rnn.PeepholeLSTMCell(6, dropout=0.1)))
    ),
    "peephole, states": states_of(
        lambda: layers.RNN(tfa.rnn.PeepholeLSTMCell(6), return_state=True), lambda _, outputs, hidden, cell: outputs
    ),
    "stacked cells": cell(lambda: layers.StackedRNNCells([layers.GRUCell(6), layers.SimpleRNNCell(5)])),
}
#: These are refused, with what stands here in the reason.
REFUSED = {
    "cell state beside the output": (
        states_of(
            lambda: layers.LSTM(6, return_state=True),
            lambda _, outputs, hidden, cell: layers.Concatenate()([outputs, cell]),
        ),
        "one of the states that it returns has a range of its own, but",
    ),
    "largest of hidden and cell state": (
        states_of(
            lambda: layers.LSTM(6, return_state=True),
            lambda _, outputs, hidden, cell: layers.Maximum()([hidden, cell]),
        ),
        "Put a dqat.layers.QuantizePoint behind the state",
    ),
    "cell states of both directions": (
        states_of(both_lstms, lambda _, outputs, h, c, other_h, other_c: layers.Concatenate()([c, other_c])),
        "one of the states that it returns has a range of its own, but",
    ),
    "elu": (lstm(activation="elu"), "activation must be one of tanh, sigmoid, relu, linear, got elu"),
    "hard sigmoid": (
        chain(lambda: layers.GRU(4, recurrent_activation="hard_sigmoid")),
        "recurrent_activation must be one of sigmoid, got hard_sigmoid",
    ),
    "zero_output_for_mask": (
        chain(lambda: layers.LSTM(4, zero_output_for_mask=True)),
        "zero_output_for_mask=True is not simulated",
    ),
    "dropout in stacked cells": (
        cell(lambda: layers.StackedRNNCells([layers.GRUCell(4, dropout=0.1), layers.GRUCell(4)])),
        "dropout inside stacked cells is not simulated",
    ),
    "reversed states": (
        cell(lambda: layers.StackedRNNCells([layers.GRUCell(4), layers.GRUCell(4)], reverse_state_order=True)),
        "reverse_state_order of StackedRNNCells must be False",
    ),
    "convolutional lstm": (
        lambda: keras.Sequential([keras.Input((4, 8, 8, 1)), layers.ConvLSTM2D(2, 3)]),
        "TFLite has no operator for its cell",
    ),
    "esn cell": (cell(lambda: tfa.rnn.ESNCell(8)), "its cell ESNCell is not known"),
}


def batch_of(layer, time=FRAMES, **options):
    """A model whose batch size is fixed, as stateful layers want it."""
    inputs = keras.Input((time, 12), batch_size=8, **options)
    return keras.Model(inputs, layer(inputs))


#: These train, and `quantize_model` tells that they have no file, or only a streaming one.
WITHOUT_A_FILE = {
    "mask": (chain(layers.Masking, lambda: layers.LSTM(4)), "feed the frames that are no padding"),
    "mask before layers that take none": (
        chain(
            *(layers.Masking, lambda: layers.GRU(4, return_sequences=True)),
            *(lambda: layers.Conv1D(4, 2), layers.LayerNormalization, layers.Flatten),
        ),
        "feed the frames that are no padding",
    ),
    "mask, backwards": (
        chain(layers.Masking, lambda: layers.Bidirectional(layers.LSTM(4))),
        "a layer that runs backwards has no streaming file either",
    ),
    "time_major": (
        lambda: batch_of(layers.LSTM(4, time_major=True)),
        "train with time_major=False, the weights are the same",
    ),
    "stateful": (
        lambda: batch_of(layers.GRU(4, stateful=True)),
        "begins each with states of zero: export with streaming=True, which keeps them",
    ),
    "unknown length": (
        lambda: batch_of(layers.GRU(4), time=None),
        "give keras.Input a number of timesteps, or export with streaming=True",
    ),
}


@pytest.mark.parametrize("name", WORKING)
def test_it_goes_the_whole_way(name, speech, tmp_path):
    keras.utils.set_random_seed(0)
    x, y = speech[0][0][:135, -FRAMES:], speech[0][1][:135]
    model = compiled(WORKING[name](), 1e-2)
    model.fit(x, y, batch_size=27, epochs=1, verbose=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*trains, but")
        quantized = compiled(dqat.quantize_model(model), 1e-3)
    quantized.fit(x, y, batch_size=27, epochs=1, verbose=0)
    report = dqat.export_tflite(quantized, tmp_path / "model.tflite")
    assert dqat.verify(quantized, report.path, x[:40]).within_1_lsb >= 0.95


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_when_quantizing(name):
    build, reason = REFUSED[name]
    with pytest.raises(dqat.UnsupportedLayerError, match=re.escape(reason)):
        dqat.quantize_model(build())


@pytest.mark.parametrize("name", WITHOUT_A_FILE)
def test_what_has_no_file_trains_and_is_told_when_quantizing(name):
    build, reason = WITHOUT_A_FILE[name]
    with pytest.warns(UserWarning, match="trains, but.*" + re.escape(reason)):
        model = dqat.quantize_model(build())
    model(np.random.default_rng(0).normal(size=(8, FRAMES, 12)).astype(np.float32), training=True)
    assert all(np.isfinite(low).all() for low, _ in dqat.ranges(model).values())
