"""A quantization-aware recurrent layer's training step against Keras' float layer and a loop of fake-quant ops.

python -m benchmarks.recurrent [--json FILE] [--quick] [--match TEXT] [--seconds S] [--no-memory]

A step is the forward pass and the gradients of all weights, as a `tf.function`, of a model of one layer that
returns sequences, and the mean square of its output as loss. Ours is what `dqat.quantize_model` makes of it: the
input's quantizer, the ranges' records and the observers are within the time. The loop is what one would write
with TensorFlow alone: `RNN` over a cell whose input, weights and states go through
`tf.quantization.fake_quant_with_min_max_vars` in every timestep, with ranges that stand still. Against the limit,
"one matmul", stand three products with as many multiplications as the step's, one for the forward pass and two for
the gradients, over all timesteps at once.

Contenders take turns in one process with two threads (`timing.py`). Peak memory (Linux with glibc) is how far steps
raise the resident memory of a process that has run the same graph with a batch of one and given back what that left
unused; each contender has a process of its own.
"""

import ctypes
import gc
import multiprocessing
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import tensorflow as tf
import typer
from rich.console import Console
from rich.table import Table

import dqat
from benchmarks import report
from benchmarks.ops import machine
from benchmarks.timing import take_turns
from dqat.keras_api import keras

THREADS = 2
#: For each contender of a case; the fewest rounds take longer.
SECONDS = 2.0
LAYERS = {"LSTM": keras.layers.LSTM, "GRU": keras.layers.GRU}
_GATES = {"LSTM": 4, "GRU": 3}
MATMUL = "one matmul"


@dataclass(frozen=True)
class Case:
    """A layer on a batch of sequences; `target` is Keras' time over ours that is to be reached."""

    time: int
    features: int
    units: int
    batch: int
    target: float | None = None
    layer: str = "LSTM"

    def __str__(self) -> str:
        return f"{self.layer} T={self.time} F={self.features} U={self.units} B={self.batch}, {THREADS} threads"

    def flop(self) -> float:
        """Of the products of a step: forwards, to the weights, and to the hidden states."""
        rows, columns = self.batch * self.time, _GATES[self.layer] * self.units
        return 2.0 * rows * columns * (2 * (self.features + self.units) + self.units)

    def inputs(self) -> tf.Tensor:
        """The batch, always the same."""
        shape = (self.batch, self.time, self.features)
        return tf.random.stateless_normal(shape, seed=(1, 2))


CASES = (
    Case(28, 64, 128, 32, 1.0),
    Case(50, 64, 512, 32, 1.25),
    Case(50, 512, 512, 32, 1.25),
    Case(100, 128, 1024, 16, 1.0),
)
QUICK_CASES = (Case(3, 4, 5, 2),)
#: The loop's time over ours.
LOOP_TARGET = 3.0


class FakeQuantCell(keras.layers.Layer):
    """A Keras cell with TensorFlow's fake-quant ops on input, weights and states, in every timestep."""

    def __init__(self, cell: keras.layers.Layer) -> None:
        super().__init__()
        self.cell, self.state_size, self.output_size = cell, cell.state_size, cell.output_size

    def build(self, input_shape: Any) -> None:
        """Builds the cell and its ranges."""
        self.cell.build(input_shape)
        self.bounds = [
            [
                self.add_weight(shape=[], initializer=keras.initializers.Constant(end), trainable=False)
                for end in (-b, b)
            ]
            for b in (4.0, 1.0, 1.0, 1.0, 8.0)
        ]
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, states: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """One timestep."""
        x_bounds, kernel_bounds, recurrent_bounds, *state_bounds = self.bounds
        quantize = tf.quantization.fake_quant_with_min_max_vars
        kept = {name: getattr(self.cell, name) for name in ("kernel", "recurrent_kernel")}
        for (name, weight), bounds in zip(kept.items(), (kernel_bounds, recurrent_bounds), strict=True):
            object.__setattr__(self.cell, name, quantize(weight, *bounds))
        _output, states = self.cell.call(quantize(inputs, *x_bounds), tf.nest.flatten(states))
        for name, weight in kept.items():
            object.__setattr__(self.cell, name, weight)
        bits = (8, 16)
        states = [
            quantize(state, *bounds, num_bits=n)
            for state, bounds, n in zip(tf.nest.flatten(states), state_bounds, bits, strict=False)
        ]
        return states[0], states


def _model(case: Case, layer: keras.layers.Layer) -> keras.Model:
    inputs = keras.Input((case.time, case.features))
    return keras.Model(inputs, layer(inputs))


def _float(case: Case) -> keras.Model:
    return _model(case, LAYERS[case.layer](case.units, return_sequences=True))


def _loop(case: Case) -> keras.Model:
    cells = {"LSTM": keras.layers.LSTMCell, "GRU": keras.layers.GRUCell}
    return _model(case, keras.layers.RNN(FakeQuantCell(cells[case.layer](case.units)), return_sequences=True))


#: Who takes part, with a model of a case.
MODELS: dict[str, Callable[[Case], keras.Model]] = {
    "QAT": lambda case: dqat.quantize_model(_float(case)),
    "Keras float": _float,
    "fake-quant loop": _loop,
}


def step_of(model: keras.Model, case: Case) -> Callable[[tf.Tensor], Any]:
    """The model's training step."""

    @tf.function(input_signature=[tf.TensorSpec([None, case.time, case.features])])
    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True)))
        return tape.gradient(loss, model.trainable_variables)

    return step


def products(case: Case) -> Callable[[], Any]:
    """As many multiplications as a step has, in three products."""
    rows, columns = case.batch * case.time, _GATES[case.layer] * case.units
    left = tf.random.stateless_normal((rows, case.features + case.units), seed=(1, 2))
    right = tf.random.stateless_normal((case.features + case.units, columns), seed=(3, 4))
    slope = tf.random.stateless_normal((rows, columns), seed=(5, 6))

    @tf.function
    def run() -> Any:
        hidden = right[: case.units]
        return left @ right, tf.matmul(left, slope, transpose_a=True), tf.matmul(slope, hidden, transpose_b=True)

    return run


def is_quantizable(case: Case) -> bool:
    """Whether dqat has a quantized layer for the case."""
    try:
        MODELS["QAT"](case)
    except ValueError:
        return False
    return True


def _set_threads() -> None:
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)


def _resident(key: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most since the mark was set back."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) / 1024


def _peak(case: Case, name: str) -> float:
    _set_threads()
    step, x = step_of(MODELS[name](case), case), case.inputs()
    for _ in range(2):
        step(x[:1])
    # Building the layer may have taken more than a step does: the mark and the free memory of then would hide it.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    for _ in range(3):
        step(x)
    return _resident("VmHWM") - before


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure_case(case: Case, peaks: dict[str, float], seconds: float = SECONDS) -> list[report.Row]:
    """The rows of one case, in this process.

    Args:
        case: the layer and its shape.
        peaks: MiB by contender, which go into the rows.
        seconds: see `timing.take_turns`.
    """
    x = case.inputs()
    steps = {name: step_of(model(case), case) for name, model in MODELS.items()}
    calls = {name: (lambda step=step: step(x)) for name, step in steps.items()}
    rounds = take_turns({**calls, MATMUL: products(case)}, seconds)
    targets = {"Keras float": case.target, "fake-quant loop": LOOP_TARGET if case.target else None}
    return [
        {
            **rounds.row(str(case), "training step", "QAT", peer),
            "target": targets.get(peer),
            "gflops": case.flop() / rounds.fastest("QAT") / 1e9,
            "peer_gflops": case.flop() / rounds.fastest(peer) / 1e9,
            "peak_mib": peaks.get("QAT"),
            "peer_peak_mib": peaks.get(peer),
        }
        for peer in ("Keras float", "fake-quant loop", MATMUL)
    ]


def _measure(case: Case, peaks: dict[str, float], seconds: float) -> list[report.Row]:
    _set_threads()
    return measure_case(case, peaks, seconds)


def measure(case: Case, seconds: float = SECONDS, memory: bool = True) -> list[report.Row]:
    """The rows of a case, from new processes with two threads; peak memory is measured where `memory`."""
    peaks = {name: in_new_process(_peak, case, name) for name in MODELS} if memory else {}
    rows = in_new_process(_measure, case, peaks, seconds)
    print(f"timed {case}", flush=True)
    return rows


def print_rates(rows: Sequence[report.Row]) -> None:
    """Prints GFLOP/s of the fastest round, and peak memory."""
    table = Table(title="GFLOP/s of the products' multiplications in the fastest round (peak memory, MiB)")
    contenders = ["QAT", *dict.fromkeys(row["peer"] for row in rows)]
    for column in ("case", *contenders):
        table.add_column(column)
    for case in dict.fromkeys(row["case"] for row in rows):
        group = [row for row in rows if row["case"] == case]
        pairs = [(group[0]["gflops"], group[0]["peak_mib"])]
        pairs += [(row["peer_gflops"], row["peer_peak_mib"]) for row in group]
        table.add_row(case, *(f"{rate:.0f}" + (f" ({peak:.0f})" if peak is not None else "") for rate, peak in pairs))
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)


def main(
    json: Annotated[pathlib.Path | None, typer.Option(help="Write the rows here.")] = None,
    quick: Annotated[bool, typer.Option(help="One tiny case, to see that it runs.")] = False,
    match: Annotated[str, typer.Option(help='Only cases with this in their name, such as "GRU T=28".')] = "",
    seconds: Annotated[float, typer.Option(help="For each contender of a case.")] = SECONDS,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
) -> None:
    """Times a training step of recurrent layers and prints the ratios."""
    cases = [*(QUICK_CASES if quick else CASES)]
    cases += [Case(c.time, c.features, c.units, c.batch, layer="GRU") for c in cases]
    names = [str(case) for case in cases]
    cases = [case for case, name in zip(cases, names, strict=True) if match in name]
    if not cases:
        raise typer.BadParameter(f"--match {match!r} is in none of the cases' names: {', '.join(names)}")
    seconds = 0.0 if quick else seconds
    rows = [row for case in cases if is_quantizable(case) for row in measure(case, seconds, memory)]
    where = machine()
    report.print_ratios(rows, where)
    print_rates(rows)
    if json is not None:
        report.write_json(rows, where, json)


if __name__ == "__main__":
    typer.run(main)
