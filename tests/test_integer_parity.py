"""`verify` with the integer references: is a difference the simulation's rounding, or a wrong export?"""

import json

import numpy as np
import pytest
from conftest import speech_model
from recurrent_models import FRAMES, cell, lstm
from test_simulation import MODELS, trained
from typer.testing import CliRunner

import dqat
from dqat.cli import app
from dqat.export import checksum
from dqat.export.flatbuffer import Flatbuffer, LstmTensors
from dqat.keras_api import keras
from dqat.report import Report

layers = keras.layers


@pytest.fixture(scope="module")
def gru(speech):
    """A GRU that was trained quantization-aware. Do not change it."""
    return trained(MODELS["gru"], speech)


def with_one_weight_changed(path, found, tensor_of):
    """The file at `path`, with one weight of a tensor 20 levels off, in a file beside it."""
    flatbuffer = Flatbuffer(path.read_bytes())
    index = tensor_of(flatbuffer)
    content = bytearray(flatbuffer.model.buffers[flatbuffer.tensor(index).buffer].data)
    content[5] = (content[5] + (20 if content[5] < 100 else -20)) % 256
    flatbuffer.model.buffers[flatbuffer.tensor(index).buffer].data = np.frombuffer(content, np.uint8)
    found.write_bytes(checksum.seal(flatbuffer))
    return found


@pytest.mark.parametrize("name", ["lstm, stacked", "bidirectional lstm", "simple rnn, relu, stacked"])
def test_a_right_file_differs_by_rounding_alone(name, speech, tmp_path):
    model = trained(MODELS[name], speech)
    parity = dqat.verify(model, dqat.export_tflite(model, tmp_path / "model.tflite").path, speech[1][0][:40, -FRAMES:])
    shares = {layer.name: layer.reference_equal for layer in parity.layers}
    recurrent = [path for path in shares if path.startswith(("lstm", "bidirectional", "simple_rnn"))]
    assert len(recurrent) >= (1 if name == "bidirectional lstm" else 2)
    assert {shares[path] for path in (*recurrent, "speech_quantizer", "speaker/output")} == {1.0}
    assert all(layer.cause == "rounding" for layer in parity.layers if layer.reference_equal is not None)
    assert parity.first_apart is None


def test_a_gru_and_what_stands_around_it(speech, tmp_path):
    model = trained(MODELS["dense, gru, flatten"], speech)
    parity = dqat.verify(model, dqat.export_tflite(model, tmp_path / "model.tflite").path, speech[1][0][:40, -FRAMES:])
    found = {layer.name: layer for layer in parity.layers}
    (gru,) = (layer.name for layer in model.layers if layer.name.startswith("gru"))
    assert {"speech_quantizer", f"{gru}/recurrent_product", f"{gru}/hidden", "speaker/output"} <= found.keys()
    assert {layer.reference_equal for layer in parity.layers} == {1.0}
    # There is rounding to be told from a fault.
    assert min(layer.own_equal for layer in parity.layers) < 1.0


def test_one_wrong_weight_is_a_wrong_export_though_hardly_a_value_moves(speech, gru, tmp_path):
    path, samples = dqat.export_tflite(gru, tmp_path / "model.tflite").path, speech[1][0][:40, -FRAMES:]

    def kernel(flatbuffer):
        operators = [one for one in flatbuffer.graph.operators if flatbuffer.operator_name(one) == "FULLY_CONNECTED"]
        sizes = {int(one.inputs[1]): flatbuffer.constant(one.inputs[1]).shape for one in operators}
        return next(index for index, shape in sizes.items() if shape == (24, 8))  # the recurrent one

    wrong = with_one_weight_changed(path, tmp_path / "wrong.tflite", kernel)
    parity = dqat.verify(gru, wrong, samples)
    layer = parity.first_apart
    assert layer.name.startswith("gru") and layer.cause == "export"
    assert 0.5 < layer.reference_equal < 1.0
    assert layer.explanation.startswith("a wrong export: the integer reference, from the file's inputs, gives")
    (right,) = (one for one in dqat.verify(gru, path, samples).layers if one.name == layer.name)
    assert (right.cause, right.parts) == ("rounding", False)
    assert right.explanation == "rounding in the simulation: the integer reference gives all of the file's values"


def test_a_swapped_gate_is_called_a_wrong_export_by_command_and_reports(speech, tmp_path):
    model = trained(MODELS["lstm"], speech)
    path = dqat.export_tflite(model, tmp_path / "model.tflite").path
    flatbuffer = Flatbuffer(path.read_bytes())
    inputs = flatbuffer.lstms()[0].inputs
    first, second = LstmTensors.INPUT_WEIGHTS[1:3]
    inputs[first], inputs[second] = inputs[second], inputs[first]
    path.write_bytes(checksum.seal(flatbuffer))
    samples = speech[1][0][:20, -FRAMES:]
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "samples.npy", samples)
    arguments = ["verify", *(str(tmp_path / name) for name in ("model.keras", "model.tflite", "samples.npy"))]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 1
    assert "a wrong export: the integer reference" in " ".join(found.stdout.split())
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    (layer,) = (layer for layer in told["layers"] if layer["name"] == told["first_apart"])
    assert layer["cause"] == "export" and layer["reference_equal"] < 0.9
    report = Report.of(model, path, dqat.verify(model, path, samples), samples, seconds=0.01)
    assert all("a wrong export: the integer reference" in page for page in (report.html(), report.markdown()))


def test_what_has_no_reference_says_nothing(speech, tmp_path):
    x = speech[0][0][:20, -FRAMES:]
    stacked_cells = cell(lambda: layers.StackedRNNCells([layers.GRUCell(4), layers.LSTMCell(4)]))
    for build, scheme in ((stacked_cells, "int8"), (lstm(), "w8a16")):
        model = dqat.quantize_model(build(), scheme=scheme)
        model(x, training=True)
        parity = dqat.verify(model, dqat.export_tflite(model, tmp_path / "model.tflite").path, x)
        causes = {layer.name: layer.cause for layer in parity.layers}
        assert causes["speech_quantizer"] == ("rounding" if scheme == "int8" else None)
        assert all(cause is None for path, cause in causes.items() if path.startswith("recurrent"))
        assert all(layer.explanation == "" for layer in parity.layers if layer.cause is None)


def test_other_bits_are_refused_by_the_integer_simulation(speech):
    model = dqat.quantize_model(speech_model((4,)), scheme="w8a16")
    model(speech[0][0][:4], training=True)
    with pytest.raises(ValueError, match="speech_quantizer has 16 bits: integer references have 8"):
        dqat.simulate(model, speech[0][0][:4])


def test_a_shared_layer_has_no_reference_and_hides_none(speech, tmp_path):
    inputs = keras.Input((FRAMES, 12), name="speech")
    shared = layers.Dense(6, name="shared")
    first, second = shared(inputs), shared(layers.ReLU(name="relu")(inputs))
    outputs = layers.Dense(9, name="speaker")(layers.Flatten()(layers.Add()([first, second])))
    model = dqat.quantize_model(keras.Model(inputs, outputs))
    x = speech[0][0][:20, -FRAMES:]
    model(x, training=True)
    parity = dqat.verify(model, dqat.export_tflite(model, tmp_path / "model.tflite").path, x)
    causes = {layer.name: layer.cause for layer in parity.layers}
    assert causes["speech_quantizer"] == "rounding" and causes["shared/output"] is None
