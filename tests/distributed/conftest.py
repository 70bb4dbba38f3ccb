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
    """Runs a scenario on a number of processes; gives what each rank found. Runs it once per arguments."""
    results = {}

    def run(name, processes, mode="delayed", environment=()):
        key = (name, processes, mode, environment)
        if key not in results:
            folder = tmp_path_factory.mktemp(f"{name}_{processes}_{mode}")
            done = launch(processes, str(SCENARIOS), name, mode, str(folder), environment=dict(environment))
            assert done.returncode == 0, done.stdout + done.stderr
            results[key] = [dict(np.load(folder / f"{rank}.npz")) for rank in range(processes)]
        return results[key]

    return run
