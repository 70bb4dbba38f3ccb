"""How long a file takes for one call in an interpreter, and on what machine that was."""

import os
import pathlib
import platform
import statistics
import time
from dataclasses import dataclass

import numpy as np

from dqat.interpreter import describe, open_interpreter


@dataclass(frozen=True)
class Latency:
    """The time of one call.

    Attributes:
        milliseconds: the median of all calls.
        quartiles: the middle half of them, in milliseconds.
        calls: that were timed.
        threads: of the kernels.
        runtime: interpreter, its version, and its kernels.
        machine: the processor's name and its number of cores.
    """

    milliseconds: float
    quartiles: tuple[float, float]
    calls: int
    threads: int
    runtime: str
    machine: str


def machine() -> str:
    """The processor's name and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    information = pathlib.Path("/proc/cpuinfo")
    if information.exists():
        names = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        name = names[0] if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def measure(
    path: str | os.PathLike,
    *,
    kernels: str = "default",
    runtime: str = "tensorflow",
    threads: int = 1,
    seconds: float = 1.0,
) -> Latency:
    """Times calls of a file on random inputs.

    Args:
        path: a TFLite file, integer or float.
        kernels: "default" or "builtin".
        runtime: "tensorflow" or "litert".
        threads: of the kernels.
        seconds: how long; at least 5 calls run.

    Raises:
        ValueError: for a file that is no model, or other kernels or another runtime.
    """
    interpreter = open_interpreter(path, kernels, runtime, threads=threads)
    rng = np.random.default_rng(0)
    for details in interpreter.get_input_details():
        shape, dtype = details["shape"], details["dtype"]
        values = rng.normal(size=shape) if dtype == np.float32 else rng.integers(0, 100, shape)
        interpreter.set_tensor(details["index"], values.astype(dtype))
    interpreter.invoke()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        interpreter.invoke()
        times.append(1000.0 * (time.perf_counter() - start))
    low, _, high = statistics.quantiles(times, n=4)
    return Latency(statistics.median(times), (low, high), len(times), threads, describe(kernels, runtime), machine())
