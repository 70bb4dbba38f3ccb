"""One seed of an image task: see accuracy.py.

Networks that two cores train in minutes: MobileNets with a part of their channels, and ResNet-20 with half of its
channels, on the first 10,000 training images of Fashion-MNIST at 32x32 pixels; all 10,000 test images.
"""

import json
import pathlib
from dataclasses import dataclass, replace
from typing import Any

import images
import numpy as np
import tensorflow as tf
import train_image
from train_image import Options

import dqat
from benchmarks import post_training, tfmot
from dqat.specs import Scheme

keras = tf.keras
CASES = {
    "fashion/mobilenet": Options("MobileNet", 0.25, float_epochs=6, qat_epochs=1),
    "fashion/mobilenet_v2": Options("MobileNetV2", 0.35, float_epochs=6, qat_epochs=1),
    "fashion/resnet20": Options("ResNet20", 0.5, float_epochs=3, qat_epochs=1),
}
SAMPLES = 10_000
#: Samples from which the converter takes ranges in post-training quantization.
CALIBRATION = 200


def four_bit_weights() -> Scheme:
    """int8, but for all weights, which have 4 bits; first and last layer included."""
    return Scheme.with_bits(weights=4)


@dataclass(frozen=True)
class Task:
    """What all contenders of one case and seed have in common.

    Attributes:
        options: the recipe.
        seed: of weights and of the samples' order.
        data: with the training samples alone that are used.
        held_out: batches of the test set.
        labels: of the test set.
        path: where files go, without suffix.
        model: the trained float network.
    """

    options: Options
    seed: int
    data: images.Images
    held_out: tf.data.Dataset
    labels: np.ndarray
    path: str
    model: keras.Model

    def accuracy(self, logits: np.ndarray) -> float:
        """Share of right answers on the test set."""
        return train_image.accuracy(logits, self.labels)

    def test_images(self) -> np.ndarray:
        """All of them, as the network takes them."""
        return np.concatenate([batch.numpy() for batch, _ in self.held_out])

    def train_further(self, model: keras.Model) -> None:
        """See `train_image.train_further`."""
        train_image.train_further(model, self.options, self.data, dqat.distribute.Strategy("none"), self.seed)


def in_float(task: Task) -> dict[str, Any]:
    """The float network itself."""
    return {"metric": "accuracy", "float": task.accuracy(train_image.logits_of(task.model, task.held_out))}


def by_dqat(task: Task) -> dict[str, Any]:
    """int8: the simulation and the file."""
    quantized = dqat.quantize_model(task.model)
    task.train_further(quantized)
    dqat.export_tflite(quantized, f"{task.path}.tflite")
    parity = dqat.verify(quantized, f"{task.path}.tflite", task.held_out)
    return {
        "simulation": task.accuracy(parity.simulation),
        "int8": task.accuracy(parity.integer),
        "within_1_lsb": parity.within_1_lsb,
        "max_lsb": parity.max_lsb,
        "same_class": parity.same_class,
    }


def with_four_bits(task: Task) -> dict[str, Any]:
    """4-bit weights, in simulation."""
    narrow = dqat.quantize_model(task.model, scheme=four_bit_weights())
    task.train_further(narrow)
    return {"int4_simulation": task.accuracy(train_image.logits_of(narrow, task.held_out))}


def after_training(task: Task) -> dict[str, Any]:
    """Post-training quantization of the float network."""
    batches = train_image.training_set(task.data, task.options, task.seed).unbatch().take(CALIBRATION)
    calibration, file = np.stack([image.numpy() for image, _ in batches]), f"{task.path}_post_training.tflite"
    post_training.convert(f"{task.path}.keras", calibration, file)
    return {"post_training": task.accuracy(post_training.outputs(file, task.test_images()))}


def by_tfmot(task: Task) -> dict[str, Any]:
    """tfmot's quantization-aware training, as long as ours, and its int8 file."""
    file = f"{task.path}_tfmot.tflite"
    batches = train_image.training_set(task.data, task.options, task.seed)
    tfmot.train_and_convert(task.model, task.options.rate / 10, task.options.qat_epochs, batches, file)
    return {"tfmot": task.accuracy(post_training.outputs(file, task.test_images()))}


def run(case: str, seed: int, data: pathlib.Path, out: pathlib.Path) -> dict[str, Any]:
    """Trains with launch/train_image.py's recipe and gives the figures of all contenders.

    The float network and the figures that are known are kept in `out`: a run that was interrupted goes on from there.
    """
    options = replace(CASES[case], out=out)
    found = images.find(str(data / "FashionMNIST")).first(SAMPLES)
    held_out = train_image.test_set(found, options)
    path = str(out / f"{case.replace('/', '_')}_{seed}")
    kept, known = pathlib.Path(f"{path}.keras"), pathlib.Path(f"{path}.json")
    if kept.exists():
        model = keras.models.load_model(kept, compile=False)
    else:
        model = train_image.train_float(options, found, dqat.distribute.Strategy("none"), seed)
        model.save(kept)
    task = Task(options, seed, found, held_out, train_image.labels_of(held_out), path, model)
    done = json.loads(known.read_text()) if known.exists() else {}
    for contender in (in_float, by_dqat, with_four_bits, after_training, by_tfmot):
        if contender.__name__ not in done:
            done[contender.__name__] = contender(task)
            known.write_text(json.dumps(done))
    return {name: figure for figures in done.values() for name, figure in figures.items()}
