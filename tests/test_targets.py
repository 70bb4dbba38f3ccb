import pathlib

import pytest
import tensorflow as tf

import dqat
from dqat.export.inspection import inspect_tflite
from dqat.export.targets import TARGETS, fallbacks
from dqat.keras_api import keras


def test_a_float_file_falls_back_on_every_target_but_the_interpreter(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    path = tmp_path / "float.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    file = inspect_tflite(path)
    assert fallbacks(file, "tflite") == ()
    for target in TARGETS[1:]:
        (fallback,) = fallbacks(file, target)
        assert (fallback.operator, fallback.places, fallback.certain) == ("FULLY_CONNECTED", (0,), True)
        assert "FLOAT32" in str(fallback)


def test_an_operator_that_the_target_lacks_comes_with_what_to_change(tmp_path):
    inputs = keras.Input((4,), batch_size=1)
    model = keras.Model(inputs, tf.nn.leaky_relu(inputs))
    path = tmp_path / "float.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    (fallback,) = fallbacks(inspect_tflite(path), "edgetpu")
    assert "has no such operator (https://coral.ai" in str(fallback)
    assert fallback.way_out.startswith("use PReLU")


def test_an_exported_lstm_runs_on_a_microcontroller(trained, tmp_path):
    report = dqat.export_tflite(trained, tmp_path / "model.tflite", target="microcontroller")
    assert report.fallbacks == ()


def test_conditions_that_are_not_checked_are_told(trained, tmp_path):
    report = dqat.export_tflite(trained, pathlib.Path(tmp_path / "model.tflite"), target="edgetpu")
    assert [(fallback.operator, fallback.certain) for fallback in report.fallbacks] == [
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", False),
        ("STRIDED_SLICE", False),
        ("FULLY_CONNECTED", False),
    ]


def test_an_unknown_target_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match="target must be one of tflite, edgetpu, nnapi, microcontroller, got 'dsp'"):
        dqat.export_tflite(trained, tmp_path / "model.tflite", target="dsp")
