"""Trains quantization-aware with workers that may die and join, exports to int8 and verifies.

python launch/train_elastic.py prepare     once, on one process: trains the float model and writes it
launch/horovod/elastic.sh                  the quantization-aware part, elastic
python launch/train_elastic.py             the same on one process

What a worker that joins does before it joins, it does alone: so the float model comes from a file here.
"""

import pathlib
from typing import Annotated

import numpy as np
import tensorflow as tf
import typer
from datasets import japanese_vowels

import dqat

keras = tf.keras
app = typer.Typer(help=__doc__.partition("\n")[0], invoke_without_command=True)

Data = Annotated[pathlib.Path, typer.Option(help="Folder with the JapaneseVowels .ts files.")]
Model = Annotated[pathlib.Path, typer.Option(help="The float model's file.")]
DATA, MODEL = pathlib.Path("data/JapaneseVowels"), pathlib.Path("out/speaker_float.keras")


def compiled(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> keras.Model:
    """The same loss for the float model and the quantized one."""
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


@app.command()
def prepare(
    data: Data = DATA,
    model: Model = MODEL,
    units: Annotated[int, typer.Option(help="Units of the LSTM.")] = 64,
    epochs: Annotated[int, typer.Option(help="Epochs in float.")] = 30,
) -> None:
    """Trains the float model on one process and writes it."""
    keras.utils.set_random_seed(0)
    samples, labels = japanese_vowels(data)[0]
    layers = [keras.Input(samples.shape[1:], name="speech"), keras.layers.LSTM(units)]
    network = keras.Sequential([*layers, keras.layers.Dense(int(labels.max()) + 1, name="speaker")])
    compiled(network, keras.optimizers.Adam(5e-3)).fit(samples, labels, batch_size=27, epochs=epochs, verbose=2)
    model.parent.mkdir(parents=True, exist_ok=True)
    network.save(model)
    print(f"written: {model}")


@app.callback()
def train(
    context: typer.Context,
    data: Data = DATA,
    model: Model = MODEL,
    out: Annotated[pathlib.Path, typer.Option(help="The .tflite file.")] = pathlib.Path("out/speaker_elastic.tflite"),
    batch: Annotated[int, typer.Option(help="Batch size over all replicas.")] = 27,
    epochs: Annotated[int, typer.Option(help="Epochs quantization-aware.")] = 10,
    commit_every: Annotated[int, typer.Option(help="Steps between commits.")] = 5,
    range_sync: Annotated[str, typer.Option(help="delayed, exact or off.")] = "delayed",
) -> None:
    """Trains on, exports and verifies."""
    if context.invoked_subcommand is not None:
        return
    if not model.is_file():
        raise SystemExit(f"{model} is missing: run `python launch/train_elastic.py prepare` first")
    training, test = japanese_vowels(data)
    strategy = dqat.distribute.Strategy()
    with strategy.scope():
        quantized = dqat.quantize_model(keras.models.load_model(model), range_sync=range_sync)
        compiled(quantized, strategy.optimizer(keras.optimizers.Adam(1e-4)))

    def batches(epoch: int) -> tf.data.Dataset:
        return (
            tf.data.Dataset.from_tensor_slices(training)
            .shuffle(len(training[0]), seed=epoch, reshuffle_each_iteration=False)
            .batch(batch)
        )

    state = dqat.distribute.ElasticState(strategy, quantized)
    state.fit(batches, epochs=epochs, commit_every=commit_every, verbose=2)
    identical = strategy.ranges_identical(quantized)
    if strategy.is_chief:
        out.parent.mkdir(parents=True, exist_ok=True)
        dqat.export_tflite(quantized, out)
        parity = dqat.verify(quantized, out, test[0])
        accuracy = np.mean(parity.integer.argmax(-1) == test[1])
        print(
            f"{state.step} steps, at the end on {strategy.size} replicas; ranges identical: {identical}; "
            f"int8 accuracy {accuracy:.2%}; within 1 LSB of the simulation {parity.within_1_lsb:.2%}"
        )


if __name__ == "__main__":
    app()
