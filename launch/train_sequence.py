"""Trains a recurrent net in float, fine-tunes it quantization-aware, exports it to int8 and verifies it.

python launch/train_sequence.py                                one process: LSTM, speaker identification
python launch/train_sequence.py --task watch --cell bilstm     exercises seen by a smartwatch
python launch/train_sequence.py --task text --units 512 --layers 2
horovodrun -np 2 python launch/train_sequence.py               two processes, same script
"""

import pathlib
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import tensorflow as tf
import typer
from datasets import ALPHABET, Samples, japanese_vowels, python_topics, smartwatch
from rich.console import Console
from rich.table import Table

import dqat

keras = tf.keras

#: By task: the loader, the folder of its data, and what the test set is called.
TASKS = {
    "speech": (japanese_vowels, "JapaneseVowels", "JapaneseVowels"),
    "watch": (smartwatch, "Watch", "the smartwatch exercises, people who are not in training"),
    "text": (python_topics, "", "Python's manual: the next character"),
}
CELLS = {
    "lstm": keras.layers.LSTM,
    "gru": keras.layers.GRU,
    "rnn": keras.layers.SimpleRNN,
    "bilstm": lambda units, **options: keras.layers.Bidirectional(keras.layers.LSTM(units, **options)),
}


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    task: str
    cell: str
    units: int
    layers: int
    batch: int
    float_epochs: int
    qat_epochs: int
    rate: float
    range_sync: str
    out: pathlib.Path


@dataclass(frozen=True)
class Result:
    """The figures of one seed."""

    float_accuracy: float
    float_bits: float
    simulation_bits: float
    int8_bits: float
    simulation_accuracy: float
    int8_accuracy: float
    float_bytes: int
    int8_bytes: int
    parity: dqat.ParityReport
    collectives: int
    identical: bool


def build_model(options: Options, samples: np.ndarray, classes: int) -> keras.Model:
    """Stacked recurrent layers and a dense layer that gives logits: for the sequence, or for each character."""
    is_text = options.task == "text"
    inputs = outputs = keras.Input(samples.shape[1:], dtype=samples.dtype, name="sequence")
    if is_text:
        outputs = keras.layers.Embedding(len(ALPHABET), 64)(outputs)
    for index in range(options.layers):
        every_step = is_text or index < options.layers - 1
        outputs = CELLS[options.cell](options.units, return_sequences=every_step)(outputs)
        outputs = keras.layers.Dropout(0.1 if is_text else 0.5)(outputs)
    return keras.Model(inputs, keras.layers.Dense(classes, name="class")(outputs))


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
    signature = tf.TensorSpec((1, *model.input_shape[1:]), model.input.dtype)
    function = tf.function(model).get_concrete_function(signature)
    return path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([function], model).convert())


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of right answers, 0 to 1."""
    return float((logits.argmax(-1) == labels).mean())


def bits(logits: np.ndarray, labels: np.ndarray) -> float:
    """Bits that a label costs: cross-entropy to the base 2."""
    loss = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    return float(np.mean(loss)) / np.log(2.0)


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
        model = build_model(options, samples, len(ALPHABET) if options.task == "text" else int(labels.max()) + 1)
    strategy.print(
        f"\nseed {seed}: {model.count_params():,} weights, {strategy.size} replicas ({strategy.engine}), float"
    )
    train(model, strategy, dataset, decay(options.rate, steps * options.float_epochs), options.float_epochs)

    strategy.print(f"seed {seed}: quantization-aware, ranges {options.range_sync}")
    with strategy.scope():
        quantized = dqat.quantize_model(model, range_sync=options.range_sync)
    train(quantized, strategy, dataset, decay(options.rate / 50, steps * options.qat_epochs), options.qat_epochs)
    identical = strategy.ranges_identical(quantized)
    if not strategy.is_chief:
        return None

    path = options.out / f"{options.task}_{options.cell}_{seed}.tflite"
    report = dqat.export_tflite(quantized, path)
    parity = dqat.verify(quantized, path, test[0])
    # `predict` would wait for the other workers, which are done.
    floats = np.concatenate([model(test[0][begin : begin + 64]).numpy() for begin in range(0, len(test[0]), 64)])
    return Result(
        float_accuracy=accuracy(floats, test[1]),
        float_bits=bits(floats, test[1]),
        simulation_bits=bits(parity.simulation, test[1]),
        int8_bits=bits(parity.integer, test[1]),
        simulation_accuracy=accuracy(parity.simulation, test[1]),
        int8_accuracy=accuracy(parity.integer, test[1]),
        float_bytes=float_tflite(model, options.out / f"{options.task}_{options.cell}_{seed}_float.tflite"),
        int8_bytes=report.size,
        parity=parity,
        collectives=quantized.range_sync.collectives_per_step,
        identical=identical,
    )


def show(results: list[Result], seeds: list[int], title: str) -> None:
    """The table."""
    rows = {
        "accuracy, float": ("{:.2%}", lambda r: r.float_accuracy),
        "accuracy, simulation": ("{:.2%}", lambda r: r.simulation_accuracy),
        "accuracy, int8": ("{:.2%}", lambda r: r.int8_accuracy),
        "bits per label, float": ("{:.4f}", lambda r: r.float_bits),
        "bits per label, simulation": ("{:.4f}", lambda r: r.simulation_bits),
        "bits per label, int8": ("{:.4f}", lambda r: r.int8_bits),
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
    table = Table(title=f"Test set of {title}: simulation and int8 file")
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
    task: Annotated[str, typer.Option(help="speech, watch or text.")] = "speech",
    cell: Annotated[str, typer.Option(help="lstm, gru, rnn or bilstm.")] = "lstm",
    data: Annotated[pathlib.Path, typer.Option(help="Folder with a folder for each data set.")] = pathlib.Path("data"),
    out: Annotated[pathlib.Path, typer.Option(help="Where the .tflite files go.")] = pathlib.Path("out"),
    units: Annotated[int, typer.Option(help="Units of each recurrent layer.")] = 128,
    layers: Annotated[int, typer.Option(help="Number of recurrent layers.")] = 1,
    batch: Annotated[int, typer.Option(help="Batch size over all replicas.")] = 18,
    float_epochs: Annotated[int, typer.Option(help="Epochs in float.")] = 40,
    qat_epochs: Annotated[int, typer.Option(help="Epochs quantization-aware.")] = 10,
    rate: Annotated[float, typer.Option(help="First learning rate in float; a fiftieth of it afterwards.")] = 5e-3,
    range_sync: Annotated[str, typer.Option(help="delayed, exact or off.")] = "delayed",
    seeds: Annotated[int, typer.Option(help="Number of runs, with seeds 0, 1, …")] = 3,
) -> None:
    """A sequence task on real data, from float training to a verified int8 file."""
    for name, value, known in (("task", task, TASKS), ("cell", cell, CELLS)):
        if value not in known:
            raise typer.BadParameter(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if task == "text" and cell == "bilstm":
        raise typer.BadParameter("a bidirectional net would see the character that it has to predict")
    options = Options(task, cell, units, layers, batch, float_epochs, qat_epochs, rate, range_sync, out)
    load, folder, title = TASKS[task]
    training, test = load(data / folder)
    out.mkdir(parents=True, exist_ok=True)
    results = [run(seed, options, training, test) for seed in range(seeds)]
    if all(results):
        show(results, list(range(seeds)), title)


if __name__ == "__main__":
    typer.run(main)
