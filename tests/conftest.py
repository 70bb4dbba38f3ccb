"""Fixtures: one for one thing."""

import os
import pathlib
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
from hypothesis import settings

import dqat
from dqat.keras_api import keras

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "launch"))

settings.register_profile("ci", max_examples=1000, deadline=None)
settings.register_profile("nightly", max_examples=10_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def run_python():
    """Runs Python with the given arguments in a process of its own; fails with its output if it fails."""

    def run(*arguments: str) -> str:
        result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.fixture(scope="session")
def speech():
    """Real speech: ((samples, speakers) for training, the same for testing)."""
    from datasets import japanese_vowels

    return japanese_vowels(ROOT / "data" / "JapaneseVowels")


def speech_model(units=(24,), dense=9):
    inputs = outputs = keras.Input((29, 12), name="speech")
    for index, size in enumerate(units):
        outputs = keras.layers.LSTM(size, return_sequences=index < len(units) - 1, name=f"lstm_{index}")(outputs)
        outputs = keras.layers.Dropout(0.1, name=f"dropout_{index}")(outputs)
    outputs = keras.layers.Dense(16, name="features")(outputs)
    outputs = keras.layers.Activation("relu", name="relu")(outputs)
    return keras.Model(inputs, keras.layers.Dense(dense, name="speaker")(outputs))


def compiled(model, learning_rate=3e-3):
    model.compile(
        keras.optimizers.Adam(learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


@pytest.fixture(scope="session")
def digits():
    """Real handwritten digits, float32 [samples, 28, 28, 1], and what they are: 4,000 for training, 1,000 others."""
    from fetch_data import fetch

    table = np.loadtxt(fetch("Digits", ROOT / "data") / "mnist_5k.csv.gz", np.float32, delimiter=",")
    table = table[np.random.default_rng(0).permutation(len(table))]
    images, labels = table[:, :-1].reshape(-1, 28, 28, 1) / 127.5 - 1.0, table[:, -1].astype(np.int32)
    return (images[:4000], labels[:4000]), (images[4000:], labels[4000:])


def image_network(norm=True):
    """Depthwise separable convolutions, whose channels differ enough for few bits to hurt."""

    def after(name):
        norms = [keras.layers.BatchNormalization(momentum=0.9, name=f"norm_{name}")] if norm else []
        return [*norms, keras.layers.ReLU(name=f"relu_{name}")]

    stack = [keras.Input((28, 28, 1)), keras.layers.Conv2D(12, 3, strides=2, activation="relu", name="first")]
    for index, (filters, strides) in enumerate(((24, 1), (32, 2))):
        stack += [keras.layers.DepthwiseConv2D(3, strides=strides, use_bias=not norm, name=f"depthwise_{index}")]
        stack += after(f"{index}a")
        stack += [keras.layers.Conv2D(filters, 1, use_bias=not norm, name=f"pointwise_{index}"), *after(f"{index}b")]
    return keras.Sequential([*stack, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, name="last")])


@pytest.fixture(scope="session")
def digit_network(digits):
    """A small convolutional network, trained in float on real digits. Do not change it."""
    keras.utils.set_random_seed(0)
    model = compiled(image_network(), 1e-2)
    model.fit(*digits[0], batch_size=64, epochs=6, verbose=0)
    return model


@pytest.fixture(scope="session")
def float_trained(speech):
    """A small LSTM, trained in float on real speech. Do not change it."""
    keras.utils.set_random_seed(0)
    model = compiled(speech_model())
    model.fit(*speech[0], batch_size=30, epochs=15, verbose=0)
    return model


@pytest.fixture(scope="session")
def trained(speech):
    """A stacked LSTM, trained in float and then quantization-aware on real speech. Do not change it."""
    keras.utils.set_random_seed(0)
    model = compiled(speech_model((32, 24)))
    model.fit(*speech[0], batch_size=30, epochs=15, verbose=0)
    quantized = compiled(dqat.quantize_model(model), 5e-4)
    quantized.fit(*speech[0], batch_size=30, epochs=4, verbose=0)
    return quantized


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    """The trained model's report and file."""
    path = tmp_path_factory.mktemp("export") / "speaker.tflite"
    return dqat.export_tflite(trained, path)
