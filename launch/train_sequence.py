"""Trains a recurrent net in float, fine-tunes it quantization-aware, exports it to int8 and verifies it.

python launch/train_sequence.py                                one process: LSTM, speaker identification
python launch/train_sequence.py --task watch --cell bilstm     exercises seen by a smartwatch
python launch/train_sequence.py --task text                     the next character of English text, 2 x 512 units
horovodrun -np 2 python launch/train_sequence.py               two processes, same script
"""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import tensorflow as tf
import typer
from datasets import ALPHABET, Samples, japanese_vowels, python_topics, smartwatch
from rich.console import Console
from rich.table import Table

import dqat

keras = tf.keras

CELLS = {
    "lstm": keras.layers.LSTM,
    "gru": keras.layers.GRU,
    "rnn": keras.layers.SimpleRNN,
    "bilstm": lambda units, **options: keras.layers.Bidirectional(keras.layers.LSTM(units, **options)),
}
#: The learning rate quantization-aware starts at this share of that in float.
QAT_RATE = 1 / 50


@dataclass(frozen=True)
class Recipe:
    """How a task is trained.

    Attributes:
        units: of each recurrent layer.
        layers: number of them.
        batch: over all replicas.
        float_epochs: in float.
        qat_epochs: quantization-aware, afterwards.
        rate: first learning rate of Adam in float; a fiftieth of it afterwards; both fall to 0 as a cosine.
        dropout: behind each recurrent layer.
    """

    units: int
    layers: int
    batch: int
    float_epochs: int
    qat_epochs: int
    rate: float
    dropout: float


@dataclass(frozen=True)
class Task:
    """A data set.

    Attributes:
        load: takes a folder and gives training and test set.
        folder: of its data, in the folder of all.
        title: what the test set is called.
        recipe: what its options are unless the command line says otherwise.
    """

    load: Callable[[pathlib.Path], tuple[Samples, Samples]]
    folder: str
    title: str
    recipe: Recipe


TASKS = {
    "speech": Task(japanese_vowels, "JapaneseVowels", "JapaneseVowels", Recipe(128, 1, 18, 40, 10, 5e-3, 0.5)),
    "watch": Task(
        smartwatch, "Watch", "the smartwatch exercises, people not in training", Recipe(64, 1, 128, 8, 2, 5e-3, 0.5)
    ),
    "text": Task(python_topics, "", "Python's manual: the next character", Recipe(512, 2, 32, 3, 1, 2e-3, 0.1)),
}


@dataclass(frozen=True)
class Options:
    """What the command line says, beside what the task's recipe does."""

    task: str
    cell: str
    recipe: Recipe
    range_sync: str = "delayed"
    out: pathlib.Path = pathlib.Path("out")

    @property
    def path(self) -> str:
        """Where files of this model go: the name, but for the seed and suffix."""
        return str(self.out / f"{self.task}_{self.cell}")


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
    is_text, recipe = options.task == "text", options.recipe
    inputs = outputs = keras.Input(samples.shape[1:], dtype=samples.dtype, name="sequence")
    if is_text:
        # Keras' default, within 0.05, keeps such a net for hundreds of steps at what frequencies alone say.
        wide = keras.initializers.RandomNormal(stddev=1.0)
        outputs = keras.layers.Embedding(len(ALPHABET), 64, embeddings_initializer=wide)(outputs)
    for index in range(recipe.layers):
        every_step = is_text or index < recipe.layers - 1
        outputs = CELLS[options.cell](recipe.units, return_sequences=every_step)(outputs)
        outputs = keras.layers.Dropout(recipe.dropout)(outputs)
    return keras.Model(inputs, keras.layers.Dense(classes, name="class")(outputs))


def train(
    model: keras.Model,
    strategy: dqat.distribute.Strategy,
    training: Samples,
    batch: int,
    rate: float,
    epochs: int,
    seed: int,
) -> None:
    """The same for the float model and the quantized one: Adam, a learning rate that falls to 0 as a cosine."""
    count = len(training[0])
    dataset = tf.data.Dataset.from_tensor_slices(training).shuffle(count, seed=seed)
    dataset = dataset.batch(batch, drop_remainder=True)
    schedule = keras.optimizers.schedules.CosineDecay(rate, max(1, count // batch * epochs))
    with strategy.scope():
        model.compile(
            strategy.optimizer(keras.optimizers.Adam(schedule)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    model.fit(**strategy.fit_data(dataset), epochs=epochs, callbacks=strategy.callbacks(), verbose=strategy.verbose())


def train_float(options: Options, training: Samples, strategy: dqat.distribute.Strategy, seed: int) -> keras.Model:
    """A float model from the first weights, as the recipe says."""
    recipe, (samples, labels) = options.recipe, training
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        model = build_model(options, samples, len(ALPHABET) if options.task == "text" else int(labels.max()) + 1)
    strategy.print(
        f"\nseed {seed}: {model.count_params():,} weights, {strategy.size} replicas ({strategy.engine}), float"
    )
    train(model, strategy, training, recipe.batch, recipe.rate, recipe.float_epochs, seed)
    return model


def train_further(
    model: keras.Model, options: Options, training: Samples, strategy: dqat.distribute.Strategy, seed: int
) -> None:
    """What follows on float training: `model` is the quantized one, or the float one for comparison."""
    recipe = options.recipe
    train(model, strategy, training, recipe.batch, recipe.rate * QAT_RATE, recipe.qat_epochs, seed)


def logits_of(model: keras.Model, samples: np.ndarray) -> np.ndarray:
    """What a float model gives. `predict` would wait for the other workers, which are done."""
    return np.concatenate([model(samples[begin : begin + 64]).numpy() for begin in range(0, len(samples), 64)])


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
    model = train_float(options, training, strategy, seed)
    strategy.print(f"seed {seed}: quantization-aware, ranges {options.range_sync}")
    with strategy.scope():
        quantized = dqat.quantize_model(model, range_sync=options.range_sync)
    train_further(quantized, options, training, strategy, seed)
    identical = strategy.ranges_identical(quantized)
    if not strategy.is_chief:
        return None

    path = f"{options.path}_{seed}.tflite"
    report = dqat.export_tflite(quantized, path)
    parity = dqat.verify(quantized, path, test[0])
    floats = logits_of(model, test[0])
    return Result(
        float_accuracy=accuracy(floats, test[1]),
        float_bits=bits(floats, test[1]),
        simulation_bits=bits(parity.simulation, test[1]),
        int8_bits=bits(parity.integer, test[1]),
        simulation_accuracy=accuracy(parity.simulation, test[1]),
        int8_accuracy=accuracy(parity.integer, test[1]),
        float_bytes=float_tflite(model, pathlib.Path(f"{options.path}_{seed}_float.tflite")),
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


def _defaults(field: str) -> str:
    """The recipes' values, for --help."""
    return "(" + ", ".join(f"{name} {getattr(task.recipe, field):g}" for name, task in TASKS.items()) + ")"


def main(
    task: Annotated[str, typer.Option(help="speech, watch or text.")] = "speech",
    cell: Annotated[str, typer.Option(help="lstm, gru, rnn or bilstm.")] = "lstm",
    data: Annotated[pathlib.Path, typer.Option(help="Folder with a folder for each data set.")] = pathlib.Path("data"),
    out: Annotated[pathlib.Path, typer.Option(help="Where the .tflite files go.")] = pathlib.Path("out"),
    units: Annotated[int | None, typer.Option(help=f"Units of each recurrent layer {_defaults('units')}.")] = None,
    layers: Annotated[int | None, typer.Option(help=f"Recurrent layers {_defaults('layers')}.")] = None,
    batch: Annotated[int | None, typer.Option(help=f"Batch size over all replicas {_defaults('batch')}.")] = None,
    float_epochs: Annotated[int | None, typer.Option(help=f"Epochs in float {_defaults('float_epochs')}.")] = None,
    qat_epochs: Annotated[
        int | None, typer.Option(help=f"Epochs quantization-aware {_defaults('qat_epochs')}.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help=f"First learning rate in float {_defaults('rate')}; a fiftieth of it afterwards."),
    ] = None,
    range_sync: Annotated[str, typer.Option(help="delayed, exact or off.")] = "delayed",
    seeds: Annotated[int, typer.Option(help="Number of runs, with seeds 0, 1, …")] = 3,
) -> None:
    """A sequence task on real data, from float training to a verified int8 file."""
    for name, value, known in (("task", task, TASKS), ("cell", cell, CELLS)):
        if value not in known:
            raise typer.BadParameter(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if task == "text" and cell == "bilstm":
        raise typer.BadParameter("a bidirectional net would see the character that it has to predict")
    given = {
        "units": units,
        "layers": layers,
        "batch": batch,
        "float_epochs": float_epochs,
        "qat_epochs": qat_epochs,
        "rate": rate,
    }
    chosen = TASKS[task]
    recipe = replace(chosen.recipe, **{name: value for name, value in given.items() if value is not None})
    options = Options(task, cell, recipe, range_sync, out)
    training, test = chosen.load(data / chosen.folder)
    out.mkdir(parents=True, exist_ok=True)
    results = [run(seed, options, training, test) for seed in range(seeds)]
    if all(results):
        show(results, list(range(seeds)), chosen.title)


if __name__ == "__main__":
    typer.run(main)
