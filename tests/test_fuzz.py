"""20,000 random calls of every op: each is right or refused, none ends the process or hangs.

The calls run in a process of their own, so that a crash is a failing test and not the end of pytest.
"""

import json
import pathlib
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from dqat.native import ops

CALLS = 20_000
SECONDS = 900  # for all calls of one process; they take well under 200
PROCESSES = 2
OPS = (
    "FakeQuant",
    "FakeQuantTrack",
    "FakeQuantGrad",
    "ReachGrad",
    "MinMax",
    "FitRange",
    "Histogram",
    "FakeQuantHistogram",
    "PercentileRange",
    "MinimumErrorRange",
    "FakeQuantLearned",
    "FakeQuantLearnedGrad",
    "MatMul",
    "QuantizedLstm",
    "QuantizedLstmGrad",
    "GruStep",
    "GruStepGrad",
)
SCRIPT = pathlib.Path(__file__).parent / "fuzz_ops.py"


def run_calls(script, ops, calls, progress, seconds):
    """Outcomes by op, one op after the other until the process ends, and how it ended: None for well."""
    progress.write_bytes(b" " * 64)
    arguments = [sys.executable, str(script), str(progress), str(calls), *ops]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        end = f"did not end in {seconds} s"
    else:
        code = process.returncode
        end = None if code == 0 else f"ended by {signal.Signals(-code).name if code < 0 else f'code {code}'}"
    outcomes = {line["op"]: line for line in map(json.loads, output.splitlines())}
    if end is not None:
        end = f"{progress.read_text().strip() or 'start'}: {end}\n{errors[-3000:]}"
    return outcomes, end


def outcomes_of(ops, directory):
    """What all calls came to, by op; an op that ended its process has the reason in place of counts."""
    found, rest = {}, list(ops)
    while rest:
        done, end = run_calls(SCRIPT, rest, CALLS, directory / rest[0], SECONDS)
        found |= done
        rest = [op for op in rest if op not in done]
        if rest:
            found[rest.pop(0)] = end
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fuzz")
    parts = [OPS[first::PROCESSES] for first in range(PROCESSES)]
    with ThreadPoolExecutor(PROCESSES) as pool:
        results = list(pool.map(lambda ops: outcomes_of(ops, directory), parts))
    return {op: outcome for result in results for op, outcome in result.items()}


@pytest.mark.parametrize("op", OPS)
def test_random_calls_are_right_or_refused(outcomes, op):
    outcome = outcomes[op]
    assert isinstance(outcome, dict), outcome
    assert outcome["problems"] == []
    assert outcome["right"] + outcome["refused"] == CALLS
    # Both kinds in earnest: neither are most calls refused, nor are wrong arguments rare.
    assert outcome["right"] > 0.5 * CALLS
    assert outcome["refused"] > 0.02 * CALLS


def test_every_operation_is_here():
    names = {name.removeprefix("dqat_") for name in dir(ops) if name.startswith("dqat_") and "eager" not in name}
    assert {name.replace("_", "") for name in names} == {name.lower() for name in OPS}


@pytest.mark.parametrize("how, told", [("os.abort()", "SIGABRT"), ("time.sleep(60)", "did not end in 2 s")])
def test_a_crash_and_a_hang_are_told_with_the_call(tmp_path, how, told):
    script = tmp_path / "bad.py"
    script.write_text(f"import os, sys, time\nopen(sys.argv[1], 'w').write('MinMax 7')\n{how}\n")
    outcomes, end = run_calls(script, ["MinMax"], 10, tmp_path / "progress", 2)
    assert outcomes == {}
    assert end.startswith("MinMax 7: ")
    assert told in end
