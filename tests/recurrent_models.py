"""One table of recurrent configurations; the tests of building, saving, exporting and parity loop over it."""

import importlib.util

import tensorflow as tf

from dqat.keras_api import keras, register
from dqat.layers import point

layers = keras.layers
FRAMES = 10


@register("tests")
class MinimalGatedUnit(layers.Layer):
    """A cell of a user's own (Zhou et al., 2016), with its quantization points marked."""

    quantized_weights = ("kernel", "recurrent_kernel", "candidate_kernel")

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units

    def build(self, input_shape):
        self.kernel = self.add_weight(name="kernel", shape=(input_shape[-1], 2 * self.units))
        self.recurrent_kernel = self.add_weight(name="recurrent_kernel", shape=(self.units, self.units))
        self.candidate_kernel = self.add_weight(name="candidate_kernel", shape=(self.units, self.units))
        self.bias = self.add_weight(name="bias", shape=(2 * self.units,), initializer="zeros")
        super().build(input_shape)

    def call(self, inputs, states, training=None):
        (h,) = states
        projected = point("inputs", tf.nn.bias_add(tf.matmul(inputs, self.kernel), self.bias))
        x_forget, x_candidate = tf.split(projected, 2, axis=-1)
        recurrent = point("recurrent", tf.matmul(h, self.recurrent_kernel))
        forget = point("forget", tf.sigmoid(point("forget_sum", x_forget + recurrent, limit=8.0)))
        forgotten = point("forgotten", forget * h)
        recurrent = point("candidate_product", tf.matmul(forgotten, self.candidate_kernel))
        candidate = point("candidate", tf.tanh(point("candidate_sum", x_candidate + recurrent, limit=8.0)))
        kept = point("kept", point("openness", 1.0 - forget) * h)
        h = point("hidden", kept + point("new", forget * candidate))
        return h, [h]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def chain(*parts):
    """A model of layers in a row behind real frames, with a dense layer for the speakers at its end."""

    def build():
        inputs = outputs = keras.Input((FRAMES, 12), name="speech")
        for part in parts:
            outputs = part()(outputs)
        return keras.Model(inputs, layers.Dense(9, name="speaker")(outputs))

    return build


def cell(make):
    return chain(lambda: layers.RNN(make(), name="recurrent"))


def bidirectional(make, mode):
    return chain(lambda: layers.Bidirectional(make(), merge_mode=mode, name="recurrent"))


def separate_directions():
    inputs = keras.Input((FRAMES, 12), name="speech")
    forward, backward = layers.Bidirectional(layers.LSTM(8), merge_mode=None, name="recurrent")(inputs)
    return keras.Model(inputs, layers.Dense(9, name="speaker")(layers.Concatenate()([forward, backward])))


def encoder_decoder(kind):
    def build():
        inputs = keras.Input((FRAMES, 12), name="speech")
        _, *states = kind(8, return_state=True, name="encoder")(inputs)
        outputs = kind(8, name="recurrent")(inputs, initial_state=states)
        return keras.Model(inputs, layers.Dense(9, name="speaker")(outputs))

    return build


def lstm(**options):
    return chain(lambda: layers.LSTM(8, name="recurrent", **options))


#: Configurations that become TFLite's LSTM operator.
FUSED = {
    "lstm": lstm(),
    "lstm, backwards": lstm(go_backwards=True),
    "lstm, no bias": lstm(use_bias=False),
    "lstm, dropout": lstm(dropout=0.2, recurrent_dropout=0.2),
    "lstm, stacked": chain(lambda: layers.LSTM(8, return_sequences=True), lambda: layers.LSTM(6, name="recurrent")),
    "bidirectional lstm, concat": bidirectional(lambda: layers.LSTM(8), "concat"),
    "bidirectional lstm, sum": bidirectional(lambda: layers.LSTM(8), "sum"),
    "bidirectional lstm, mul": bidirectional(lambda: layers.LSTM(8), "mul"),
    "bidirectional lstm, ave": bidirectional(lambda: layers.LSTM(8), "ave"),
    "bidirectional lstm, none": separate_directions,
    "bidirectional lstm, stacked": chain(
        lambda: layers.Bidirectional(layers.LSTM(6, return_sequences=True)),
        lambda: layers.Bidirectional(layers.LSTM(6), name="recurrent"),
    ),
}
#: Configurations that become one cell after another.
UNROLLED = {
    "gru": chain(lambda: layers.GRU(8, name="recurrent")),
    "gru, reset before": chain(lambda: layers.GRU(8, reset_after=False, use_bias=False, name="recurrent")),
    "simple rnn": chain(lambda: layers.SimpleRNN(8, dropout=0.1, recurrent_dropout=0.1, name="recurrent")),
    "simple rnn, relu": chain(lambda: layers.SimpleRNN(8, activation="relu", name="recurrent")),
    "bidirectional gru, stacked": chain(
        lambda: layers.Bidirectional(layers.GRU(6, return_sequences=True)),
        lambda: layers.Bidirectional(layers.SimpleRNN(6), name="recurrent"),
    ),
    "lstm with relu": lstm(activation="relu"),
    "lstm encoder and decoder": encoder_decoder(layers.LSTM),
    "gru encoder and decoder": encoder_decoder(layers.GRU),
    "stacked cells": cell(lambda: layers.StackedRNNCells([layers.LSTMCell(8), layers.GRUCell(6)])),
    "a user's own cell": cell(lambda: MinimalGatedUnit(8)),
}
if importlib.util.find_spec("tensorflow_addons"):  # it ended with TensorFlow 2.15
    import tensorflow_addons as tfa

    FUSED["peephole lstm"] = cell(lambda: tfa.rnn.PeepholeLSTMCell(8))
    UNROLLED |= {
        "layer-norm lstm": cell(lambda: tfa.rnn.LayerNormLSTMCell(8)),
        "layer-norm simple rnn": cell(lambda: tfa.rnn.LayerNormSimpleRNNCell(8)),
        "nas": cell(lambda: tfa.rnn.NASCell(8)),
    }
