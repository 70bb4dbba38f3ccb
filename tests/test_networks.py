"""The networks of keras.applications are quantized, trained and exported; all nine with HYPOTHESIS_PROFILE=nightly."""

import os

import numpy as np
import pytest

import dqat
from benchmarks import networks
from dqat.keras_api import keras

#: By name, options that keep the test small, and the images' size.
SMALL = {"MobileNetV2": ({"alpha": 0.35}, 32), "ResNet50": ({}, 32)}
WHOLE = dict.fromkeys(networks.NETWORKS, ({}, 96))
TESTED = WHOLE if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else SMALL


@pytest.mark.parametrize("name", TESTED)
def test_a_network_is_trained_and_exported_in_integers(name, tmp_path):
    options, size = TESTED[name]
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None, **options
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5  # a few steps are enough for the statistics
    quantized = dqat.quantize_model(model)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 64)
    images = rng.normal(size=(64, size, size, 3)) + labels[:, None, None, None] - 4.5
    quantized.compile(keras.optimizers.SGD(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = quantized.fit(images, labels, batch_size=16, epochs=5, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    report = dqat.export_tflite(quantized, tmp_path / "model.tflite")
    assert model.count_params() * 4 / report.size > 2  # a narrow network has many operators for its weights
