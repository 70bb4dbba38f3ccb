"""The cost of range sync: training steps with and without it, and a calculation for up to 4,096 workers.

python -m benchmarks.distribution [--json FILE] [--plot FILE] [--quick] [--processes N] [--case TEXT] [--no-exact]
    [--rounds N] [--latency S] [--bandwidth BYTES_PER_S]

Measured, on this machine: steps of models with 5 and 150 quantizers and of an LSTM on 1, 2 and 4 Horovod
processes, delayed and exact against off, taking turns in one run; how many range collectives a step has; and the
time of one Max all-reduce by size. Where processes outnumber cores they wait for each other's computation, too.
Steps on several processes of one machine take the shortest time, or 40 ms more, or 80: TCP on a busy loopback waits for
an acknowledgement (`nstat` counts TCPLossProbes), with sync and without. More rounds average that out: `--rounds 400`.

Calculated, from the measured time of a collective and of a message: one step's sync on up to 4,096 workers, packed
and with a collective for each quantizer (`collective_cost.py` says how). The latency of a message and the bandwidth
are those of TCP on this machine's loopback, unless you give those of your network.
"""

import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from json import loads
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.collective_cost import ALGORITHMS, QUANTIZERS, WORKERS, Cost, Network, costs
from benchmarks.ops import machine
from benchmarks.timing import Rounds

PROCESSES = (1, 2, 4)


def run_processes(
    processes: int, quick: bool, case: str = "", exact: bool = True, rounds: int | None = None
) -> dict[str, Any]:
    """What `benchmarks.replica_steps` finds on that many processes, in the cases whose name contains `case`."""
    horovodrun = shutil.which("horovodrun", path=os.path.dirname(sys.executable))
    if horovodrun is None:
        raise SystemExit("horovodrun is not beside this Python: install dqat[horovod] as the Makefile does")
    prefix = [] if processes == 1 else [horovodrun, "-np", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "found.json")
        command = [*prefix, sys.executable, "-m", "benchmarks.replica_steps", str(file), "--case", case]
        command += ["--quick"] * quick + ["--no-exact"] * (not exact)
        command += [] if rounds is None else ["--rounds", str(rounds)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return loads(file.read_text())


def rows_of(found: dict[str, Any]) -> list[report.Row]:
    """Rows of one number of processes: each mode's step against the step without sync."""
    rows = []
    for case in found["cases"]:
        rounds = Rounds(case["seconds"])
        for mode in sorted(set(case["seconds"]) - {"off"}):
            name = f"{case['case']}, {found['processes']} process{'es' * (found['processes'] > 1)}"
            rows.append(
                {
                    **rounds.row(name, f"{mode} step", mode, "off", "step without sync"),
                    "processes": found["processes"],
                    "quantizers": case["quantizers"],
                    "collectives": case["collectives"][mode],
                }
            )
    return rows


def measure_tcp(rounds: int = 300, size: int = 1 << 22) -> tuple[float, float]:
    """Seconds of a small message one way, and bytes a second, over TCP on the loopback."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(rounds):
                connection.sendall(connection.recv(8))
            left = size
            while left:
                left -= len(connection.recv(min(left, 1 << 20)))
            connection.sendall(b"received")

    thread = threading.Thread(target=answer)
    thread.start()
    with server, socket.create_connection(server.getsockname()) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            client.sendall(b"8 bytes.")
            client.recv(8)
            times.append((time.perf_counter() - start) / 2)
        start = time.perf_counter()
        client.sendall(bytes(size))
        client.recv(8)
        seconds = time.perf_counter() - start
        thread.join()
    return statistics.median(times), size / seconds


def calculated_rows(found: Sequence[Cost]) -> list[report.Row]:
    """Packed against a collective for each quantizer."""
    return [
        {
            "case": f"{cost.workers} workers, {cost.algorithm}, {cost.quantizers} quantizers",
            "what": "one step's sync, calculated",
            "seconds": cost.packed,
            "peer": "a collective a quantizer",
            "ratio": cost.each / cost.packed,
        }
        for cost in found
    ]


def print_steps(rows: Sequence[report.Row], where: dict[str, Any]) -> None:
    """One line a model and number of processes."""
    table = Table(
        title="A training step's time over that of the step without sync. Median of rounds (of fastest)",
        caption=report.caption([{"target": None, **row} for row in rows], where),
    )
    for name in ("case", "quantizers", "ms, delayed", "delayed / off", "collectives", "exact / off", "collectives"):
        table.add_column(name, justify="left" if name == "case" else "right")
    for delayed in rows:
        if delayed["what"] != "delayed step":
            continue
        cells = [delayed["case"], str(delayed["quantizers"]), f"{delayed['seconds'] * 1e3:.1f}"]
        for row in (row for row in rows if row["case"] == delayed["case"]):
            cells += [f"{1 / row['ratio']:.3f} ({1 / row['ratio_of_fastest']:.3f})", str(row["collectives"])]
        table.add_row(*cells)
    Console(width=150).print(table)


def print_costs(found: Sequence[Cost], network: Network) -> None:
    """One line a number of workers; milliseconds packed / a collective each."""
    table = Table(
        title="One step's sync, calculated: milliseconds in one collective / in one for each quantizer",
        caption=(
            f"{network.start * 1e3:.2f} ms to start a collective, messages of {network.latency * 1e6:.1f} µs and "
            f"{network.bandwidth / 1e9:.1f} GB/s; {network.workers_per_host} workers a host in the hierarchy"
        ),
    )
    table.add_column("workers", justify="right")
    by = {(cost.algorithm, cost.workers, cost.quantizers): cost for cost in found}
    columns = [(algorithm, quantizers) for algorithm in ALGORITHMS for quantizers in QUANTIZERS]
    for algorithm, quantizers in columns:
        table.add_column(f"{algorithm}\n{quantizers} quantizers", justify="right")
    for workers in WORKERS:
        cells = [by[algorithm, workers, quantizers] for algorithm, quantizers in columns]
        table.add_row(f"{workers:,}", *(f"{cost.packed * 1e3:.3g} / {cost.each * 1e3:.3g}" for cost in cells))
    Console(width=190).print(table)


def plot_costs(found: Sequence[Cost], network: Network, path: pathlib.Path) -> None:
    """A panel a number of quantizers: seconds by workers, packed as lines, a collective each as dashes."""
    # Not at the top: matplotlib is for those who plot.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(QUANTIZERS), figsize=(14, 4.6), sharey=True, layout="constrained")
    for axis, quantizers in zip(axes, QUANTIZERS, strict=True):
        for colour, algorithm in zip(("tab:blue", "tab:orange", "tab:green"), ALGORITHMS, strict=True):
            line = [cost for cost in found if (cost.algorithm, cost.quantizers) == (algorithm, quantizers)]
            workers = [cost.workers for cost in line]
            axis.plot(workers, [cost.packed * 1e3 for cost in line], color=colour, label=f"{algorithm}, packed")
            axis.plot(workers, [cost.each * 1e3 for cost in line], "--", color=colour, label=f"{algorithm}, one each")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_title(f"{quantizers} quantizers")
        axis.set_xlabel("workers")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds a step")
    axes[0].legend(fontsize=8)
    figure.suptitle(
        f"Range sync of one step, calculated from {network.start * 1e3:.2f} ms to start a collective, messages of "
        f"{network.latency * 1e6:.1f} µs and {network.bandwidth / 1e9:.1f} GB/s"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(
    json: Annotated[pathlib.Path | None, typer.Option(help="Write the rows here.")] = None,
    plot: Annotated[pathlib.Path | None, typer.Option(help="Draw the calculation here, as PNG.")] = None,
    quick: Annotated[bool, typer.Option(help="One tiny model, to see that it runs.")] = False,
    processes: Annotated[list[int] | None, typer.Option(help="Only so many; may be given several times.")] = None,
    case: Annotated[str, typer.Option(help="Only models whose name contains this.")] = "",
    exact: Annotated[bool, typer.Option(help="Exact mode, too.")] = True,
    rounds: Annotated[int | None, typer.Option(help="Rounds of each model, instead of its own number.")] = None,
    latency: Annotated[float | None, typer.Option(help="Seconds of a message between hosts.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Bytes a second between hosts.")] = None,
) -> None:
    """Times steps with and without range sync, and calculates what it costs on many workers."""
    rows, start = [], 0.0
    tcp_latency, tcp_bandwidth = measure_tcp()
    for count in processes or (PROCESSES[:2] if quick else PROCESSES):
        found = run_processes(count, quick, case, exact, rounds)
        rows += rows_of(found)
        print(f"timed {count} process{'es' * (count > 1)}", flush=True)
        if count == 2:
            # Two processes exchange two messages; the rest of the time is the engine's.
            start = max(0.0, min(found["all_reduce"].values()) - 2 * tcp_latency)
    where = {**machine(), "tcp_latency": tcp_latency, "tcp_bandwidth": tcp_bandwidth, "collective_start": start}
    network = Network(start, latency or tcp_latency, bandwidth or tcp_bandwidth, tcp_latency, tcp_bandwidth)
    calculated = costs(network)
    print_steps(rows, where)
    print_costs(calculated, network)
    if json is not None:
        report.write_json([*rows, *calculated_rows(calculated)], where, json)
    if plot is not None:
        plot_costs(calculated, network, plot)


if __name__ == "__main__":
    typer.run(main)
