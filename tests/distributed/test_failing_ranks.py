"""One rank goes wrong: all end with a message, an exit status other than 0 and in time, and nothing stays behind."""

import json
import os
import pathlib
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from distributed.conftest import launch, launch_workers

SCENARIO = pathlib.Path(__file__).parent / "failing_rank_scenario.py"
#: Seconds; and those of a look at the clock, of Python's way out, and of a busy machine.
TIMEOUT, GRACE = 15, 10
MISSING = [("horovod", "sleeps", 0), ("horovod", "sleeps", 1), ("horovod", "stops", 1), ("multiworker", "is late", 1)]
WRONG = [(engine, how, 1) for engine in ("horovod", "multiworker") for how in ("other model", "nan")]
#: Python's after an exception, and those of a process that horovodrun ends after another has failed.
FAILED, ENDED = "1", {"1", "137", "143"}


def name(case):
    return "-".join(map(str, case))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """By case: (exit status and output of each process that was started, findings by rank)."""

    def run(case):
        engine, how, which = case
        folder = tmp_path_factory.mktemp("failing_rank")
        command = (str(SCENARIO), how, str(which), str(folder), str(TIMEOUT))
        if engine == "horovod":
            # Only the rank that stops doesn't answer; others may be slow to start.
            environment = {} if how == "stops" else {"HOROVOD_GLOO_TIMEOUT_SECONDS": "120"}
            done = launch(2, *command, environment=environment)
            processes = [(done.returncode, done.stdout + done.stderr)]
        else:
            processes = launch_workers(2, *command)
        return processes, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]

    with ThreadPoolExecutor(4) as pool:  # they mostly wait
        cases = [*MISSING, *WRONG]
        return dict(zip(cases, pool.map(run, cases), strict=True))


@pytest.mark.parametrize("case", MISSING, ids=name)
def test_a_rank_that_stays_away_ends_the_others_in_time(jobs, case):
    engine, how, missing = case
    processes, ranks = jobs[case]
    waiting, away = ranks[1 - missing], ranks[missing]
    waited = waiting["time"] - away["away"]
    print(f"{case}: the other rank ended after {waited:.1f} s, with a timeout of {TIMEOUT}")
    assert waited < TIMEOUT + GRACE
    if engine == "horovod":
        ((status, output),) = processes
        assert status == 1
        assert f"Process {1 - missing} exit with status code {FAILED}" in output
        assert "Horovod has been shut down" in waiting["error"]
        if how == "sleeps":
            says = f"dqat: rank {1 - missing} has waited {TIMEOUT} s in dqat.ranges for a rank that does not come"
        else:
            says = f"Timed out waiting {TIMEOUT}000ms for"
        assert says in output
        assert "error" not in away
    else:
        assert [status for status, _ in processes] == [1, 1]
        assert "Collective has timed out during execution" in waiting["error"]
        assert "Error: " in away["error"]  # too late is an error, too


@pytest.mark.parametrize("case", WRONG, ids=name)
def test_a_rank_with_another_model_or_a_nan_is_an_error_on_all(jobs, case):
    engine, how, _ = case
    processes, ranks = jobs[case]
    if engine == "horovod":
        ((status, output),) = processes
        assert status == 1
        statuses = dict(re.findall(r"Process (\d) exit with status code (\d+)", output))
        assert FAILED in statuses.values() and set(statuses.values()) <= ENDED
    else:
        assert [status for status, _ in processes] == [1, 1]
    says = {
        "other model": "not the same on all replicas. The first difference: rank 1 has",
        "nan": "NaN or Inf in the values of",
    }[how]
    assert any(says in rank.get("error", "") for rank in ranks)
    for rank in ranks:  # horovodrun may have ended one before it could write
        assert engine == "horovod" or says in rank["error"]


@pytest.mark.parametrize("case", [*MISSING, *WRONG], ids=name)
def test_no_process_is_left_behind(jobs, case):
    left = [rank["pid"] for rank in jobs[case][1]]
    end = time.monotonic() + 10
    while left and time.monotonic() < end:
        left = [pid for pid in left if os.path.exists(f"/proc/{pid}")]
        time.sleep(0.1)
    assert left == []
