"""The `dqat` command.

Exit status: 0 all is well, 1 the answer is no (files differ, parity missed, something needed is missing), 2 a
wrong argument or a file that can't be used, with one line on the standard error that says why.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    name="dqat",
    help="Quantization-aware training for TensorFlow: look at what was trained, exported and installed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

TflitePath = Annotated[pathlib.Path, typer.Argument(help="A .tflite file.", metavar="FILE.tflite")]
ModelPath = Annotated[pathlib.Path, typer.Argument(help="A quantization-aware model, saved by Keras (.keras).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

_NO, _ERROR = 1, 2


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """What a user can cause ends the command with one line and exit status 2."""
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        typer.echo(f"dqat: {' '.join(str(error).split()) or type(error).__name__}", err=True)
        raise typer.Exit(_ERROR) from None


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=str))


def _table(title: str, columns: list[str], rows: list[tuple]) -> None:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)


@app.callback()
def _quiet() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@app.command(epilog="Example: `dqat doctor --json`")
def doctor(as_json: AsJson = False) -> None:
    """Tell what is installed and works, and how to get what is missing. Exit status 1 if dqat itself can't run."""
    from dqat import doctor as checks

    found = checks.examine()
    if as_json:
        _print_json([dataclasses.asdict(check) for check in found])
    else:
        _table(
            "dqat doctor",
            ["what", "state", "details"],
            [(check.what, check.state, check.details) for check in found],
        )
    if any(check.state == "broken" and check.needed for check in found):
        raise typer.Exit(_NO)


@app.command(epilog="Example: `dqat inspect model.tflite`")
def inspect(file: TflitePath, as_json: AsJson = False) -> None:
    """Show a file's operators, tensors, scales, and islands of float operators."""
    with _errors_in_one_line():
        from dqat.export.inspection import inspect_tflite

        found = inspect_tflite(file)
    if as_json:
        _print_json(
            {
                "path": str(found.path),
                "size": found.size,
                "constant_bytes": found.constant_bytes,
                "operators": found.operators,
                "float_islands": found.float_islands,
                "metadata": found.metadata,
                "subgraphs": [
                    {
                        "operators": [dataclasses.asdict(operator) for operator in graph.operators],
                        "tensors": [
                            {**dataclasses.asdict(tensor), "values": len(tensor.values)} for tensor in graph.tensors
                        ],
                    }
                    for graph in found.subgraphs
                ],
            }
        )
        return
    typer.echo(f"{found.path}: {found.size} bytes, of these {found.constant_bytes} of constants; {found.description}")
    for number, graph in enumerate(found.subgraphs):
        _table(
            f"Operators of subgraph {number}",
            ["", "operator", "inputs", "outputs"],
            [
                (place, operator.name, *(" ".join(map(str, side)) for side in (operator.inputs, operator.outputs)))
                for place, operator in enumerate(graph.operators)
            ],
        )
        _table(
            f"Tensors of subgraph {number}",
            ["", "name", "kind", "type", "shape", "scale", "zero point"],
            [(place, *_tensor_row(tensor)) for place, tensor in enumerate(graph.tensors)],
        )
    islands = "; ".join(" ".join(island) for island in found.float_islands)
    typer.echo(f"float islands: {islands}" if islands else "integer only: no operator computes with floats")


def _tensor_row(tensor: Any) -> tuple:
    scale, zero_point = "", ""
    if len(tensor.scales) == 1:
        scale, zero_point = f"{tensor.scales[0]:.9g}", tensor.zero_points[0]
    elif tensor.scales:
        scale = f"{min(tensor.scales):.3g} to {max(tensor.scales):.3g}, {len(tensor.scales)} on axis {tensor.axis}"
        zero_point = " ".join(map(str, sorted(set(tensor.zero_points))))
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return tensor.name, tensor.kind, tensor.dtype, shape, scale, zero_point


@app.command(epilog="Example: `dqat compare old.tflite new.tflite || echo they differ`")
def compare(first: TflitePath, second: TflitePath, as_json: AsJson = False) -> None:
    """List the differences of two files: operators, types, shapes, scales, constants. Exit status 1 if any."""
    with _errors_in_one_line():
        from dqat.export.inspection import compare_tflite

        differences = compare_tflite(first, second)
    if as_json:
        _print_json([dataclasses.asdict(difference) for difference in differences])
    elif differences:
        _table("Differences", ["where", str(first), str(second)], [dataclasses.astuple(d) for d in differences])
    else:
        typer.echo("no difference")
    if differences:
        raise typer.Exit(_NO)


@app.command(epilog="Example: `dqat quantize float.keras qat.keras --range-sync exact`")
def quantize(
    model: Annotated[pathlib.Path, typer.Argument(help="A float model, saved by Keras.")],
    output: Annotated[pathlib.Path, typer.Argument(help="The quantization-aware model to write (.keras).")],
    scheme: Annotated[str, typer.Option(help="How each kind of tensor is quantized.")] = "int8",
    range_sync: Annotated[str, typer.Option(help="delayed, exact or off.")] = "delayed",
) -> None:
    """Make a quantization-aware model of a float one, ready to be trained, and show what is quantized."""
    with _errors_in_one_line():
        import dqat

        quantized = dqat.quantize_model(_load(model), scheme=scheme, range_sync=range_sync)
        quantized.save(output)
        _coverage_table(dqat.coverage(quantized))


@app.command(epilog="Example: `dqat export qat.keras model.tflite`")
def export(
    model: ModelPath,
    file: Annotated[pathlib.Path, typer.Argument(help="The .tflite file to write.")],
    target: Annotated[
        str, typer.Option(help="Where it is to run: tflite, edgetpu, nnapi or microcontroller.")
    ] = "tflite",
    as_json: AsJson = False,
) -> None:
    """Write a trained quantization-aware model as an integer-only TFLite file.

    Exit status 1 where the target does not run an operator of it.
    """
    with _errors_in_one_line():
        import dqat

        report = dqat.export_tflite(_load(model), file, target=target)
    if as_json:
        _print_json(dataclasses.asdict(report))
    else:
        _table(
            f"{report.path}: {report.size} bytes, {' '.join(report.operators)}",
            ["quantizer", "scale", "zero point"],
            [(path, f"{scale:.9g}", zero_point) for path, (scale, zero_point) in report.parameters.items()],
        )
        for fallback in report.fallbacks:
            typer.echo(str(fallback))
    if any(fallback.certain for fallback in report.fallbacks):
        raise typer.Exit(_NO)


@app.command(epilog="Example: `dqat verify qat.keras model.tflite samples.npy --within-1-lsb 0.995`")
def verify(
    model: ModelPath,
    file: TflitePath,
    data: Annotated[pathlib.Path, typer.Argument(help="Samples, float32 [samples, ...], as NumPy's .npy.")],
    within_1_lsb: Annotated[
        float, typer.Option(min=0, max=1, help="Exit status 1 where a smaller share of the outputs agrees.")
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Compare a model's simulation with the exported file, in steps of the output's integers."""
    with _errors_in_one_line():
        import numpy as np

        import dqat
        from dqat.export.inspection import inspect_tflite

        inspect_tflite(file)  # a damaged file is found before the model is loaded
        report = dqat.verify(_load(model), file, np.load(data, allow_pickle=False))
    names = ("equal", "within_1_lsb", "max_lsb", "same_class", "kernels")
    if as_json:
        layers = [dataclasses.asdict(layer) for layer in report.layers]
        _print_json({**{name: getattr(report, name) for name in names}, "layers": layers})
    else:
        _table("Parity", ["", ""], [(name, getattr(report, name)) for name in names])
        _table(
            "By layer",
            ["layer", "equal", "within 1 LSB", "largest difference"],
            [(layer.name, f"{layer.equal:.4f}", f"{layer.within_1_lsb:.4f}", layer.max_lsb) for layer in report.layers],
        )
    if report.within_1_lsb < within_1_lsb:
        raise typer.Exit(_NO)


def _load(path: pathlib.Path) -> Any:
    from dqat.keras_api import keras

    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return keras.models.load_model(path, compile=False)


def _coverage_table(coverage: Any) -> None:
    _table(
        "Coverage",
        ["layer", "kind", "tensor", "quantized"],
        [(row.layer, row.kind, row.tensor, row.how) for row in coverage.rows],
    )


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
