"""Accuracy on real tasks: float, simulation, int8 file, and post-training quantization beside them.

python -m benchmarks.accuracy --case speech/lstm --seeds 5
python -m benchmarks.accuracy --json out/accuracy.jsonl    the table of what was run so far, after what is missing

A row a line, appended when it is known: a sweep that was interrupted goes on where it ended.
"""

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import tensorflow as tf
import typer
from rich.console import Console
from rich.table import Table

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "launch"))  # the recipes are those of the scripts that users start

from benchmarks import image_accuracy, sequence_accuracy  # noqa: E402

#: By kind of case: its names, and what runs one seed and gives the figures.
RUNNERS: dict[str, Callable[..., dict[str, Any]]] = {
    **{name: sequence_accuracy.run for name in sequence_accuracy.CASES},
    **{name: image_accuracy.run for name in image_accuracy.CASES},
}
#: The columns: figure by name in the rows. `int8` is the file in the interpreter, not the simulation.
COLUMNS = {
    "float": "float",
    "float, trained as long": "float_longer",
    "simulation": "simulation",
    "int8": "int8",
    "post-training": "post_training",
    "tfmot int8": "tfmot",
    "4-bit weights, simulation": "int4_simulation",
}

Row = dict[str, Any]


def read(path: pathlib.Path) -> list[Row]:
    """The rows that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _cell(values: list[Any], metric: str) -> str:
    numbers = [value for value in values if isinstance(value, (int, float))]
    words = sorted({value for value in values if isinstance(value, str)})
    mean = statistics.fmean(numbers) if numbers else 0.0
    text = (f"{mean:.2%}" if metric == "accuracy" else f"{mean:.4f}") if numbers else ""
    return " ".join(filter(None, [text, *(f"{word} ({values.count(word)})" for word in words)]))


def show(rows: Iterable[Row]) -> None:
    """A line a case: means over the seeds, and int8 against float."""
    table = Table(title="Test set, mean over the seeds")
    for column in ("case", "seeds", *COLUMNS, "int8 - float", "within 1 LSB", "same class"):
        table.add_column(column, justify="right" if column != "case" else "left")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["case"], []).append(row)
    for case, group in groups.items():
        metric = group[0]["metric"]
        cells = [_cell([row[key] for row in group if key in row], metric) for key in COLUMNS.values()]
        before, after = (statistics.fmean(row[key] for row in group) for key in ("float", "int8"))
        change = f"{after - before:+.2%}" if metric == "accuracy" else f"{after / before - 1:+.2%} (relative)"
        parity = [f"{statistics.fmean(row[key] for row in group):.2%}" for key in ("within_1_lsb", "same_class")]
        table.add_row(f"{case}, {metric}", str(len(group)), *cells, change, *parity)
    Console(width=240).print(table)


def main(
    case: Annotated[list[str] | None, typer.Option(help=f"Only these of {', '.join(RUNNERS)}.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, … of each case.")] = 5,
    data: Annotated[pathlib.Path, typer.Option(help="Folder with a folder for each data set.")] = pathlib.Path("data"),
    json_lines: Annotated[pathlib.Path, typer.Option("--json", help="Rows: read, and appended.")] = pathlib.Path(
        "out/accuracy.jsonl"
    ),
    threads: Annotated[int, typer.Option(help="TensorFlow's threads in an operation; 0 leaves it to TensorFlow.")] = 0,
) -> None:
    """Trains what is not in the file yet, and prints the table."""
    cases = case or list(RUNNERS)
    if unknown := [name for name in cases if name not in RUNNERS]:
        raise typer.BadParameter(f"case must be among {', '.join(RUNNERS)}, got {', '.join(unknown)}")
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    json_lines.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for name in cases:
            if any((row["case"], row["seed"]) == (name, seed) for row in read(json_lines)):
                continue
            tf.keras.backend.clear_session()
            start = time.perf_counter()
            row = {"case": name, "seed": seed, **RUNNERS[name](name, seed, data, json_lines.parent)}
            row["seconds"] = round(time.perf_counter() - start)
            with json_lines.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    show(row for row in read(json_lines) if row["case"] in cases)


if __name__ == "__main__":
    typer.run(main)
