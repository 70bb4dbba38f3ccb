"""The simulation against a second opinion: the same quantization points in NumPy, in float64."""

import numpy as np
import pytest
import tensorflow as tf

import dqat
from dqat import native
from dqat.keras_api import keras


def quantized_lstm(units, return_sequences, **options):
    inputs = keras.Input((29, 12))
    lstm = keras.layers.LSTM(units, return_sequences=return_sequences, name="lstm", **options)
    model = dqat.quantize_model(keras.Model(inputs, lstm(inputs)))
    return model, model.get_layer("lstm")


def quantize(values, found, num_bits):
    half = 2 ** (num_bits - 1)
    scale, zero_point = float(found["scale"]), int(found["zero_point"])
    codes = np.clip(np.floor(values / scale + 0.5) + zero_point, -half, half - 1)
    return (codes - zero_point) * scale


def parameters(quantizer):
    low, high = quantizer.range()
    return native.module.quantization_parameters(low.numpy(), high.numpy(), num_bits=quantizer.spec.num_bits)


def simulate(layer, x):
    """TFLite's integer LSTM without its fixed-point approximations."""
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    weights = {role: np.float64(value.numpy()) for role, value in layer.quantized_weights().items()}
    hidden, cell = parameters(layer.hidden), parameters(layer.cell_state)
    units = layer.layer.units
    bias = np.float64(layer.layer.cell.bias.numpy()) if layer.layer.use_bias else np.zeros(4 * units)
    h = c = np.zeros((len(x), units))
    outputs = []
    for frame in np.moveaxis(np.float64(x), 1, 0):
        gates = np.einsum("bi,igu->bgu", frame, weights["kernel"]) + np.einsum(
            "bi,igu->bgu", h, weights["recurrent_kernel"]
        )
        gates = np.clip(gates + bias.reshape(4, units), -8, 8 - 2.0**-12)
        i, f, g, o = np.moveaxis(gates, 1, 0)
        c = quantize(np.clip(sigmoid(f) * c + sigmoid(i) * np.tanh(g), -10, 10), cell, 16)
        h = quantize(sigmoid(o) * np.tanh(c), hidden, 8)
        outputs.append(h)
    return np.stack(outputs, axis=1)


@pytest.mark.parametrize("recurrent_dropout", [0.0, 0.3], ids=["one operation", "loop"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_the_simulation_is_tflites_integer_lstm(speech, use_bias, recurrent_dropout):
    """The integer reference equals the interpreter in every bit: see test_integer_lstm.py."""
    keras.utils.set_random_seed(0)
    model, layer = quantized_lstm(16, return_sequences=True, use_bias=use_bias, recurrent_dropout=recurrent_dropout)
    for _ in range(3):
        model(speech[0][0][:64], training=True)
    if use_bias:
        layer.layer.cell.bias.assign_add(tf.random.stateless_uniform([64], (1, 2), -0.5, 0.5))
    lsb = float(parameters(layer.hidden)["scale"])
    expected = dqat.simulate(model, speech[1][0][:64], simulation="integer")
    apart = np.rint(np.abs(model(speech[1][0][:64]) - expected) / lsb)
    # A sum in float32 on the edge of a rounding may fall to either side.
    assert (apart == 0).mean() > 0.999
    assert apart.max() <= 1


def test_inputs_that_dropout_keeps_are_not_rounded_again(speech):
    """They are whole multiples of a scale that is larger by what dropout multiplies with."""
    keras.utils.set_random_seed(0)
    model, layer = quantized_lstm(16, return_sequences=True, use_bias=False, dropout=0.5)
    model(speech[0][0][:64], training=True)
    quantizer = layer.input_quantizer
    x = quantizer.quantize(tf.constant(speech[0][0][:64]), quantizer.range())
    tf.random.set_seed(1)
    kept = x * tf.nn.dropout(tf.ones([64, 1, 12]), 0.5)
    ends = quantizer.range()
    quantizer.min.assign(ends[0] * 2.0)
    quantizer.max.assign(ends[1] * 2.0)
    expected = layer(kept)
    quantizer.min.assign(ends[0])
    quantizer.max.assign(ends[1])
    assert np.abs(layer(kept) - expected).max() > 0.0
    tf.random.set_seed(1)
    np.testing.assert_array_equal(layer(x, training=True), expected)


@pytest.mark.parametrize("use_bias", [True, False])
def test_without_the_inputs_range_gates_are_float(speech, use_bias):
    model, layer = quantized_lstm(16, return_sequences=True, use_bias=use_bias)
    for _ in range(3):
        model(speech[0][0][:64], training=True)
    layer.connect_input(None)
    x = model.get_layer(model.layers[1].name)(speech[1][0][:64])
    expected = simulate(layer, x.numpy())
    lsb = float(parameters(layer.hidden)["scale"])
    apart = np.rint(np.abs(layer(x) - expected) / lsb)
    # float32 against float64: a value on the edge between two levels may fall to either side.
    assert (apart == 0).mean() > 0.999
    assert apart.max() <= 1


def test_the_last_output_is_the_end_of_the_sequence(speech):
    keras.utils.set_random_seed(0)
    whole, _layer = quantized_lstm(8, return_sequences=True)
    last, _other = quantized_lstm(8, return_sequences=False)
    last.set_weights(whole.get_weights())
    np.testing.assert_array_equal(whole(speech[0][0][:5])[:, -1], last(speech[0][0][:5]))
    assert whole.output_shape == (None, 29, 8)
    assert last.output_shape == (None, 8)


def test_without_ranges_and_with_unquantized_weights_it_is_keras_lstm(speech, monkeypatch):
    _model, layer = quantized_lstm(16, return_sequences=True)
    monkeypatch.setattr(type(layer), "quantized_weights", lambda self: self.weight_values())
    x = speech[0][0][:16]
    np.testing.assert_allclose(layer(x), layer.layer(x), atol=1e-6)
    variables = layer.layer.trainable_variables
    gradients = []
    for function in (layer, layer.layer):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(function(tf.constant(x)) ** 2)
        gradients.append(tape.gradient(loss, variables))
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_states_are_recorded_before_quantization(speech):
    model, layer = quantized_lstm(16, return_sequences=True)
    x = tf.constant(speech[0][0][:16])
    outputs = model(x, training=True)  # the first step passes through
    low, high = layer.hidden.range()
    assert (float(low), float(high)) == (float(tf.reduce_min(outputs)), float(tf.reduce_max(outputs)))
    assert float(layer.cell_state.max) > float(high)


def test_cell_states_have_a_power_of_two_scale_that_tflite_can_read(trained):
    for name in ("lstm_0", "lstm_1"):
        scale = float(parameters(trained.get_layer(name).cell_state)["scale"])
        assert np.log2(scale) == round(np.log2(scale))
        assert 2.0**-15 <= scale <= 2.0**-9
