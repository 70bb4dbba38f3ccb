"""Trains an image classifier in float, fine-tunes it quantization-aware, exports it to int8 and verifies it.

python launch/train_image.py --network MobileNetV2                     one process
horovodrun -np 2 python launch/train_image.py --network MobileNetV2    two processes, same script
"""

import pathlib
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import tensorflow as tf
import typer
from datasets import Samples, fashion_mnist, image_folder
from rich.console import Console
from rich.table import Table

import dqat

keras = tf.keras


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    network: str
    width: float
    size: int
    batch: int
    float_epochs: int
    qat_epochs: int
    range_sync: str
    out: pathlib.Path


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


def build_model(options: Options, classes: int) -> keras.Model:
    """A network of `keras.applications`, with logits instead of its softmax."""
    builder = getattr(keras.applications, options.network, None)
    if builder is None:
        raise typer.BadParameter(f"keras.applications has no {options.network!r}")
    narrower = {} if options.width == 1.0 else {"alpha": options.width}
    model = builder(
        weights=None,
        input_shape=(options.size, options.size, 3),
        classes=classes,
        classifier_activation=None,
        **narrower,
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # With the networks' own 0.99 to 0.999 the statistics have not arrived after a few hundred steps.
            layer.momentum = min(layer.momentum, 0.9)
    return model


def prepared(samples: Samples, options: Options, seed: int | None) -> tf.data.Dataset:
    """Batches of float32 images in [-1, 1] of the network's size, with int32 labels; shuffled with a seed."""
    images, labels = samples
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    if seed is not None:
        dataset = dataset.shuffle(len(images), seed=seed)

    def convert(batch: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = tf.image.resize(tf.cast(batch, tf.float32) / 127.5 - 1.0, (options.size, options.size))
        return tf.tile(batch, [1, 1, 1, 3 // images.shape[-1]]), classes

    return dataset.batch(options.batch, drop_remainder=seed is not None).map(convert).prefetch(2)


def train(
    model: keras.Model, strategy: dqat.distribute.Strategy, dataset: tf.data.Dataset, rate: float, epochs: int
) -> None:
    """The same for the float model and the quantized one."""
    steps = int(dataset.cardinality()) * epochs
    with strategy.scope():
        model.compile(
            strategy.optimizer(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, max(steps, 1)))),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    data = strategy.fit_data(dataset)
    model.fit(**data, epochs=epochs, callbacks=strategy.callbacks(), verbose=strategy.verbose(2))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of right answers, 0 to 1."""
    return float((logits.argmax(-1) == labels).mean())


def run(seed: int, options: Options, training: Samples, test: Samples) -> Result | None:
    """One seed from float training to the verified file; gives figures on the chief."""
    strategy = dqat.distribute.Strategy()
    keras.utils.set_random_seed(seed)
    dataset, held_out = prepared(training, options, seed), prepared(test, options, None)
    with strategy.scope():
        model = build_model(options, classes=int(training[1].max()) + 1)
    strategy.print(
        f"\nseed {seed}: {options.network}, {model.count_params():,} weights, {strategy.size} replicas, float"
    )
    train(model, strategy, dataset, 3e-3, options.float_epochs)

    strategy.print(f"seed {seed}: quantization-aware, ranges {options.range_sync}")
    with strategy.scope():
        quantized = dqat.quantize_model(model, range_sync=options.range_sync)
    train(quantized, strategy, dataset, 3e-4, options.qat_epochs)
    identical = strategy.ranges_identical(quantized)
    if not strategy.is_chief:
        return None

    path = options.out / f"{options.network}_{seed}.tflite"
    report = dqat.export_tflite(quantized, path)
    parity = dqat.verify(quantized, path, held_out)
    # `predict` would wait for the other workers, which are done.
    floats = np.concatenate([model(images, training=False).numpy() for images, *_ in held_out])
    return Result(
        float_accuracy=accuracy(floats, test[1]),
        simulation_accuracy=accuracy(parity.simulation, test[1]),
        int8_accuracy=accuracy(parity.integer, test[1]),
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
        pathlib.Path,
        typer.Option(
            help="Folder with Fashion-MNIST's .gz files, or with `train` and `test`, a folder of images a class."
        ),
    ] = pathlib.Path("data/FashionMNIST"),
    out: Annotated[pathlib.Path, typer.Option(help="Where the .tflite files go.")] = pathlib.Path("out"),
    network: Annotated[str, typer.Option(help="A name in keras.applications.")] = "MobileNetV2",
    width: Annotated[float, typer.Option(help="Channels over the network's usual ones (MobileNets' alpha).")] = 1.0,
    size: Annotated[int, typer.Option(help="Of the images, in pixels.")] = 32,
    samples: Annotated[int, typer.Option(help="Training images; 0 takes all.")] = 0,
    batch: Annotated[int, typer.Option(help="Batch size over all replicas.")] = 64,
    float_epochs: Annotated[int, typer.Option(help="Epochs in float.")] = 10,
    qat_epochs: Annotated[int, typer.Option(help="Epochs quantization-aware.")] = 3,
    range_sync: Annotated[str, typer.Option(help="delayed, exact or off.")] = "delayed",
    seeds: Annotated[int, typer.Option(help="Number of runs, with seeds 0, 1, …")] = 1,
) -> None:
    """Image classification, from float training to a verified int8 file."""
    options = Options(network, width, size, batch, float_epochs, qat_epochs, range_sync, out)
    training, test = image_folder(data, size) if (data / "train").is_dir() else fashion_mnist(data)
    if samples:
        training = training[0][:samples], training[1][:samples]
    out.mkdir(parents=True, exist_ok=True)
    results = [run(seed, options, training, test) for seed in range(seeds)]
    if all(results):
        show(results, options)


if __name__ == "__main__":
    typer.run(main)
