"""One seed of an image task: see accuracy.py.

Networks that two cores train in minutes: MobileNets with a part of their channels, and ResNet-20 with half of its
channels, on the first 10,000 training images of Fashion-MNIST at 32x32 pixels; all 10,000 test images.
"""

import pathlib
from dataclasses import replace
from typing import Any

import images
import numpy as np
import train_image
from train_image import Options

import dqat
from benchmarks import post_training, tfmot_training
from dqat.specs import Scheme

CASES = {
    "fashion/mobilenet": Options("MobileNet", 0.25),
    "fashion/mobilenet_v2": Options("MobileNetV2", 0.35),
    "fashion/resnet20": Options("ResNet20", 0.5),
}
SAMPLES, FLOAT_EPOCHS, QAT_EPOCHS = 10_000, 6, 1
#: Samples from which the converter takes ranges in post-training quantization.
CALIBRATION = 200


def four_bit_weights() -> Scheme:
    """int8, but for all weights, which have 4 bits; first and last layer included."""
    return Scheme.with_bits(weights=4)


def run(case: str, seed: int, data: pathlib.Path, out: pathlib.Path) -> dict[str, Any]:
    """Trains with launch/train_image.py's recipe and gives the figures of all contenders."""
    options = replace(CASES[case], float_epochs=FLOAT_EPOCHS, qat_epochs=QAT_EPOCHS, out=out)
    found = images.find(str(data / "FashionMNIST")).first(SAMPLES)
    held_out = train_image.test_set(found, options)
    labels = train_image.labels_of(held_out)
    path = str(out / f"{case.replace('/', '_')}_{seed}")

    strategy = dqat.distribute.Strategy("none")
    model = train_image.train_float(options, found, strategy, seed)
    figures: dict[str, Any] = {
        "metric": "accuracy",
        "float": train_image.accuracy(train_image.logits_of(model, held_out), labels),
    }

    quantized = dqat.quantize_model(model)
    train_image.train_further(quantized, options, found, strategy, seed)
    dqat.export_tflite(quantized, f"{path}.tflite")
    parity = dqat.verify(quantized, f"{path}.tflite", held_out)
    figures |= {
        "simulation": train_image.accuracy(parity.simulation, labels),
        "int8": train_image.accuracy(parity.integer, labels),
        "within_1_lsb": parity.within_1_lsb,
        "max_lsb": parity.max_lsb,
        "same_class": parity.same_class,
    }

    narrow = dqat.quantize_model(model, scheme=four_bit_weights())
    train_image.train_further(narrow, options, found, strategy, seed)
    figures["int4_simulation"] = train_image.accuracy(train_image.logits_of(narrow, held_out), labels)

    samples = np.concatenate([batch.numpy() for batch, _ in held_out])
    model.save(f"{path}.keras")
    shuffled = train_image.training_set(found, options, seed).unbatch().take(CALIBRATION)
    calibration = np.stack([image.numpy() for image, _ in shuffled])
    file = f"{path}_post_training.tflite"
    post_training.convert(f"{path}.keras", calibration, file)
    figures["post_training"] = train_image.accuracy(post_training.outputs(file, samples), labels)

    file = f"{path}_tfmot.tflite"
    tfmot_training.train_and_convert(
        model.get_weights(), options, found.classes, train_image.training_set(found, options, seed), file
    )
    figures["tfmot"] = train_image.accuracy(post_training.outputs(file, samples), labels)
    return figures
