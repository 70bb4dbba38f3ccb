"""Every recurrent configuration, from building to parity."""

import importlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_addons as tfa
from conftest import compiled
from recurrent_models import FRAMES, FUSED, UNROLLED, MinimalGatedUnit, cell, chain, lstm

import dqat
from dqat.export.flatbuffer import Flatbuffer
from dqat.keras_api import keras, register
from dqat.layers import QuantizedRNN, cells
from dqat.layers.peephole_lstm import PEEPHOLES
from dqat.model import named_quantizers
from dqat.streaming import Stream

layers = keras.layers


@pytest.fixture(scope="module")
def frames(speech):
    """The last frames of the utterances: ((samples, speakers) for training, the same for testing)."""
    return tuple((samples[:, -FRAMES:], speakers) for samples, speakers in speech)


@pytest.fixture(scope="module", params=FUSED | UNROLLED)
def quantized(request, frames):
    """A model of the table, trained in float and quantization-aware."""
    keras.utils.set_random_seed(0)
    model = compiled((FUSED | UNROLLED)[request.param](), 1e-2)
    model.fit(*frames[0], batch_size=27, epochs=4, verbose=0)
    found = compiled(dqat.quantize_model(model), 1e-3)
    found.fit(*frames[0], batch_size=27, epochs=2, verbose=0)
    found.is_fused = request.param in FUSED
    return found


def test_a_loaded_model_computes_what_the_saved_one_did(quantized, frames, tmp_path):
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = frames[1][0][:20]
    np.testing.assert_array_equal(loaded(x), quantized(x))
    before, after = dqat.ranges(quantized), dqat.ranges(loaded)
    assert before.keys() == after.keys()
    for path, range_ in before.items():
        np.testing.assert_array_equal(range_, after[path])


def test_the_file_is_integer_only_and_behaves_as_the_simulation(quantized, frames, tmp_path):
    report = dqat.export_tflite(quantized, tmp_path / "model.tflite")
    flatbuffer = Flatbuffer(report.path.read_bytes())
    assert flatbuffer.float_tensors() == []
    assert ("UNIDIRECTIONAL_SEQUENCE_LSTM" in report.operators) == quantized.is_fused
    assert not {"DEQUANTIZE", "WHILE"} & set(report.operators)
    parity = dqat.verify(quantized, report.path, frames[1][0][:100])
    assert parity.within_1_lsb >= 0.99
    assert parity.same_class >= 0.97
    assert np.ptp(parity.integer) > 1  # it says something


def test_every_weight_and_point_is_in_the_coverage(quantized):
    rows = [row for row in dqat.coverage(quantized).rows if row.layer == "recurrent"]
    assert all(row.quantized for row in rows)
    assert any("recurrent_kernel" in row.tensor for row in rows)
    assert any(row.tensor.endswith(("hidden", "output")) for row in rows)


def peephole(units, **options):
    return layers.RNN(tfa.rnn.PeepholeLSTMCell(units), **options)


@pytest.mark.parametrize("make", [layers.LSTM, layers.GRU, layers.SimpleRNN, peephole])
def test_without_ranges_and_with_unquantized_weights_it_is_keras_layer(frames, make, monkeypatch):
    importlib.import_module("dqat.rules")  # its tables begin with the fixed ranges
    monkeypatch.setattr(QuantizedRNN, "quantized_weights", lambda self: self.weight_values())
    for function in tuple(cells.FIXED):
        monkeypatch.delitem(cells.FIXED, function)
    x = tf.constant(frames[0][0][:16])
    for options in ({}, {"go_backwards": True}, {"return_sequences": True}):
        model = chain(lambda options=options: make(7, **options))()
        layer = dqat.quantize_model(model).layers[2]
        np.testing.assert_allclose(layer(x), layer.layer(x), atol=2e-6)


def test_peepholes_have_the_gradients_of_tensorflow_addons(frames, monkeypatch):
    monkeypatch.setattr(QuantizedRNN, "quantized_weights", lambda self: self.weight_values())
    x = tf.constant(frames[0][0][:16])
    keras.utils.set_random_seed(0)
    layer = dqat.quantize_model(chain(lambda: peephole(7))()).layers[2]
    gradients = []
    for one in (layer, layer.layer):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(one(x) ** 2)
        gradients.append(tape.gradient(loss, [getattr(layer.layer.cell, role) for role in PEEPHOLES]))
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        assert np.abs(theirs).max() > 1e-3


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_sigmoids_complement_has_the_sigmoids_levels(reset_after):
    """On a grid from 0 to the largest complement its middle lies between two levels, where kernels part."""
    model = dqat.quantize_model(chain(lambda: layers.GRU(5, reset_after=reset_after))())
    points = model.layers[2].points
    assert points["openness"].observer == points["gates"].observer == cells.FIXED["Sigmoid"]


@pytest.mark.parametrize("units, reset_after", [(128, True), (64, False)])
def test_every_level_of_a_gru_is_that_of_its_file(speech, tmp_path, units, reset_after):
    """Float arithmetic gives another level than the kernels in some of 100,000 cases, and the timesteps amplify it."""
    (samples, _), (test_samples, _) = speech
    keras.utils.set_random_seed(1)
    gru = layers.GRU(units, reset_after=reset_after, return_sequences=True)
    model = dqat.quantize_model(keras.Sequential([keras.Input(samples.shape[1:]), gru]))
    for weight in model.layers[-1].layer.trainable_weights:
        weight.assign(2.0 * weight)  # so that states say something
    for _ in range(3):
        model(samples[:90], training=True)
    dqat.export_tflite(model, tmp_path / "gru.tflite")
    assert dqat.verify(model, tmp_path / "gru.tflite", test_samples[:100]).equal == 1.0


def masked_model(make):
    inputs = keras.Input((FRAMES, 12))
    outputs = make()(layers.Masking()(inputs))
    return dqat.quantize_model(keras.Model(inputs, outputs))


@pytest.mark.parametrize("make", [layers.LSTM, layers.GRU])
def test_masked_steps_keep_the_state_and_are_not_recorded(frames, make):
    x = np.float32(frames[0][0][:16])
    padded = np.concatenate([x[:, :6], np.zeros_like(x[:, 6:])], axis=1)
    keras.utils.set_random_seed(0)
    masked = masked_model(lambda: make(5, return_sequences=True))
    short = dqat.quantize_model(chain(lambda: make(5, return_sequences=True))())
    for _ in range(3):
        masked(padded, training=True)
    recurrent = next(layer for layer in masked.layers if isinstance(layer, QuantizedRNN))
    other = next(layer for layer in short.layers if isinstance(layer, QuantizedRNN))
    other.set_weights(recurrent.get_weights())
    other.input_quantizer.set_weights(masked.layers[1].get_weights())  # an LSTM rounds its sums on the input's scale
    quantized_input = masked.layers[1](padded)
    outputs = recurrent(quantized_input, mask=tf.constant(padded.any(-1)))
    np.testing.assert_array_equal(outputs[:, :6], other(quantized_input[:, :6]))
    np.testing.assert_array_equal(outputs[:, 6:], np.repeat(outputs[:, 5:6], FRAMES - 6, axis=1))


@pytest.mark.parametrize("make", [layers.LSTM, layers.GRU])
def test_what_stands_in_masked_steps_enters_no_range(frames, make):
    x = np.float32(frames[0][0][:16])
    mask = np.ones(x.shape[:2], bool)
    mask[:, 6:] = False
    found = []
    for noise in (0.0, 50.0):
        keras.utils.set_random_seed(0)
        model = masked_model(lambda: make(5))
        recurrent = next(layer for layer in model.layers if isinstance(layer, QuantizedRNN))
        for _ in range(3):
            with model.range_sync.step(True):
                recurrent(tf.constant(np.where(mask[..., None], x, noise), tf.float32), mask=mask, training=True)
        found.append([quantizer.range() for quantizer in recurrent.points.values()])
    np.testing.assert_array_equal(*found)
    assert np.isfinite(found[0]).all()


def test_a_stateful_layer_goes_on_where_the_last_batch_ended(frames):
    x = np.float32(frames[0][0][:8])
    inputs = keras.Input(batch_shape=(8, 5, 12))
    outputs = layers.LSTM(6, stateful=True)(inputs)
    model = dqat.quantize_model(keras.Model(inputs, outputs))
    whole = dqat.quantize_model(chain(lambda: layers.LSTM(6))())
    model(x[:, :5], training=True)
    model.reset_states()
    whole.layers[2].set_weights(model.layers[2].get_weights()[: len(whole.layers[2].get_weights())])
    whole.layers[1].set_weights(model.layers[1].get_weights())
    model(x[:, :5])
    second = model(x[:, 5:])
    np.testing.assert_array_equal(second, whole.layers[2](whole.layers[1](x)))
    model.reset_states()
    assert not np.array_equal(model(x[:, 5:]), second)


def test_time_major_sequences_are_those_of_batch_major_ones(frames):
    x = tf.constant(frames[0][0][:8])
    model = dqat.quantize_model(lstm(return_sequences=True)())
    layer = model.get_layer("recurrent")
    model(x, training=True)
    turned = type(layer).from_config({**layer.get_config(), "name": "turned"})
    turned.layer.time_major = True
    turned.build(tf.TensorShape([FRAMES, None, 12]))
    turned.set_weights(layer.get_weights())
    turned.connect_input(layer.input_quantizer)  # an LSTM rounds its sums on the input's scale
    np.testing.assert_array_equal(turned(tf.transpose(x, [1, 0, 2])), tf.transpose(layer(x), [1, 0, 2]))


def test_time_major_layers_are_refused_at_export(tmp_path):
    inputs = keras.Input((None, 12), batch_size=8)
    model = dqat.quantize_model(keras.Model(inputs, layers.LSTM(4, time_major=True)(inputs)))
    model(np.ones([8, 5, 12], np.float32), training=True)
    model(np.ones([8, 5, 12], np.float32), training=True)
    with pytest.raises(dqat.ExportError, match="has time_major=True"):
        dqat.export_tflite(model, tmp_path / "model.tflite")


#: What a further timestep may cost, in bytes, by recurrent layer of 32 units.
PER_TIMESTEP = {
    "gru": (lambda: layers.GRU(32), 2500),
    "simple rnn": (lambda: layers.SimpleRNN(32), 700),
    "layer-norm lstm": (lambda: layers.RNN(tfa.rnn.LayerNormLSTMCell(32)), 6000),
    "lstm": (lambda: layers.LSTM(32), 2),
}


@pytest.mark.parametrize("name", PER_TIMESTEP)
def test_weights_are_stored_once_whatever_the_length(name, frames, tmp_path):
    make, limit = PER_TIMESTEP[name]
    sizes = {}
    for length in (10, 100):
        inputs = keras.Input((length, 12))
        model = dqat.quantize_model(keras.Model(inputs, make()(inputs)))
        x = np.tile(frames[0][0][:8], (1, 10, 1))[:, :length]
        for _ in range(2):
            model(x, training=True)
        report = dqat.export_tflite(model, tmp_path / f"{length}.tflite")
        flatbuffer = Flatbuffer(report.path.read_bytes())
        assert flatbuffer.float_tensors() == []
        constants = [constant.nbytes for constant in flatbuffer.constants() if constant.nbytes >= 32 * 12]
        sizes[length] = report.size, sum(constants)
    assert sizes[10][1] == sizes[100][1]
    assert (sizes[100][0] - sizes[10][0]) / 90 < limit


@register("tests")
class Careless(MinimalGatedUnit):
    """Forgets to mark a product."""

    def call(self, inputs, states, training=None):
        output, states = super().call(inputs, states)
        return point_of(output * 0.5 + states[0]), states


def point_of(value):
    return dqat.layers.point("end", value)


def test_an_unmarked_result_of_a_users_cell_is_refused_when_quantizing():
    with pytest.raises(ValueError, match="the result of Mul .* is no quantization point"):
        dqat.quantize_model(cell(lambda: Careless(4))())


def test_an_unknown_cell_is_refused_with_the_way_out():
    @register("tests")
    class Unknown(layers.LSTMCell):
        pass

    with pytest.raises(dqat.UnsupportedLayerError, match=r"its cell Unknown is not known.*dqat.layers.point"):
        dqat.quantize_model(cell(lambda: Unknown(4))())


def test_a_masked_model_is_not_exported_as_a_whole_sequence(frames, tmp_path):
    model = masked_model(lambda: layers.LSTM(4))
    model(frames[0][0][:8], training=True)
    with pytest.raises(dqat.ExportError, match="mask"):
        dqat.export_tflite(model, tmp_path / "model.tflite")


def test_a_cell_state_alone_may_be_a_models_output(frames, tmp_path):
    inputs = keras.Input((FRAMES, 12))
    _, _, cell_state = layers.LSTM(8, return_state=True)(inputs)
    model = dqat.quantize_model(keras.Model(inputs, layers.Dense(3)(cell_state)))
    for _ in range(2):
        model(frames[0][0][:32], training=True)
    for _ in range(6):  # every other time the quantizer leaves the last output gate in float, since nobody reads it
        dqat.export_tflite(model, tmp_path / "model.tflite")
        assert dqat.inspect_tflite(tmp_path / "model.tflite").float_islands == []
    assert dqat.verify(model, tmp_path / "model.tflite", frames[1][0][:32]).within_1_lsb >= 0.99


@pytest.mark.parametrize(
    "parts",
    [
        [lambda: layers.LSTM(8, return_sequences=True), lambda: layers.LSTM(6)],
        [lambda: layers.GRU(8, return_sequences=True), lambda: layers.Dense(5), lambda: layers.SimpleRNN(6)],
        [lambda: layers.RNN(tfa.rnn.LayerNormLSTMCell(8), return_sequences=True), lambda: layers.LSTM(6)],
        [lambda: layers.Masking(), lambda: layers.LSTM(6)],
        [lambda: layers.RNN(MinimalGatedUnit(6))],
    ],
    ids=["lstm, stacked", "gru, dense, simple rnn", "layer-norm lstm, lstm", "masked lstm", "a user's own cell"],
)
def test_a_streaming_file_gives_the_outputs_of_the_whole_sequence(frames, parts, tmp_path):
    model = dqat.quantize_model(chain(*parts)())
    for begin in range(0, 80, 20):
        model(frames[0][0][begin : begin + 20], training=True)
    stream = Stream(dqat.export_tflite(model, tmp_path / "stream.tflite", streaming=True).path)
    assert Flatbuffer((tmp_path / "stream.tflite").read_bytes()).float_tensors() == []
    samples = frames[1][0][:20]
    streamed = []
    for sample in samples:
        stream.reset()
        for frame in sample:
            last = stream.step(frame)
        streamed.append(last)
    scale, zero_point = stream.output_parameters
    if any(isinstance(layer, layers.Masking) for layer in model.layers):
        expected = np.rint(model(samples) / scale) + zero_point  # there is no whole-sequence file
        assert np.abs(expected - streamed).max() <= 1
        return
    whole = dqat.verify(model, dqat.export_tflite(model, tmp_path / "whole.tflite").path, samples)
    np.testing.assert_array_equal(np.int32(streamed), np.rint(whole.integer / scale) + zero_point)


@pytest.mark.parametrize(
    "part, word",
    [
        (lambda: layers.Bidirectional(layers.LSTM(4)), "from the end of the sequence"),
        (lambda: layers.LSTM(4, go_backwards=True), "from the end of the sequence"),
        (lambda: layers.Flatten(), "may look at several frames"),
    ],
)
def test_what_needs_the_whole_sequence_is_not_streamed(frames, part, word, tmp_path):
    model = dqat.quantize_model(chain(part)())
    model(frames[0][0][:8], training=True)
    with pytest.raises(dqat.ExportError, match=word):
        dqat.export_tflite(model, tmp_path / "model.tflite", streaming=True)


def test_a_quantizer_that_fails_comes_back_as_an_error():
    from dqat.export import quantizer

    with pytest.raises(dqat.ExportError, match="can't do this model's graph: Invalid model"):
        quantizer.quantize(b"not a model", in_child=True)


def test_ranges_that_exploded_are_an_error_at_export_and_not_the_end_of_whoever_opens_the_file(speech, tmp_path):
    keras.utils.set_random_seed(1)
    model = dqat.quantize_model(UNROLLED["layer-norm lstm"]())
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    model.fit(speech[0][0][:24, :FRAMES], np.eye(9)[speech[0][1][:24]], batch_size=12, epochs=2, verbose=0)
    assert max(float(tf.reduce_max(quantizer.range()[1])) for _, quantizer in named_quantizers(model)) > 1e9
    with pytest.raises(dqat.ExportError, match="ranges that exploded"):
        dqat.export_tflite(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())
