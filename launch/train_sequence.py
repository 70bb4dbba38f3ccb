"""Trains an LSTM classifier in float, fine-tunes it quantization-aware, exports it to int8 and verifies it.

python launch/train_sequence.py                      one process
horovodrun -np 2 python launch/train_sequence.py     two processes, same script
"""

import pathlib
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import tensorflow as tf
import typer
from datasets import Samples, japanese_vowels
from rich.console import Console
from rich.table import Table

import dqat

keras = tf.keras


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    units: int
    layers: int
    batch: int
    float_epochs: int
    qat_epochs: int
    range_sync: str
    out: pathlib.Path


@dataclass(frozen=True)
class Result:
    """The figures of one seed."""

    float_accuracy: float
    simulation_accuracy: float
    int8_accuracy: float
    float_bytes: int
    int8_bytes: int
    parity: dqat.ParityReport
    collectives: int
    identical: bool


def build_model(options: Options, frames: int, features: int, classes: int) -> keras.Model:
    """Stacked LSTMs and a dense layer that gives logits."""
    inputs = outputs = keras.Input((frames, features), name="speech")
    for index in range(options.layers):
        outputs = keras.layers.LSTM(options.units, return_sequences=index < options.layers - 1)(outputs)
        outputs = keras.layers.Dropout(0.5)(outputs)
    return keras.Model(inputs, keras.layers.Dense(classes, name="speaker")(outputs))


def train(
    model: keras.Model,
    strategy: dqat.distribute.Strategy,
    dataset: tf.data.Dataset,
    schedule: keras.optimizers.schedules.LearningRateSchedule,
    epochs: int,
) -> None:
    """The same for the float model and the quantized one."""
    with strategy.scope():
        model.compile(
            strategy.optimizer(keras.optimizers.Adam(schedule)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    model.fit(**strategy.fit_data(dataset), epochs=epochs, callbacks=strategy.callbacks(), verbose=strategy.verbose())


def float_tflite(model: keras.Model, path: pathlib.Path) -> int:
    """Writes the float model, for comparison; returns its size in bytes."""
    signature = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)
    function = tf.function(model).get_concrete_function(signature)
    return path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([function], model).convert())


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of right answers, 0 to 1."""
    return float((logits.argmax(-1) == labels).mean())


def run(seed: int, options: Options, training: Samples, test: Samples) -> Result | None:
    """One seed from float training to the verified file; gives figures on the chief."""
    strategy = dqat.distribute.Strategy()
    keras.utils.set_random_seed(seed)
    samples, labels = training
    dataset = tf.data.Dataset.from_tensor_slices(training).shuffle(len(samples), seed=seed)
    dataset = dataset.batch(options.batch, drop_remainder=True)
    steps = len(samples) // options.batch
    decay = keras.optimizers.schedules.CosineDecay

    with strategy.scope():
        model = build_model(options, *samples.shape[1:], classes=int(labels.max()) + 1)
    strategy.print(
        f"\nseed {seed}: {model.count_params():,} weights, {strategy.size} replicas ({strategy.engine}), float"
    )
    train(model, strategy, dataset, decay(5e-3, steps * options.float_epochs), options.float_epochs)

    strategy.print(f"seed {seed}: quantization-aware, ranges {options.range_sync}")
    with strategy.scope():
        quantized = dqat.quantize_model(model, range_sync=options.range_sync)
    train(quantized, strategy, dataset, decay(1e-4, steps * options.qat_epochs), options.qat_epochs)
    identical = strategy.ranges_identical(quantized)
    if not strategy.is_chief:
        return None

    path = options.out / f"speaker_{seed}.tflite"
    report = dqat.export_tflite(quantized, path)
    parity = dqat.verify(quantized, path, test[0])
    return Result(
        float_accuracy=accuracy(model(test[0]).numpy(), test[1]),
        simulation_accuracy=accuracy(parity.simulation, test[1]),
        int8_accuracy=accuracy(parity.integer, test[1]),
        float_bytes=float_tflite(model, options.out / f"speaker_{seed}_float.tflite"),
        int8_bytes=report.size,
        parity=parity,
        collectives=quantized.range_sync.collectives_per_step,
        identical=identical,
    )


def show(results: list[Result], seeds: list[int]) -> None:
    """The table."""
    rows = {
        "accuracy, float": ("{:.2%}", lambda r: r.float_accuracy),
        "accuracy, simulation": ("{:.2%}", lambda r: r.simulation_accuracy),
        "accuracy, int8": ("{:.2%}", lambda r: r.int8_accuracy),
        "file, float (bytes)": ("{:,.0f}", lambda r: r.float_bytes),
        "file, int8 (bytes)": ("{:,.0f}", lambda r: r.int8_bytes),
        "file, float / int8": ("{:.2f}", lambda r: r.float_bytes / r.int8_bytes),
        "parity, logits equal": ("{:.2%}", lambda r: r.parity.equal),
        "parity, within 1 LSB": ("{:.2%}", lambda r: r.parity.within_1_lsb),
        "parity, largest difference (LSB)": ("{:.0f}", lambda r: r.parity.max_lsb),
        "parity, same class": ("{:.2%}", lambda r: r.parity.same_class),
        "range collectives per step": ("{:.0f}", lambda r: r.collectives),
        "ranges identical bits on all ranks": ("{}", lambda r: r.identical),
    }
    table = Table(title="Test set of JapaneseVowels: simulation and int8 file")
    for column in ("", *(f"seed {seed}" for seed in seeds), *(["mean"] if len(seeds) > 1 else [])):
        table.add_column(column, justify="right" if column else "left")
    for name, (form, value) in rows.items():
        values = [value(result) for result in results]
        cells = [form.format(item) for item in values]
        if len(seeds) > 1:
            cells.append(str(all(values)) if isinstance(values[0], bool) else form.format(np.mean(values)))
        table.add_row(name, *cells)
    Console(width=100).print(table)


def main(
    data: Annotated[pathlib.Path, typer.Option(help="Folder with the JapaneseVowels .ts files.")] = pathlib.Path(
        "data/JapaneseVowels"
    ),
    out: Annotated[pathlib.Path, typer.Option(help="Where the .tflite files go.")] = pathlib.Path("out"),
    units: Annotated[int, typer.Option(help="Units of each LSTM.")] = 128,
    layers: Annotated[int, typer.Option(help="Number of LSTMs.")] = 1,
    batch: Annotated[int, typer.Option(help="Batch size over all replicas.")] = 18,
    float_epochs: Annotated[int, typer.Option(help="Epochs in float.")] = 40,
    qat_epochs: Annotated[int, typer.Option(help="Epochs quantization-aware.")] = 10,
    range_sync: Annotated[str, typer.Option(help="delayed, exact or off.")] = "delayed",
    seeds: Annotated[int, typer.Option(help="Number of runs, with seeds 0, 1, …")] = 3,
) -> None:
    """Speaker identification on real speech, from float training to a verified int8 file."""
    options = Options(units, layers, batch, float_epochs, qat_epochs, range_sync, out)
    training, test = japanese_vowels(data)
    out.mkdir(parents=True, exist_ok=True)
    results = [run(seed, options, training, test) for seed in range(seeds)]
    if all(results):
        show(results, list(range(seeds)))


if __name__ == "__main__":
    typer.run(main)
