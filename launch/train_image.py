"""Trains an image classifier in float, fine-tunes it quantization-aware, exports it to int8 and verifies it.

python launch/train_image.py --network MobileNetV2 --width 0.35             Fashion-MNIST, one process
horovodrun -np 2 python launch/train_image.py --network ResNet20            two processes, same script
python launch/train_image.py --data FOLDER --size 224 --network ResNet50    images in FOLDER/train and FOLDER/test
python launch/train_image.py --data tfds:imagenet2012 --size 224 --network MobileNet --weights imagenet \
    --float-epochs 0 --rate 3e-5 --qat-epochs 1                             from published weights
"""

import pathlib
from dataclasses import dataclass
from typing import Annotated

import images
import networks
import numpy as np
import tensorflow as tf
import typer
from rich.console import Console
from rich.table import Table

import dqat

keras = tf.keras


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        rate: first learning rate of Adam in float; a tenth of it quantization-aware; both fall to 0 as a cosine.
        weights: what the float network starts from; see `networks.build`.
    """

    network: str
    width: float = 1.0
    size: int = 32
    batch: int = 64
    float_epochs: int = 10
    qat_epochs: int = 3
    rate: float = 3e-3
    weights: str | None = None
    range_sync: str = "delayed"
    out: pathlib.Path = pathlib.Path("out")


@dataclass(frozen=True)
class Result:
    """The figures of one seed; accuracies are 0 to 1."""

    float_accuracy: float
    simulation_accuracy: float
    int8_accuracy: float
    int8_bytes: int
    weights: int
    parity: dqat.ParityReport
    identical: bool


def training_set(data: images.Images, options: Options, seed: int) -> tf.data.Dataset:
    """Batches of the training set as the network wants them."""
    return data.batches(options.size, options.batch, networks.preprocessing(options.network), seed)


def test_set(data: images.Images, options: Options) -> tf.data.Dataset:
    """The same of the test set."""
    return data.batches(options.size, options.batch, networks.preprocessing(options.network), None)


def train(
    model: keras.Model, strategy: dqat.distribute.Strategy, dataset: tf.data.Dataset, rate: float, epochs: int
) -> None:
    """The same for the float model and the quantized one: Adam, a learning rate that falls to 0 as a cosine."""
    if not epochs:
        return
    steps = int(dataset.cardinality()) * epochs
    with strategy.scope():
        model.compile(
            strategy.optimizer(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, max(steps, 1)))),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    data = strategy.fit_data(dataset)
    model.fit(**data, epochs=epochs, callbacks=strategy.callbacks(), verbose=strategy.verbose(2))


def train_float(options: Options, data: images.Images, strategy: dqat.distribute.Strategy, seed: int) -> keras.Model:
    """The float network, trained."""
    keras.utils.set_random_seed(seed)
    try:
        with strategy.scope():
            model = networks.build(
                options.network, size=options.size, classes=data.classes, width=options.width, weights=options.weights
            )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    strategy.print(
        f"\nseed {seed}: {options.network}, {model.count_params():,} weights, {strategy.size} replicas, float"
    )
    train(model, strategy, training_set(data, options, seed), options.rate, options.float_epochs)
    return model


def train_further(
    model: keras.Model, options: Options, data: images.Images, strategy: dqat.distribute.Strategy, seed: int
) -> None:
    """What follows on float training, quantization-aware."""
    train(model, strategy, training_set(data, options, seed), options.rate / 10, options.qat_epochs)


def logits_of(model: keras.Model, dataset: tf.data.Dataset) -> np.ndarray:
    """What a float model gives. `predict` would wait for the other workers, which are done."""
    infer = tf.function(lambda batch: model(batch, training=False))
    return np.concatenate([infer(batch).numpy() for batch, _ in dataset])


def labels_of(dataset: tf.data.Dataset) -> np.ndarray:
    """int32 labels of all samples."""
    return np.concatenate([labels.numpy() for _, labels in dataset])


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of right answers, 0 to 1."""
    return float((logits.argmax(-1) == labels).mean())


def run(seed: int, options: Options, data: images.Images) -> Result | None:
    """One seed from float training to the verified file; gives figures on the chief."""
    strategy = dqat.distribute.Strategy()
    model = train_float(options, data, strategy, seed)
    strategy.print(f"seed {seed}: quantization-aware, ranges {options.range_sync}")
    with strategy.scope():
        quantized = dqat.quantize_model(model, range_sync=options.range_sync)
    train_further(quantized, options, data, strategy, seed)
    identical = strategy.ranges_identical(quantized)
    if not strategy.is_chief:
        return None

    path = options.out / f"{options.network}_{seed}.tflite"
    report = dqat.export_tflite(quantized, path)
    held_out = test_set(data, options)
    parity = dqat.verify(quantized, path, held_out)
    labels = labels_of(held_out)
    return Result(
        float_accuracy=accuracy(logits_of(model, held_out), labels),
        simulation_accuracy=accuracy(parity.simulation, labels),
        int8_accuracy=accuracy(parity.integer, labels),
        int8_bytes=report.size,
        weights=model.count_params(),
        parity=parity,
        identical=identical,
    )


def show(results: list[Result], options: Options) -> None:
    """The table."""
    rows = {
        "accuracy, float": ("{:.2%}", lambda r: r.float_accuracy),
        "accuracy, simulation": ("{:.2%}", lambda r: r.simulation_accuracy),
        "accuracy, int8": ("{:.2%}", lambda r: r.int8_accuracy),
        "file, int8 (bytes)": ("{:,.0f}", lambda r: r.int8_bytes),
        "float weights / int8 file": ("{:.2f}", lambda r: 4 * r.weights / r.int8_bytes),
        "parity, logits equal": ("{:.2%}", lambda r: r.parity.equal),
        "parity, within 1 LSB": ("{:.2%}", lambda r: r.parity.within_1_lsb),
        "parity, largest difference (LSB)": ("{:.0f}", lambda r: r.parity.max_lsb),
        "parity, same class": ("{:.2%}", lambda r: r.parity.same_class),
        "ranges identical bits on all ranks": ("{}", lambda r: r.identical),
    }
    table = Table(title=f"{options.network} at {options.size}x{options.size}, {options.float_epochs} float epochs")
    for column in ("", *(f"seed {seed}" for seed in range(len(results))), "mean"):
        table.add_column(column, justify="right" if column else "left")
    for name, (form, value) in rows.items():
        values = [value(result) for result in results]
        mean = str(all(values)) if isinstance(values[0], bool) else form.format(np.mean(values))
        table.add_row(name, *(form.format(item) for item in values), mean)
    Console(width=100).print(table)


def main(
    data: Annotated[
        str,
        typer.Option(
            help="Folder with Fashion-MNIST's .gz files; or with `train` and `test` (or `val`), a folder of images a "
            "class; or tfds:NAME, a data set of TensorFlow Datasets such as tfds:imagenet2012."
        ),
    ] = "data/FashionMNIST",
    out: Annotated[pathlib.Path, typer.Option(help="Where the .tflite files go.")] = pathlib.Path("out"),
    network: Annotated[str, typer.Option(help="A name in keras.applications, or ResNet20.")] = "MobileNetV2",
    width: Annotated[float, typer.Option(help="Channels over the usual ones: MobileNets' alpha, ResNet20.")] = 1.0,
    size: Annotated[int, typer.Option(help="Of the images, in pixels.")] = 32,
    samples: Annotated[int, typer.Option(help="Training images; 0 takes all.")] = 0,
    batch: Annotated[int, typer.Option(help="Batch size over all replicas.")] = 64,
    float_epochs: Annotated[int, typer.Option(help="Epochs in float.")] = 10,
    qat_epochs: Annotated[int, typer.Option(help="Epochs quantization-aware.")] = 3,
    rate: Annotated[float, typer.Option(help="First learning rate in float; a tenth of it quantization-aware.")] = 3e-3,
    weights: Annotated[
        str | None, typer.Option(help="Start from these: imagenet, or a file that keras.applications takes.")
    ] = None,
    range_sync: Annotated[str, typer.Option(help="delayed, exact or off.")] = "delayed",
    seeds: Annotated[int, typer.Option(help="Number of runs, with seeds 0, 1, …")] = 1,
) -> None:
    """Image classification, from float training to a verified int8 file.

    On a folder of images, a data set of TensorFlow Datasets, or Fashion-MNIST; with any network of keras.applications
    that dqat quantizes, or ResNet20. Runs on every engine: as one process, under horovodrun, on all GPUs of a host or
    on several workers with tf.distribute (the templates in launch/ start it), on Slurm, Kubernetes and Ray.
    """
    options = Options(
        network, width, size, batch, float_epochs, qat_epochs, rate, weights, range_sync=range_sync, out=out
    )
    found = images.find(data).first(samples)
    out.mkdir(parents=True, exist_ok=True)
    results = [run(seed, options, found) for seed in range(seeds)]
    if all(results):
        show(results, options)


if __name__ == "__main__":
    typer.run(main)
