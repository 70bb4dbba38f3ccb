"""A model that is saved, loaded and trained on is, to the bit, the model that was trained on without that."""

import importlib.util

import numpy as np
import pytest
import tensorflow as tf
from test_subclassed import ResidualNetwork

import dqat
from dqat.keras_api import keras

layers = keras.layers


def images(rng):
    return rng.normal(size=(24, 10, 10, 2)).astype(np.float32), rng.normal(size=(24, 9)).astype(np.float32)


def functional():
    inputs = keras.Input((10, 10, 2))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs)))
    x = layers.Concatenate()([x, layers.SeparableConv2D(3, 3, padding="same")(x)])
    x = layers.LSTM(5)(layers.Reshape((8, 56))(x))
    return keras.Model(inputs, layers.Dense(9)(x) * 0.5)


def subclassed():
    model = ResidualNetwork(blocks=1)
    model.build((None, 10, 10, 2))
    return model


#: Keras restores no optimizer from a SavedModel: one without state goes on from there to the bit.
FORMATS = {
    "model.keras": keras.optimizers.Adam,
    "model.h5": keras.optimizers.Adam,
    "saved_model": keras.optimizers.SGD,
}


@pytest.mark.parametrize("make", [functional, subclassed])
@pytest.mark.parametrize("name", FORMATS)
def test_training_on_after_saving_gives_the_same_bits(make, name, rng, tmp_path):
    keras.utils.set_random_seed(0)
    model = dqat.quantize_model(make())
    model.compile(FORMATS[name](1e-2), "mse")
    samples, targets = images(rng)
    model.fit(samples[:12], targets[:12], batch_size=4, shuffle=False, verbose=0)
    model.save(tmp_path / name, **({} if "." in name else {"save_format": "tf"}))
    with dqat.quantize_scope():
        loaded = keras.models.load_model(tmp_path / name)
    for one in (model, loaded):
        one.fit(samples[12:], targets[12:], batch_size=4, shuffle=False, verbose=0)
    for weight, other in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(weight, other, err_msg=weight.name)
    found = dqat.ranges(loaded)
    for path, range_ in dqat.ranges(model).items():
        np.testing.assert_array_equal(range_, found[path], err_msg=path)
    np.testing.assert_array_equal(loaded.predict(samples, verbose=0), model.predict(samples, verbose=0))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains_in_halves_and_is_exported_in_integers(policy, rng, tmp_path):
    samples, targets = images(rng)
    keras.mixed_precision.set_global_policy(policy)
    try:
        float_model = functional()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    model = dqat.quantize_model(float_model)
    half = tf.as_dtype(policy.removeprefix("mixed_"))
    assert {one.layer.compute_dtype for one in model.layers if getattr(one, "layer", None) is not None} >= {half.name}
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.fit(samples, targets, epochs=3, verbose=0)
    assert all(weight.dtype != half for weight in model.weights)
    assert all(np.isfinite(low).all() and np.isfinite(high).all() for low, high in dqat.ranges(model).values())
    dqat.export_tflite(model, tmp_path / "model.tflite")
    assert dqat.verify(model, tmp_path / "model.tflite", samples).within_1_lsb > 0.95
    before = model.predict(samples, verbose=0)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras").predict(samples, verbose=0), before)


TF_KERAS = """
import sys
import numpy as np
import tf_keras
import dqat
model = tf_keras.Sequential([tf_keras.Input((6,)), tf_keras.layers.Dense(5, "relu"), tf_keras.layers.Dense(3)])
samples = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
quantized = dqat.quantize_model(model)
assert isinstance(quantized, tf_keras.Model)
quantized.compile("adam", "mse")
quantized.fit(samples, np.ones((32, 3)), verbose=0)
dqat.export_tflite(quantized, sys.argv[1])
assert dqat.verify(quantized, sys.argv[1], samples).within_1_lsb == 1.0
"""


def test_models_of_tf_keras_are_quantized_where_tf_keras_is_the_keras(run_python, tmp_path, monkeypatch):
    if importlib.util.find_spec("tf_keras") is None:  # importing it would make it this process's tf.keras
        pytest.skip("tf_keras is not installed")
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    run_python("-c", TF_KERAS, str(tmp_path / "model.tflite"))
