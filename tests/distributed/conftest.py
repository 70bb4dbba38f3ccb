import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

SCENARIOS = pathlib.Path(__file__).parent / "scenarios.py"


def launch(processes, *command, environment=None):
    """Runs a command under horovodrun, or alone for one process; gives its CompletedProcess."""
    executable = shutil.which("horovodrun", path=os.path.dirname(sys.executable))
    prefix = [] if processes == 1 else [executable, "-np", str(processes)]
    return subprocess.run(
        [*prefix, sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **(environment or {})},
    )


@pytest.fixture(scope="session")
def run_scenario(tmp_path_factory):
    """Runs a scenario on a number of processes; gives what each rank found, and Horovod's timeline of the run.

    Runs it once per arguments.
    """
    results = {}

    def run(name, processes, mode="delayed"):
        key = (name, processes, mode)
        if key not in results:
            folder = tmp_path_factory.mktemp(f"{name}_{processes}_{mode}")
            timeline = folder / "timeline.json"
            environment = {"HOROVOD_TIMELINE": str(timeline)}
            done = launch(processes, str(SCENARIOS), name, mode, str(folder), environment=environment)
            assert done.returncode == 0, done.stdout + done.stderr
            results[key] = [{**np.load(folder / f"{rank}.npz"), "timeline": timeline} for rank in range(processes)]
        return results[key]

    return run
