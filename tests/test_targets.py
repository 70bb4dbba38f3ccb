import importlib.resources
import pathlib
import tomllib

import pytest
import tensorflow as tf

import dqat
from dqat.export.inspection import inspect_tflite
from dqat.export.targets import TARGETS, fallbacks
from dqat.export.targets.conditions import CONDITIONS
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


def test_peepholes_are_told_for_a_microcontroller(tmp_path):
    tfa = pytest.importorskip("tensorflow_addons")
    inputs = keras.Input((5, 4))
    model = dqat.quantize_model(keras.Model(inputs, keras.layers.RNN(tfa.rnn.PeepholeLSTMCell(3))(inputs)))
    for _ in range(2):
        model(tf.random.stateless_normal([4, 5, 4], [1, 2]), training=True)
    report = dqat.export_tflite(model, tmp_path / "model.tflite", target="microcontroller")
    (fallback,) = report.fallbacks
    assert fallback.certain and fallback.reason.endswith("takes it with no peepholes")


def test_conditions_that_are_not_checked_are_told(trained, tmp_path):
    report = dqat.export_tflite(trained, pathlib.Path(tmp_path / "model.tflite"), target="edgetpu")
    assert [(fallback.operator, fallback.certain) for fallback in report.fallbacks] == [
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", False)
    ]


def exported(tmp_path, outputs_of, shape=(8, 8, 4)):
    """The file of a small model with random weights."""
    inputs = keras.Input(shape)
    model = dqat.quantize_model(keras.Model(inputs, outputs_of(inputs)))
    model(tf.random.stateless_normal([4, *shape], [1, 2]), training=True)
    return inspect_tflite(dqat.export_tflite(model, tmp_path / "model.tflite").path)


def test_conditions_that_a_file_shows_are_checked(tmp_path):
    def network(x, dilation, classes, axis):
        x = keras.layers.Conv2D(6, 3, padding="same", dilation_rate=dilation)(x)
        x = keras.layers.Concatenate(axis)([x, keras.layers.MaxPooling2D(1)(x)])
        x = keras.layers.Conv2D(classes, 1)(keras.layers.GlobalAveragePooling2D(keepdims=True)(x))
        return keras.layers.Softmax()(keras.layers.Reshape((classes,))(x))

    fine = exported(tmp_path, lambda x: network(x, 2, 9, 1))
    found = {fallback.operator: fallback for fallback in fallbacks(fine, "edgetpu")}
    assert not {"CONV_2D", "CONCATENATION", "SOFTMAX"} & found.keys()
    assert not any(fallback.certain for fallback in found.values())
    other = exported(tmp_path, lambda x: network(x, (1, 2), 16_001, 1))
    found = {fallback.operator: fallback for fallback in fallbacks(other, "edgetpu") if fallback.certain}
    assert {"CONV_2D", "SOFTMAX"} <= found.keys()
    assert found["CONV_2D"].places == (0,)
    assert found["CONV_2D"].reason == "Coral Edge TPU takes it with the same dilation in x and y"


def test_every_check_of_the_data_files_is_known():
    for target in TARGETS[1:]:
        text = importlib.resources.files("dqat.export.targets").joinpath(f"{target}.toml").read_text()
        for entry in tomllib.loads(text)["operators"].values():
            assert set(entry.get("checks", ())) <= CONDITIONS.keys()
            assert "limit" in entry or "checks" not in entry


def test_an_unknown_target_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match="target must be one of tflite, edgetpu, nnapi, microcontroller, got 'dsp'"):
        dqat.export_tflite(trained, tmp_path / "model.tflite", target="dsp")
