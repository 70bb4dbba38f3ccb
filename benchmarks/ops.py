"""dqat's ops against TensorFlow's, against tfmot's composition, and against a plain pass over the memory.

python -m benchmarks.ops [--json FILE] [--plot FILE] [--threads N] [--quick] [--gpu]

What is timed is the kernel, not Python: single ops are called eagerly on tensors that exist already, which costs
some 20 microseconds a call for all alike; what is several ops (a training step's quantizer) runs as a
`tf.function`, ours as well as tfmot's, and with the same small ops for the averages. Outputs are allocated and
freed within the measured time, by TensorFlow's allocator, for all alike. The plain pass is `x * 0.5`, per channel
too; for gradients, which read two tensors, it is `dy * x`, and for steps it is a `tf.function` as well.
`x * c[channels]` is TensorFlow's multiplication with a constant for each channel.

On a GPU a measured time is that of 20 calls in a row and of waiting for the device; tensors are larger there, so that
the device is busy longer than Python needs to launch the next call.

Each number of threads has a process of its own, because TensorFlow fixes its pools when it starts. `timing.py`
says how a busy machine is kept out of the ratios. About 3 minutes on two cores.
"""

import datetime
import multiprocessing
import pathlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import tensorflow as tf
import typer

import dqat
from benchmarks import report
from benchmarks.contenders import Call, contenders
from benchmarks.timing import take_turns

Shape = tuple[int, ...]

IMAGES, SQUARE, SEQUENCES = (64, 56, 56, 64), (1024, 1024), (32, 128, 512)
SHAPES: tuple[Shape, ...] = (IMAGES, SQUARE, SEQUENCES, (1024, 4096), (1, 1, 512, 1024))
THREADS = (1, 2)
QUICK_SHAPES: tuple[Shape, ...] = ((8, 16),)
GPU_SHAPES: tuple[Shape, ...] = ((256, 56, 56, 64), (8192, 8192), (256, 512, 512), (16384, 4096), (1, 1, 512, 1024))
GPU_CALLS = 20

#: For each contender of a case; slow peers take longer for their fewest rounds.
SECONDS = 0.3


@dataclass(frozen=True)
class Comparison:
    """One of ours against one peer; targets are ratios, peer time over ours, for two threads."""

    what: str
    ours: str
    peer: str
    theirs: str
    per_tensor: float | None = None
    per_channel: float | dict[Shape, float] | None = None

    def target(self, shape: Shape, per_channel: bool, threads: int) -> float | None:
        """The ratio to reach, where there is one."""
        if threads != 2:
            return None
        target = self.per_channel if per_channel else self.per_tensor
        return target.get(shape) if isinstance(target, dict) else target


#: "at most 1.25 times the pass" as a ratio.
_NEAR_A_PASS = 1 / 1.25

COMPARISONS = (
    Comparison("fake_quant", "forward", "TF op", "tf_forward", 1.0, {IMAGES: 4, SQUARE: 10, SEQUENCES: 10}),
    Comparison("gradient", "gradient", "TF op", "tf_gradient", 1.2, {IMAGES: 8, SQUARE: 20, SEQUENCES: 20}),
    Comparison("tracked gradient", "tracked_gradient", "TF op", "tf_gradient", 1.2),
    Comparison("delayed step", "delayed_step", "tfmot step", "tfmot_step", 2.0, 8.0),
    Comparison("exact step", "exact_step", "tfmot step", "tfmot_step"),
    Comparison("Quantizer step", "quantizer_step", "tfmot step", "tfmot_step"),
    # What no quantizer could beat: a step that only multiplies with a constant.
    Comparison("plain step", "pass_step", "tfmot step", "tfmot_step"),
    Comparison("fake_quant", "forward", report.PASS, "pass"),
    Comparison("fake_quant_track", "track", report.PASS, "pass", _NEAR_A_PASS, _NEAR_A_PASS),
    Comparison("fake_quant_track", "track", "x * c[channels]", "pass_by_channel"),
    Comparison("min_max + fake_quant", "exact", report.PASS, "pass"),
    Comparison("gradient", "gradient", report.PASS, "pass_of_two"),
    Comparison("delayed step", "delayed_step", report.PASS, "pass_step"),
)


def measure_case(shape: Shape, per_channel: bool, threads: int, seconds: float = SECONDS) -> list[report.Row]:
    """The rows of one shape, in this process.

    Args:
        shape: of the tensor.
        per_channel: a range for each channel of the last axis, or one for the tensor.
        threads: what this process runs with; goes into the rows.
        seconds: see `timing.take_turns`.
    """
    rounds = take_turns(contenders(shape, per_channel), seconds)
    granularity = "channel" if per_channel else "tensor"
    case = f"{'x'.join(map(str, shape))} per {granularity}, {threads} thread{'s' * (threads > 1)}"
    return [
        {
            **rounds.row(case, each.what, each.ours, each.theirs, each.peer),
            "target": each.target(shape, per_channel, threads),
        }
        for each in COMPARISONS
    ]


def _in_a_row(call: Call) -> Call:
    def calls() -> None:
        for _ in range(GPU_CALLS):
            call()
        tf.test.experimental.sync_devices()

    return calls


def measure_gpu(shapes: Sequence[Shape], seconds: float = SECONDS) -> list[report.Row]:
    """The rows of all shapes on the first GPU, in this process; there are no targets.

    Raises:
        RuntimeError: where TensorFlow sees no GPU, or dqat has no kernels for it.
    """
    if not (tf.config.list_physical_devices("GPU") and dqat.build_info()["cuda"]):
        raise RuntimeError("no GPU, or a build of dqat without CUDA kernels: see `dqat doctor`")
    rows: list[report.Row] = []
    with tf.device("GPU:0"):
        for shape in shapes:
            for per_channel in (False, True):
                rounds = take_turns({k: _in_a_row(v) for k, v in contenders(shape, per_channel).items()}, seconds)
                case = f"{'x'.join(map(str, shape))} per {'channel' if per_channel else 'tensor'}, GPU"
                for each in COMPARISONS:
                    row = rounds.row(case, each.what, each.ours, each.theirs, each.peer)
                    rows.append({**row, "seconds": row["seconds"] / GPU_CALLS, "target": None})
    return rows


def _measure(shapes: Sequence[Shape], threads: int, seconds: float) -> list[report.Row]:
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    rows = []
    for shape in shapes:
        for per_channel in (False, True):
            rows += measure_case(shape, per_channel, threads, seconds)
            print(f"timed {rows[-1]['case']}", flush=True)
    return rows


def measure(shapes: Sequence[Shape], threads: int, seconds: float = SECONDS) -> list[report.Row]:
    """The rows of all shapes, per tensor and per channel, from a new process with that many threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, shapes, threads, seconds).result()


def machine() -> dict[str, Any]:
    """Where and with what the figures were made."""
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else "unknown",
        "cores": multiprocessing.cpu_count(),
        "gpus": [
            tf.config.experimental.get_device_details(gpu).get("device_name", "unknown")
            for gpu in tf.config.list_physical_devices("GPU")
        ],
        "date": datetime.date.today().isoformat(),
        "tensorflow": tf.__version__,
        "dqat": dqat.build_info(),
    }


def main(
    json: Annotated[pathlib.Path | None, typer.Option(help="Write the rows here.")] = None,
    plot: Annotated[pathlib.Path | None, typer.Option(help="Draw the ratios here, as PNG.")] = None,
    threads: Annotated[int | None, typer.Option(help="Only with that many; otherwise with 1, then 2.")] = None,
    quick: Annotated[bool, typer.Option(help="One tiny shape, to see that it runs.")] = False,
    gpu: Annotated[bool, typer.Option(help="On the first GPU instead of the CPU.")] = False,
) -> None:
    """Times dqat's ops and prints the ratios."""
    shapes, seconds = (QUICK_SHAPES, 0.0) if quick else (SHAPES, SECONDS)
    if gpu:
        rows = measure_gpu(QUICK_SHAPES if quick else GPU_SHAPES, seconds)
    else:
        rows = [row for each in ([threads] if threads else THREADS) for row in measure(shapes, each, seconds)]
    where = machine()
    report.print_ratios(rows, where)
    if json is not None:
        report.write_json(rows, where, json)
    if plot is not None:
        report.plot_ratios(rows, where, plot)


if __name__ == "__main__":
    typer.run(main)
