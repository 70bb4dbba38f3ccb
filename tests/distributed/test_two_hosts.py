"""horovodrun over two hosts with addresses of their own and ssh between them: see two_hosts_network.py."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from distributed.two_hosts_network import obstacle, two_hosts

SCENARIO = pathlib.Path(__file__).parent / "two_hosts_scenario.py"
#: What launch/README.md tells users to set, and how long ranks may take beyond it to end.
TIMEOUT, GRACE = 10, 10


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    if reason := obstacle():
        pytest.skip(reason)
    with two_hosts(tmp_path_factory.mktemp("two_hosts")) as hosts:
        yield hosts


@pytest.fixture
def start(hosts, tmp_path):
    """Starts a training of so many steps on both; gives the process of horovodrun and the folder of results."""
    started = []

    def start(steps, *more_options):
        horovodrun = shutil.which("horovodrun", path=os.path.dirname(sys.executable))
        options = ["--gloo-timeout-seconds", TIMEOUT, "-np", 2, "-H", hosts.hosts, "-i", hosts.key, *more_options]
        command = hosts.command(horovodrun, *options, sys.executable, SCENARIO, tmp_path, steps)
        with open(tmp_path / "output", "w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        started.append(process)
        return process, tmp_path

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def results(folder):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_hosts_train_and_end_with_identical_ranges(start):
    process, folder = start(20)  # horovodrun finds the interface
    assert process.wait(timeout=120) == 0, (folder / "output").read_text()[-4000:]
    first, second = results(folder)
    assert first["size"] == second["size"] == 2
    assert {first["host"], second["host"]} == {"dqat-host-a", "dqat-host-b"}
    assert first["identical"] and second["identical"]
    assert first["ranges"] == second["ranges"]
    assert len(first["ranges"]) >= 5


def test_a_cut_link_ends_both_sides_with_an_error_that_says_so(start, hosts):
    process, folder = start(1_000_000, "--network-interface", "eth0")
    steps = [folder / f"{rank}.steps" for rank in range(2)]
    end = time.monotonic() + 120
    while not all(path.exists() and path.read_text().count("\n") > 5 for path in steps):
        assert process.poll() is None and time.monotonic() < end, (folder / "output").read_text()[-4000:]
        time.sleep(0.1)
    cut = time.time()
    hosts.cut()
    assert process.wait(timeout=TIMEOUT + GRACE + 60) != 0
    waited = time.monotonic() + TIMEOUT + GRACE
    while not all((folder / f"{rank}.json").exists() for rank in range(2)) and time.monotonic() < waited:
        time.sleep(0.1)
    timed_out = f"Timed out waiting {TIMEOUT}000ms"
    assert timed_out in (folder / "output").read_text()
    for rank in results(folder):
        assert "error" in rank
        # Horovod gives the collective that waited the timeout, and those after it what follows from that.
        assert any(part in rank["error"] for part in (timed_out, "Horovod has been shut down")), rank["error"]
        assert cut < rank["time"] < cut + TIMEOUT + GRACE
