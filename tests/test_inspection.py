import shutil

import numpy as np
import pytest
import tensorflow as tf

import dqat
from dqat.export import checksum
from dqat.export.flatbuffer import Flatbuffer
from dqat.export.inspection import TfliteFileError, compare_tflite, inspect_tflite
from dqat.keras_api import keras


def test_a_file_is_described_operator_by_operator(exported):
    found = inspect_tflite(exported.path)
    assert found.size == exported.size
    assert found.operators["UNIDIRECTIONAL_SEQUENCE_LSTM"] == 2
    assert found.float_islands == []
    (graph,) = found.subgraphs
    lstm = graph.operators[0]
    assert graph.tensors[lstm.inputs[0]].kind == "input"
    assert graph.tensors[lstm.inputs[0]].scales == pytest.approx([exported.parameters["speech_quantizer"][0]], rel=0)
    assert graph.tensors[lstm.inputs[18]].kind == "variable"
    assert graph.tensors[lstm.outputs[0]].shape == (1, 29, 32)


def test_float_islands_are_listed(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    path = tmp_path / "float.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    assert inspect_tflite(path).float_islands == [["FULLY_CONNECTED"]]


def test_a_file_does_not_differ_from_its_copy(exported, tmp_path):
    copy = shutil.copy(exported.path, tmp_path / "copy.tflite")
    assert compare_tflite(exported.path, copy) == []


def test_comparison_names_the_operator_whose_scale_and_weight_differ(exported, tmp_path):
    flatbuffer = Flatbuffer(exported.path.read_bytes())
    place, dense = next(
        (place, operator)
        for place, operator in enumerate(flatbuffer.graph.operators)
        if flatbuffer.operator_name(operator) == "FULLY_CONNECTED"
    )
    flatbuffer.set_scale(dense.outputs[0], 0.5)
    weights = flatbuffer.model.buffers[flatbuffer.tensor(dense.inputs[1]).buffer]
    weights.data = np.array(weights.data, np.uint8)
    weights.data[3] ^= 1
    path = tmp_path / "other.tflite"
    path.write_bytes(checksum.seal(flatbuffer))
    found = {difference.where for difference in compare_tflite(exported.path, path)}
    prefix = f"operator {place} (FULLY_CONNECTED)"
    consumer = {where for where in found if where.endswith("input 0, scales")}
    assert found - consumer == {f"{prefix}, input 1, constant", f"{prefix}, output 0, scales"}


def test_one_flipped_bit_anywhere_in_an_exported_file_is_found(exported, tmp_path, rng):
    content = exported.path.read_bytes()
    for place in rng.integers(8, len(content), 200):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        path = tmp_path / "flipped.tflite"
        path.write_bytes(damaged)
        with pytest.raises(TfliteFileError, match="damaged"):
            inspect_tflite(path)


def test_parity_of_a_damaged_file_is_refused(trained, exported, tmp_path):
    path = tmp_path / "half.tflite"
    path.write_bytes(exported.path.read_bytes()[:4000])
    with pytest.raises(TfliteFileError, match="half.tflite is damaged"):
        dqat.verify(trained, path, np.zeros([1, 29, 12], np.float32))
