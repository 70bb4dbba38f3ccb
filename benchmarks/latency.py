"""Latency and size of float and int8 files: five image networks and three LSTMs, one run, bad figures included.

python -m benchmarks.latency [--json FILE] [--files FOLDER] [--case NAME ...]

Files are written first (weights are random: time doesn't depend on them) and kept in the folder, so that a second call
only measures.
"""

import pathlib
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import tensorflow as tf
import typer

import dqat
from benchmarks import report
from benchmarks.ops import machine
from benchmarks.timing import take_turns
from dqat.interpreter import describe, open_interpreter
from dqat.report import float_tflite

keras = tf.keras
#: Pixels of the image networks, as on the page that reports their accuracies.
SIZE = 224
IMAGE_NETWORKS = ("MobileNet", "MobileNetV2", "ResNet50", "ResNet50V2", "NASNetMobile")
#: Timesteps, features, units, layers.
LSTMS = {
    "LSTM 29x12, 128": (29, 12, 128, 1),
    "LSTM 50x64, 512": (50, 64, 512, 1),
    "LSTM 100x40, 2x256": (100, 40, 256, 2),
}
#: For each file, with each number of threads.
SECONDS = 2.0
#: XNNPACK's threads wait for more work without sleeping, 41 ms after a call of MobileNet: on two cores they take one
#: from the other file, whose calls then took up to 20 times as long. So each file's turn begins when they sleep, and is
#: long enough to wake its own.
REST_SECONDS, SLICE_SECONDS = 0.1, 0.3


def image_network(name: str) -> keras.Model:
    """A network of `keras.applications` for 1,000 classes."""
    return getattr(keras.applications, name)(weights=None, input_shape=(SIZE, SIZE, 3), classes=1000)


def lstm_network(time: int, features: int, units: int, layers: int) -> keras.Model:
    """LSTMs in a row, and a dense layer for ten classes."""
    outputs = inputs = keras.Input((time, features))
    for layer in range(layers):
        outputs = keras.layers.LSTM(units, return_sequences=layer < layers - 1)(outputs)
    return keras.Model(inputs, keras.layers.Dense(10)(outputs))


CASES: dict[str, Callable[[], keras.Model]] = {
    **{f"{name}, {SIZE}x{SIZE}": lambda name=name: image_network(name) for name in IMAGE_NETWORKS},
    **{name: lambda shape=shape: lstm_network(*shape) for name, shape in LSTMS.items()},
}


def write_files(case: str, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The float and the int8 file of a case, made where they are missing."""
    stem = "".join(letter if letter.isalnum() else "_" for letter in case)
    paths = {kind: folder / f"{stem}_{kind}.tflite" for kind in ("float", "int8")}
    if not all(path.exists() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        model = CASES[case]()
        quantized = dqat.quantize_model(model)
        quantized(np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype(np.float32), training=True)
        paths["float"].write_bytes(float_tflite(model))
        dqat.export_tflite(quantized, paths["int8"])
    return paths


def call(path: pathlib.Path, threads: int, kernels: str) -> Callable[[], Any]:
    """Runs a file once a call, on random values."""
    interpreter = open_interpreter(path, kernels, threads=threads)
    rng = np.random.default_rng(0)
    for details in interpreter.get_input_details():
        values = (
            rng.normal(size=details["shape"])
            if details["dtype"] == np.float32
            else rng.integers(0, 100, details["shape"])
        )
        interpreter.set_tensor(details["index"], values.astype(details["dtype"]))
    return interpreter.invoke


def measure(case: str, folder: pathlib.Path, threads: int, seconds: float, kernels: str) -> report.Row:
    """Float's time over int8's, in turns; and the sizes."""
    paths = write_files(case, folder)
    contenders = {kind: call(path, threads, kernels) for kind, path in paths.items()}
    rounds = take_turns(contenders, seconds, slice_seconds=SLICE_SECONDS, rest=REST_SECONDS)
    sizes = {kind: path.stat().st_size for kind, path in paths.items()}
    row = rounds.row(case, f"one call, {threads} threads", "int8", "float")
    return {
        **row,
        "peer_seconds": rounds.median("float"),
        "bytes": sizes["int8"],
        "peer_bytes": sizes["float"],
        "target": None,
    }


def table(rows: list[report.Row], where: dict[str, Any], kernels: str, failures: dict[str, str]) -> str:
    """The rows as a Markdown table; cases without a file with the reason."""
    lines = [
        f"{where['cpu']}, {where['cores']} cores, {where['date']}; {describe(kernels, 'tensorflow')}; median of calls.",
        "",
        "| | what | float, ms | int8, ms | float / int8 | float, bytes | int8, bytes | float / int8 |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        times = f"{1e3 * row['peer_seconds']:.3g} | {1e3 * row['seconds']:.3g} | {row['ratio']:.2f}"
        sizes = f"{row['peer_bytes']:,} | {row['bytes']:,} | {row['peer_bytes'] / row['bytes']:.2f}"
        lines.append(f"| {row['case']} | {row['what']} | {times} | {sizes} |")
    lines += [f"| {case} | not exported: {reason} | | | | | | |" for case, reason in failures.items()]
    return "\n".join(lines)


def main(
    json: Annotated[pathlib.Path | None, typer.Option(help="Write the rows here.")] = None,
    files: Annotated[pathlib.Path, typer.Option(help="Folder of the files.")] = pathlib.Path("out/latency"),
    case: Annotated[list[str] | None, typer.Option(help="Only these cases.")] = None,
    seconds: Annotated[float, typer.Option(help="For each file and number of threads.")] = SECONDS,
    kernels: Annotated[str, typer.Option(help="default (with XNNPACK) or builtin.")] = "default",
    only_files: Annotated[bool, typer.Option("--only-files", help="Write the files, and measure nothing.")] = False,
) -> None:
    """Times float and int8 files and prints a table."""
    names, failures = case or list(CASES), {}
    for name in names:
        try:
            write_files(name, files)
            print(f"files of {name}", flush=True)
        except dqat.ExportError as error:
            failures[name] = str(error)
            print(f"no file of {name}: {error}", flush=True)
    if only_files:
        return
    exported = [name for name in names if name not in failures]
    rows = [measure(name, files, threads, seconds, kernels) for name in exported for threads in (1, 2)]
    where = machine()
    print(table(rows, where, kernels, failures))
    if json is not None:
        report.write_json(rows, where, json)


if __name__ == "__main__":
    typer.run(main)
