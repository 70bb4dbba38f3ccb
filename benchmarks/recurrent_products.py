"""The products of an LSTM's step by dqat's kernel and by TensorFlow's, with Eigen and with oneDNN.

python -m benchmarks.recurrent_products [--json FILE] [--quick]

A case is the inputs' share of all timesteps, one timestep's recurrent product, or a weight's gradient, at the sizes of
`benchmarks.recurrent`. Each library has a process of its own, with two threads, in which it and dqat's `Dqat>MatMul`
take turns. Several products with one matrix are one graph, so that starting an op doesn't count; both sides pack that
matrix for every product there, where the LSTM's own kernel does it once a step. Beside the times stands what speed
doesn't show: of how many rows the bits are others when the same rows come in a batch of half the size, of three rows
or of one.
"""

import os
import pathlib
from typing import Annotated, Any

import numpy as np
import tensorflow as tf
import typer
from rich.console import Console
from rich.table import Table

import dqat
from benchmarks import recurrent, report
from benchmarks.ops import machine
from benchmarks.timing import take_turns

LIBRARIES = {"Eigen": "0", "oneDNN": "1"}
_SWITCH = "TF_ENABLE_ONEDNN_OPTS"
#: Products in one graph.
REPEATS = 16


def shapes(case: recurrent.Case) -> dict[str, tuple[int, int, int]]:
    """Rows, columns and depth of a step's products."""
    rows, gates = case.batch * case.time, 4 * case.units
    return {
        "inputs": (rows, gates, case.features),
        "recurrent": (case.batch, gates, case.units),
        "weight gradient": (case.units, gates, rows),
    }


def _times(shape: tuple[int, int, int], seconds: float) -> Any:
    rows, columns, depth = shape
    repeats = REPEATS if rows * columns * depth < 2**26 else 1
    a = tf.random.stateless_normal((repeats, rows, depth), seed=(1, 2))
    b = tf.random.stateless_normal((depth, columns), seed=(3, 4))

    def contender(product: Any) -> Any:
        step = tf.function(lambda left: [tf.reduce_max(product(part, b)[:1, :1]) for part in tf.unstack(left)])
        return lambda: step(a)

    return take_turns({"dqat": contender(dqat.ops.matmul), "library": contender(tf.matmul)}, seconds), repeats


def other_bits(product: Any, shape: tuple[int, int, int]) -> float:
    """The share of rows whose bits are others in a batch of half the size, of three rows or of one."""
    rows, columns, depth = shape
    a = tf.random.stateless_normal((rows, depth), seed=(1, 2))
    b = tf.random.stateless_normal((depth, columns), seed=(3, 4))
    whole, differ = product(a, b).numpy(), np.zeros(rows, bool)
    for size in (max(1, rows // 2), 3, 1):
        part = product(a[:size], b).numpy()
        differ[: len(part)] |= np.any(whole[: len(part)] != part, axis=1)
    return float(differ[: max(1, rows // 2)].mean())


def measure(library: str, cases: list[recurrent.Case], seconds: float) -> list[dict[str, Any]]:
    """The rows of one library, which TensorFlow uses in this process."""
    found = []
    for case in cases:
        for what, shape in shapes(case).items():
            rounds, repeats = _times(shape, seconds)
            flop = 2.0 * shape[0] * shape[1] * shape[2] * repeats
            found.append(
                {
                    **rounds.row("x".join(map(str, shape)), what, "dqat", "library", library),
                    "target": None,
                    "gflops": flop / rounds.fastest("dqat") / 1e9,
                    "peer_gflops": flop / rounds.fastest("library") / 1e9,
                    "other_bits": other_bits(dqat.ops.matmul, shape),
                    "peer_other_bits": other_bits(tf.matmul, shape),
                }
            )
    return found


def _measure(library: str, cases: list[recurrent.Case], seconds: float) -> list[dict[str, Any]]:
    tf.config.threading.set_intra_op_parallelism_threads(recurrent.THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return measure(library, cases, seconds)


def main(
    json: Annotated[pathlib.Path | None, typer.Option(help="Write the rows here.")] = None,
    quick: Annotated[bool, typer.Option(help="One tiny case, to see that it runs.")] = False,
) -> None:
    """Times the products and prints rates and ratios."""
    cases, rows = [*(recurrent.QUICK_CASES if quick else recurrent.CASES)], []
    before = os.environ.get(_SWITCH)
    for library, switch in LIBRARIES.items():
        os.environ[_SWITCH] = switch  # read when the new process imports TensorFlow
        rows += recurrent.in_new_process(_measure, library, cases, 0.0 if quick else 0.5)
    os.environ.pop(_SWITCH) if before is None else os.environ.update({_SWITCH: before})
    table = Table(title="Products, GFLOP/s in the fastest round; rows whose bits depend on the batch")
    for column in ("rows x columns x depth", "product", "library", "its rate", "dqat's", "its time over dqat's"):
        table.add_column(column)
    table.add_column("its rows with other bits")
    table.add_column("dqat's")
    for row in rows:
        table.add_row(
            *(row[key] for key in ("case", "what", "peer")),
            *(f"{row[key]:.0f}" for key in ("peer_gflops", "gflops")),
            f"{row['ratio']:.2f}",
            *(f"{row[key]:.0%}" for key in ("peer_other_bits", "other_bits")),
        )
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)
    if json is not None:
        report.write_json(rows, machine(), json)


if __name__ == "__main__":
    typer.run(main)
