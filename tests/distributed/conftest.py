import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

SCENARIOS = pathlib.Path(__file__).parent / "scenarios.py"
TIMEOUT = 600


def launch(processes, *command, environment=None):
    """Runs a command under horovodrun, or alone for one process; gives its CompletedProcess."""
    executable = shutil.which("horovodrun", path=os.path.dirname(sys.executable))
    prefix = [] if processes == 1 else [executable, "-np", str(processes)]
    return subprocess.run(
        [*prefix, sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, **(environment or {})},
    )


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def launch_workers(processes, *command, environment=None):
    """Runs a command on workers of a TF_CONFIG cluster on this machine; gives their (exit status, output)."""
    cluster = {"worker": [f"localhost:{port}" for port in _free_ports(processes)]}
    workers = [
        subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "CUDA_VISIBLE_DEVICES": "",
                "TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}),
                **(environment or {}),
            },
        )
        for index in range(processes)
    ]
    end = time.monotonic() + TIMEOUT
    try:
        outputs = [worker.communicate(timeout=max(1.0, end - time.monotonic()))[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(worker.returncode, output) for worker, output in zip(workers, outputs, strict=True)]


@pytest.fixture(scope="session")
def run_scenario(tmp_path_factory):
    """Runs a scenario on an engine's replicas; gives what each process found, and Horovod's timeline of the run.

    Runs it once per arguments.
    """
    results = {}

    def run(name, replicas, mode="delayed", engine="horovod"):
        engine = "none" if replicas == 1 else engine
        key = (name, replicas, mode, engine)
        if key in results:
            return results[key]
        folder = tmp_path_factory.mktemp(f"{name}_{engine}_{replicas}_{mode}")
        command = (str(SCENARIOS), name, mode, str(folder))
        timeline = folder / "timeline.json"
        if engine == "multiworker":
            done = launch_workers(replicas, *command)
            assert all(status == 0 for status, _ in done), "\n".join(output for _, output in done)
        else:
            environment = {"HOROVOD_TIMELINE": str(timeline)}
            if engine == "mirrored":
                environment = {"DQAT_ENGINE": "tf", "LOGICAL_CPUS": str(replicas)}
            done = launch(replicas if engine == "horovod" else 1, *command, environment=environment)
            assert done.returncode == 0, done.stdout + done.stderr
        processes = 1 if engine == "mirrored" else replicas
        results[key] = [{**np.load(folder / f"{rank}.npz"), "timeline": timeline} for rank in range(processes)]
        return results[key]

    return run
