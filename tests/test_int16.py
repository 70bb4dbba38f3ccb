"""Int16 activations with int8 weights (16x8): trained as such, exported, and the same in TFLite's kernels."""

import os

import numpy as np
import pytest
import tensorflow as tf
from conftest import compiled, speech_model
from layer_table import ROWS
from recurrent_models import FRAMES, FUSED, UNROLLED
from typer.testing import CliRunner

import dqat
from dqat.cli import app
from dqat.export import checksum
from dqat.export.flatbuffer import Flatbuffer
from dqat.keras_api import keras
from dqat.model import named_quantizers

#: Rows whose operator has no int16 kernel.
INT8_ONLY = {
    "Conv2D, elu": "ELU",
    "ELU": "ELU",
    "GELU": "GELU",
    "PReLU": "PRELU",
    "hard-swish": "HARD_SWISH",
    "RepeatVector": "TILE",
    "UnitNormalization": "L2_NORMALIZATION",
}
RECURRENT = {**FUSED, **UNROLLED}
ALL = [name for name in (*ROWS, *RECURRENT) if name not in INT8_ONLY]
#: One of each kind of operator; all with HYPOTHESIS_PROFILE=nightly.
SOME = (
    *("Dense, BatchNormalization", "SeparableConv1D", "Conv2DTranspose", "Conv3D, strides", "LayerNormalization"),
    *("MultiHeadAttention", "mish", "sigmoid", "Average", "Embedding", "Concatenate", "QuantizePoint"),
    *("AveragePooling2D", "GlobalAveragePooling2D", "UpSampling2D, bilinear", "shared layer", "lstm, stacked", "gru"),
)


@pytest.mark.parametrize("name", ALL if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else SOME)
def test_every_layer_is_exported_as_it_was_simulated(name, speech, tmp_path):
    if name in ROWS:
        model, samples = ROWS[name].model(), ROWS[name].samples(24)
    else:
        model, samples = RECURRENT[name](), [speech[0][0][:24, :FRAMES]]
    samples = samples if len(samples) > 1 else samples[0]
    model = dqat.quantize_model(model, scheme="w8a16")
    for _ in range(2):
        model(samples, training=True)
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    assert all(zero_point == 0 for _, zero_point in report.parameters.values())
    parity = dqat.verify(model, report.path, samples)
    assert parity.first_apart is None
    assert len(np.unique(parity.integer)) > 5
    # In int8, a step is 256 times as large.
    assert parity.max_lsb <= 128


@pytest.mark.parametrize("name", INT8_ONLY)
def test_a_layer_without_a_kernel_is_refused_with_its_operator(name):
    with pytest.raises(dqat.UnsupportedLayerError, match=f"operator {INT8_ONLY[name]} has no kernel for int16"):
        dqat.quantize_model(ROWS[name].model(), scheme="w8a16")


@pytest.fixture(scope="module")
def finer(speech, float_trained):
    """An LSTM that was trained in 16x8. Do not change it."""
    keras.utils.set_random_seed(0)
    model = compiled(dqat.quantize_model(float_trained, scheme="w8a16"), 5e-4)
    model.fit(*speech[0], batch_size=30, epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def finer_file(finer, tmp_path_factory):
    return dqat.export_tflite(finer, tmp_path_factory.mktemp("int16") / "model.tflite")


def test_a_trained_lstm_has_int16_tensors_int8_weights_and_int64_biases(finer, finer_file):
    flatbuffer = Flatbuffer(finer_file.path.read_bytes())
    assert flatbuffer.float_tensors() == []
    for operator in flatbuffer.graph.operators:
        if flatbuffer.operator_name(operator) == "FULLY_CONNECTED":
            types = [flatbuffer.type_name(flatbuffer.tensor(index).type) for index in operator.inputs if index >= 0]
            assert types == ["INT16", "INT8", "INT64"][: len(types)]
    interpreter = tf.lite.Interpreter(str(finer_file.path))
    (entry,), (end,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert entry["dtype"] == end["dtype"] == np.int16
    scales = dict(named_quantizers(finer))
    for details, path in ((entry, "speech_quantizer"), (end, "speaker/output")):
        assert details["quantization"] == finer_file.parameters[path]
        assert finer_file.parameters[path][0] == pytest.approx(float(scales[path].range()[1]) / 32767, rel=1e-6)


def test_the_file_of_a_trained_lstm_is_its_simulation_layer_by_layer(speech, float_trained, finer, finer_file):
    samples, labels = (part[:120] for part in speech[1])
    parity = dqat.verify(finer, finer_file.path, samples, labels=labels, float_model=float_trained)
    assert parity.first_apart is None and parity.same_class == 1.0
    assert parity.figures["int8"] == parity.figures["simulation"]
    assert min(layer.snr_db for layer in parity.layers) > 60  # int8 tensors reach 20 to 45


def test_float_ends_and_the_same_bytes(speech, finer, finer_file, tmp_path):
    again = dqat.export_tflite(finer, tmp_path / "again.tflite", io="int16")
    assert again.path.read_bytes() == finer_file.path.read_bytes()
    floats = dqat.export_tflite(finer, tmp_path / "float.tflite", io="float32")
    assert floats.operators == ("QUANTIZE", *finer_file.operators, "DEQUANTIZE")
    ours, inside = (dqat.verify(finer, one.path, speech[1][0][:20]).integer for one in (floats, finer_file))
    assert np.abs(ours - inside).max() < 3 * finer_file.parameters["speaker/output"][0]
    with pytest.raises(ValueError, match="io must be int16, as the activations were trained, or float32, got 'int8'"):
        dqat.export_tflite(finer, tmp_path / "no.tflite", io="int8")


def test_the_command_exports_and_verifies_it(speech, finer, finer_file, tmp_path):
    finer.save(tmp_path / "model.keras")
    np.save(tmp_path / "samples.npy", speech[1][0][:8])
    paths = [str(tmp_path / name) for name in ("model.keras", "model.tflite", "samples.npy")]
    for arguments in (["export", *paths[:2]], ["verify", *paths]):
        found = CliRunner().invoke(app, arguments)
        assert found.exit_code == 0, found.stderr
    assert (tmp_path / "model.tflite").read_bytes() == finer_file.path.read_bytes()


def test_a_range_cut_to_a_third_is_named_first(speech, finer, finer_file, tmp_path):
    flatbuffer = Flatbuffer(finer_file.path.read_bytes())
    ((_, index),) = dqat.inspect_tflite(finer_file.path).told["quantizers"]["relu/output"]["tensors"]["relu"]
    flatbuffer.set_scale(index, flatbuffer.parameters(index)[0] / 3)
    (tmp_path / "cut.tflite").write_bytes(checksum.seal(flatbuffer))
    parity = dqat.verify(finer, tmp_path / "cut.tflite", speech[1][0][:20])
    assert parity.first_apart.name == "relu/output"


def test_a_model_of_several_numbers_of_bits_has_no_file(tmp_path):
    model = dqat.quantize_model(speech_model((4,)), scheme="w4a16")
    model(np.ones((2, 29, 12), np.float32), training=True)
    with pytest.raises(dqat.ExportError, match='speaker/kernel .4 bits.*Train with scheme="int8" or "w8a16"'):
        dqat.export_tflite(model, tmp_path / "model.tflite")
