"""How faithfully the files of trained recurrent models behave: the simulation against TFLite's interpreter.

python -m benchmarks.recurrent_parity [--cell lstm ...] [--length 29 ...] [--json FILE]

Every model is trained in float and quantization-aware on real data (29 timesteps: JapaneseVowels; 100 and 200: the
smartwatch exercises), exported, and run on test samples with the interpreter's default kernels (XNNPACK where it
applies) and with the builtin ones. Lists, for each: logits with the same integer, within 1 LSB, the largest difference,
and the same class.
"""

import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa
import typer
from rich.console import Console
from rich.table import Table

import dqat
from dqat.keras_api import keras

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "launch"))

from datasets import Samples, japanese_vowels, smartwatch  # noqa: E402

layers = keras.layers
UNITS = 32


def _decoding(kind: type[layers.RNN]) -> Callable[[tf.Tensor], tf.Tensor]:
    """Two layers on the same sequence, of which the second begins with the states that the first ends with."""

    def run(x: tf.Tensor) -> tf.Tensor:
        _, *states = kind(UNITS, return_state=True)(x)
        return kind(UNITS)(x, initial_state=states)

    return run


#: By name: the recurrent layers of a model, in order.
CELLS = {
    "lstm": lambda: [layers.LSTM(UNITS)],
    "stacked lstm": lambda: [layers.LSTM(UNITS, return_sequences=True), layers.LSTM(UNITS)],
    "bidirectional lstm": lambda: [layers.Bidirectional(layers.LSTM(UNITS))],
    "gru": lambda: [layers.GRU(UNITS)],
    "gru, reset before": lambda: [layers.GRU(UNITS, reset_after=False)],
    "simple rnn": lambda: [layers.SimpleRNN(UNITS)],
    "lstm, encoder and decoder": lambda: [_decoding(layers.LSTM)],
    "gru, encoder and decoder": lambda: [_decoding(layers.GRU)],
    "layer-norm lstm": lambda: [layers.RNN(tfa.rnn.LayerNormLSTMCell(UNITS))],
    "layer-norm simple rnn": lambda: [layers.RNN(tfa.rnn.LayerNormSimpleRNNCell(UNITS))],
    "peephole lstm": lambda: [layers.RNN(tfa.rnn.PeepholeLSTMCell(UNITS))],
}


def _frames_first(samples: np.ndarray) -> np.ndarray:
    """Sequences whose padding comes last instead of first."""
    padding = np.cumsum(np.abs(samples).sum(-1) > 0, axis=1) == 0
    return np.stack([np.roll(sample, -n, axis=0) for sample, n in zip(samples, padding.sum(1), strict=True)])


def data(cell: str, length: int) -> tuple[Samples, Samples]:
    """Real sequences of so many timesteps, for training and testing.

    Layer-norm cells get the utterances' padding at the end: until the first frame their states are zeros, and the
    gradient of a normalized zero grows 30-fold in a timestep, to Inf before the padding's end.
    """
    if length == 29:
        both = japanese_vowels(ROOT / "data" / "JapaneseVowels")
        return tuple((_frames_first(x), y) for x, y in both) if cell.startswith("layer-norm") else both
    training, test = smartwatch(ROOT / "data" / "Watch", length)
    few = slice(None, None, max(1, len(training[0]) // 600))
    return (training[0][few], training[1][few]), test


def trained(cell: str, training: Samples, epochs: tuple[int, int] = (10, 3), seed: int = 0) -> keras.Model:
    """A classifier, trained in float and then quantization-aware."""
    keras.utils.set_random_seed(seed)
    inputs = outputs = keras.Input(training[0].shape[1:])
    for layer in CELLS[cell]():
        outputs = layer(outputs)
    model = keras.Model(inputs, layers.Dense(int(training[1].max()) + 1, name="class")(outputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(*training, batch_size=30, epochs=epochs[0], verbose=0)
    quantized = dqat.quantize_model(model)
    quantized.compile(keras.optimizers.Adam(5e-4), loss)
    quantized.fit(*training, batch_size=30, epochs=epochs[1], verbose=0)
    return quantized


def rows(cell: str, length: int, samples: int) -> list[dict[str, Any]]:
    """Trains, exports and verifies one model."""
    training, test = data(cell, length)
    model = trained(cell, training)
    few = slice(None, None, max(1, len(test[0]) // samples))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        report = dqat.export_tflite(model, pathlib.Path(folder) / "model.tflite")
        for kernels in ("default", "builtin"):
            parity = dqat.verify(model, report.path, test[0][few], kernels=kernels)
            right = (parity.simulation.argmax(-1) == test[1][few]).mean()
            found.append(
                {
                    **{"cell": cell, "length": length, "kernels": kernels, "samples": len(parity.simulation)},
                    **{name: getattr(parity, name) for name in ("equal", "within_1_lsb", "max_lsb", "same_class")},
                    **{"accuracy": float(right), "bytes": report.size},
                }
            )
    return found


def main(
    cell: Annotated[list[str], typer.Option(help=f"of {', '.join(CELLS)}")] = list(CELLS),  # noqa: B006
    length: Annotated[list[int], typer.Option(help="timesteps")] = [29, 100, 200],  # noqa: B006
    samples: Annotated[int, typer.Option(help="test samples, at least")] = 300,
    json_file: Annotated[pathlib.Path | None, typer.Option("--json", help="also write the rows there")] = None,
) -> None:
    """Prints the table."""
    table = Table(title=f"Simulation against the interpreter of TensorFlow {tf.__version__}, logits of trained models")
    for title in (
        "cell",
        "timesteps",
        "kernels",
        "equal",
        "within 1 LSB",
        "largest",
        "same class",
        "accuracy",
        "bytes",
    ):
        table.add_column(title, justify="left" if title == "cell" else "right")
    found = []
    for steps in length:
        for name in cell:
            for row in rows(name, steps, samples):
                found.append(row)
                shares = [f"{row[key]:.2%}" for key in ("equal", "within_1_lsb")]
                ends = [f"{row[key]:.2%}" for key in ("same_class", "accuracy")]
                table.add_row(
                    name, str(steps), row["kernels"], *shares, str(row["max_lsb"]), *ends, f"{row['bytes']:,}"
                )
                print(row, file=sys.stderr, flush=True)
    Console(width=120).print(table)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
