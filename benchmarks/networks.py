"""The networks of keras.applications, each the whole way: quantized, trained on two replicas, exported, verified.

python -m benchmarks.networks [--json FILE] [--network NAME ...]

Weights start at random and are trained on Fashion-MNIST in float first, since a network that has learned nothing
amplifies rounding. The quantization-aware steps run under MirroredStrategy on two logical CPUs.
"""

import pathlib
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import tensorflow as tf
import typer
from rich.console import Console
from rich.table import Table

import dqat
from benchmarks import models, report
from benchmarks.ops import machine
from benchmarks.timing import take_turns

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "launch"))  # data and networks are those of the scripts that users start

import images  # noqa: E402
import networks  # noqa: E402

keras = tf.keras
NETWORKS = (
    "MobileNet",
    "MobileNetV2",
    "ResNet50",
    "ResNet50V2",
    "NASNetMobile",
    "EfficientNetB0",
    "MobileNetV3Small",
    "InceptionV3",
    "DenseNet121",
)
#: Pixels under which keras.applications refuses to build a network.
LEAST_SIZE = {"InceptionV3": 75}
QAT_STEPS, BATCH = 20, 32


@dataclass(frozen=True)
class Options:
    """What the command line says; see `main`."""

    size: int
    float_steps: int
    samples: int
    seconds: float


@dataclass(frozen=True)
class Figures:
    """What one network gave; shares are 0 to 1.

    Attributes:
        network: its name.
        size: of its images, in pixels.
        layers: of the quantized model.
        tensors: quantized ones.
        float_layers: layers that stay in float in the file.
        step_ratio: time of a training step over float's, one process.
        size_ratio: bytes of the float weights over the file's.
        equal: share of logits with the same integer in simulation and file.
        within_1_lsb: share at most one apart.
        max_lsb: largest difference.
        same_class: share of images with the same predicted class.
        simulation: accuracy of the simulation.
        integer: accuracy of the file.
    """

    network: str
    size: int
    layers: int
    tensors: int
    float_layers: int
    step_ratio: float
    size_ratio: float
    equal: float
    within_1_lsb: float
    max_lsb: int
    same_class: float
    simulation: float
    integer: float


def two_logical_cpus() -> None:
    """Makes two devices of the CPU, before anything runs on it."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def _compile(model: keras.Model, strategy: dqat.distribute.Strategy, rate: float) -> None:
    model.compile(
        strategy.optimizer(keras.optimizers.Adam(rate)), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )


def measure(name: str, data: images.Images, options: Options) -> Figures:
    """Trains, exports and verifies one network.

    Args:
        name: in keras.applications.
        data: what it learns.
        options: see there.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    size = max(options.size, LEAST_SIZE.get(name, 0))
    model = networks.build(name, size=size, classes=data.classes)
    dataset = data.batches(size, BATCH, networks.preprocessing(name), seed=0)
    alone = dqat.distribute.Strategy("none")
    _compile(model, alone, 1e-3)
    model.fit(dataset.repeat(), steps_per_epoch=options.float_steps, verbose=0)

    strategy = dqat.distribute.Strategy("tf")
    assert strategy.size == 2, "the training steps are to run on two replicas"
    with strategy.scope():
        quantized = dqat.quantize_model(model)
        _compile(quantized, strategy, 1e-4)
    quantized.fit(**strategy.fit_data(dataset.take(QAT_STEPS)), callbacks=strategy.callbacks(), verbose=0)
    assert strategy.ranges_identical(quantized)

    held_out = data.batches(size, BATCH, networks.preprocessing(name), seed=None).unbatch().take(options.samples)
    labels = np.array([label.numpy() for _, label in held_out])
    with tempfile.TemporaryDirectory() as folder:
        file = dqat.export_tflite(quantized, pathlib.Path(folder, f"{name}.tflite"))
        islands = dqat.inspect_tflite(file.path).float_islands
        parity = dqat.verify(quantized, file.path, held_out.batch(BATCH))
    rows = dqat.coverage(quantized).rows
    steps = {"float": model, "dqat": dqat.quantize_model(model)}
    steps = {which: models.training_step(one, size, BATCH) for which, one in steps.items()}
    for step in steps.values():
        step()
    rounds = take_turns(steps, options.seconds)
    return Figures(
        network=name,
        size=size,
        layers=len(quantized.layers),
        tensors=sum(row.quantized for row in rows),
        float_layers=len(islands),
        step_ratio=1 / rounds.row(name, "training step", "dqat", "float")["ratio"],
        size_ratio=4 * model.count_params() / file.size,
        equal=parity.equal,
        within_1_lsb=parity.within_1_lsb,
        max_lsb=parity.max_lsb,
        same_class=parity.same_class,
        simulation=float((parity.simulation.argmax(-1) == labels).mean()),
        integer=float((parity.integer.argmax(-1) == labels).mean()),
    )


_COLUMNS: dict[str, Any] = {
    "pixels": lambda f: str(f.size),
    "quantized\ntensors": lambda f: str(f.tensors),
    "float\nislands": lambda f: str(f.float_layers),
    "step time\nover float": lambda f: f"{f.step_ratio:.2f}",
    "float / int8\nbytes": lambda f: f"{f.size_ratio:.2f}",
    "logits\nequal": lambda f: f"{f.equal:.1%}",
    "within\n1 LSB": lambda f: f"{f.within_1_lsb:.1%}",
    "largest\n(LSB)": lambda f: str(f.max_lsb),
    "same\nclass": lambda f: f"{f.same_class:.1%}",
    "accuracy:\nsimulation": lambda f: f"{f.simulation:.1%}",
    "accuracy:\nint8": lambda f: f"{f.integer:.1%}",
}


def show(found: list[Figures], options: Options) -> None:
    """The table."""
    table = Table(
        title=f"{options.float_steps} steps in float, {QAT_STEPS} quantization-aware on two replicas, batch {BATCH}; "
        f"{options.samples} test images"
    )
    table.add_column("network")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for figures in found:
        table.add_row(figures.network, *(cell(figures) for cell in _COLUMNS.values()))
    Console(width=140).print(table)


def main(
    json: Annotated[pathlib.Path | None, typer.Option(help="Write the figures here.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="Only these networks of keras.applications.")] = None,
    data: Annotated[str, typer.Option(help="As train_image.py takes it.")] = str(ROOT / "data" / "FashionMNIST"),
    size: Annotated[int, typer.Option(help="Of the images, in pixels, where the network can be so small.")] = 64,
    float_steps: Annotated[int, typer.Option(help="Training steps in float, before.")] = 300,
    samples: Annotated[int, typer.Option(help="Test images that are verified.")] = 500,
    seconds: Annotated[float, typer.Option(help="For each side of the step-time ratio.")] = 30.0,
) -> None:
    """Takes each network the whole way and prints the table."""
    two_logical_cpus()
    options = Options(size, float_steps, samples, seconds)
    found: list[Figures] = []
    for name in network or NETWORKS:
        found.append(measure(name, images.find(data), options))
        print(f"{name}: {asdict(found[-1])}", flush=True)
        if json is not None:
            report.write_json([asdict(figures) for figures in found], machine(), json)
    show(found, options)


if __name__ == "__main__":
    typer.run(main)
