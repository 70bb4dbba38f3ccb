"""The `dqat` command.

Exit status: 0 all is well, 1 the answer is no (files differ, parity missed, something needed is missing), 2 a
wrong argument or a file that can't be used, with one line on the standard error that says why.
"""

import dataclasses
import json
import os
import pathlib
import sys
import zipfile
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


@contextmanager
def _native_words_hidden() -> Iterator[None]:
    """What TensorFlow's C++ writes to the standard error while it converts is no message to the user."""
    sys.stderr.flush()
    ours, shown = os.dup(2), sys.stderr
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    if shown is sys.__stderr__:  # else it leads elsewhere already
        # What Python writes comes through. It stays open: loggers that are made meanwhile keep it.
        sys.stderr = open(os.dup(ours), "w", buffering=1)  # noqa: SIM115
    try:
        yield
    finally:
        sys.stderr = shown
        os.dup2(ours, 2)
        os.close(ours)


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
                "told": found.told,
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
    _metadata_table(found)
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


def _metadata_table(found: Any) -> None:
    told = found.told
    if not told:
        return
    training = told["training"]
    start, freeze = training["observed"]
    window = f"observed from step {start} " + ("on" if freeze is None else f"to {freeze}")
    typer.echo(
        f"model {told['model']!r}, written by dqat {told['dqat']} with TensorFlow {told['tensorflow']}; "
        f"{training['steps']} quantization-aware steps, ranges {training['range_sync']}, {window}"
    )
    _table(
        "Quantizers",
        ["quantizer", "spec", "observer", "range", "scale", "zero point"],
        [
            (
                path,
                one["spec"],
                one["observer"],
                f"{one['min']:.4g} to {one['max']:.4g}",
                f"{one['scale']:.9g}",
                one["zero_point"],
            )
            for path, one in told["quantizers"].items()
        ],
    )


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
    scheme: Annotated[str, typer.Option(help="int8, w8a16 (16x8), or bits of weights and activations: w4a8.")] = "int8",
    range_sync: Annotated[str, typer.Option(help="delayed, exact or off.")] = "delayed",
    as_json: AsJson = False,
) -> None:
    """Make a quantization-aware model of a float one, ready to be trained, and show what is quantized."""
    with _errors_in_one_line(), _native_words_hidden():
        import dqat

        quantized = dqat.quantize_model(_load(model), scheme=scheme, range_sync=range_sync)
        if output.suffix not in (".keras", ".h5"):
            raise ValueError(f"output must end in .keras or .h5, got {output}")
        output.parent.mkdir(parents=True, exist_ok=True)
        quantized.save(output)
        coverage = dqat.coverage(quantized)
    if as_json:
        _print_json([dataclasses.asdict(row) for row in coverage.rows])
    else:
        _coverage_table(coverage)


@app.command(epilog="Example: `dqat export qat.keras model.tflite`")
def export(
    model: ModelPath,
    file: Annotated[pathlib.Path, typer.Argument(help="The .tflite file to write.")],
    target: Annotated[
        str, typer.Option(help="Where it is to run: tflite, edgetpu, nnapi or microcontroller.")
    ] = "tflite",
    io: Annotated[
        str | None, typer.Option(help="Type of inputs and outputs: int8, int16 or float32; else the activations' own.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=0, help="Samples a call; 0 for any number.")] = 1,
    streaming: Annotated[bool, typer.Option("--streaming", help="One frame a call, for recurrent models.")] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Recurrent cells in a loop, not one after another.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a trained quantization-aware model as an integer-only TFLite file.

    Exit status 1 where the target does not run an operator of it.
    """
    with _errors_in_one_line(), _native_words_hidden():
        import dqat

        options = {"target": target, "io": io, "streaming": streaming, "loop": loop}
        report = dqat.export_tflite(_load(model), file, batch_size=batch_size or None, **options)
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


@app.command(
    epilog="Examples: `dqat verify qat.keras model.tflite samples.npy --within-1-lsb 0.995`, "
    "`dqat verify qat.keras model.tflite samples.npy --labels labels.npy --html report.html`"
)
def verify(
    model: ModelPath,
    file: TflitePath,
    data: Annotated[pathlib.Path, typer.Argument(help="Samples [samples, ...] as .npy; several inputs as .npz.")],
    labels: Annotated[pathlib.Path | None, typer.Option(help="Labels as .npy, for the task metric.")] = None,
    metric: Annotated[str | None, typer.Option(help="accuracy or mse; by default what suits the labels.")] = None,
    float_model: Annotated[
        pathlib.Path | None, typer.Option("--float", help="The float model (.keras): its metric, size and latency.")
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="tensorflow, or litert where ai-edge-litert is installed.")
    ] = "tensorflow",
    kernels: Annotated[str, typer.Option(help="default, or builtin (without XNNPACK).")] = "default",
    layer_samples: Annotated[int, typer.Option(min=0, help="Samples that are compared by layer.")] = 16,
    within_1_lsb: Annotated[
        float, typer.Option(min=0, max=1, help="Exit status 1 where a smaller share of the outputs agrees.")
    ] = 0.0,
    html: Annotated[pathlib.Path | None, typer.Option(help="Write a report with plots here (one file).")] = None,
    markdown: Annotated[pathlib.Path | None, typer.Option(help="Write a report in Markdown here.")] = None,
    log: Annotated[
        pathlib.Path | None, typer.Option(help="What callbacks.RangeWatch logged, for the report's plots.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a model's simulation with the exported file, by output and by layer, in steps of the integers.

    Exit status 1 where --within-1-lsb is missed, or a layer parts.
    """
    with _errors_in_one_line(), _native_words_hidden():
        import numpy as np

        import dqat
        from dqat.export.inspection import inspect_tflite

        inspect_tflite(file)  # a damaged file is found before the model is loaded
        loaded, floats = _load(model), None if float_model is None else _load(float_model)
        samples = np.load(data, allow_pickle=False)
        samples = dict(samples) if isinstance(samples, np.lib.npyio.NpzFile) else samples
        report = dqat.verify(
            loaded,
            file,
            samples,
            labels=None if labels is None else np.load(labels, allow_pickle=False),
            metric=metric,
            float_model=floats,
            kernels=kernels,
            runtime=runtime,
            layer_samples=layer_samples,
        )
        if html is not None or markdown is not None:
            from dqat.report import Report

            written = Report.of(loaded, file, report, samples, float_model=floats, log=log)
            for path, content in ((html, written.html), (markdown, written.markdown)):
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(content())
    names = ("equal", "within_1_lsb", "max_lsb", "same_class", "metric", "figures", "kernels", "not_compared")
    if as_json:
        first = report.first_apart
        _print_json(
            {
                **{name: getattr(report, name) for name in names},
                "outputs": [dataclasses.asdict(output) for output in report.outputs],
                "layers": [{**dataclasses.asdict(layer), "cause": layer.cause} for layer in report.layers],
                "first_apart": None if first is None else first.name,
            }
        )
    else:
        _parity_tables(report, names)
    if report.within_1_lsb < within_1_lsb or report.first_apart is not None:
        raise typer.Exit(_NO)


def _parity_tables(report: Any, names: tuple[str, ...]) -> None:
    _table(
        "Parity", ["", ""], [(name, getattr(report, name)) for name in names if getattr(report, name) not in (None, {})]
    )
    _table(
        "By output",
        ["output", "equal", "within 1 LSB", "largest", "SNR, dB"],
        [
            (one.name, f"{one.equal:.4f}", f"{one.within_1_lsb:.4f}", one.max_lsb, f"{one.snr_db:.1f}")
            for one in report.outputs
        ],
    )
    if report.layers:
        _table(
            "By layer: all that has gathered on the way, and alone (with the file's inputs); "
            "reference: values that the layer's integer reference gives too",
            [
                *("quantizer", "equal", "within 1 LSB", "largest", "SNR, dB"),
                *("alone: equal", "within 1 LSB", "largest", "reference", ""),
            ],
            [
                (
                    one.name,
                    f"{one.equal:.4f}",
                    f"{one.within_1_lsb:.4f}",
                    one.max_lsb,
                    f"{one.snr_db:.1f}",
                    f"{one.own_equal:.4f}",
                    f"{one.own_within_1_lsb:.4f}",
                    one.own_max_lsb,
                    "" if one.reference_equal is None else f"{one.reference_equal:.4f}",
                    " ".join((["PARTS"] if one.parts else []) + ([] if one.same_parameters else ["other scale"])),
                )
                for one in report.layers
            ],
        )
    first = report.first_apart
    if first is not None:
        typer.echo(f"file and simulation part first at {first.name} (layers {', '.join(first.layers)})")
        if first.explanation:
            typer.echo(first.explanation)


def _load(path: pathlib.Path) -> Any:
    from dqat.keras_api import keras

    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return keras.models.load_model(path, compile=False)
    except (OSError, ValueError, TypeError, KeyError, ImportError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} can't be loaded as a Keras model: {error}") from None


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
