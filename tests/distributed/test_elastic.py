"""Workers of an elastic job are killed at random steps. Real processes, real SIGKILL.

ELASTIC_KILLS says how often: 2 where it isn't set; `make elastic-test` says 10.
"""

import collections
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import speech_model

import dqat
from distributed import elastic_scenario
from distributed.conftest import launch

SCENARIO = pathlib.Path(elastic_scenario.__file__)
LAUNCH = SCENARIO.parents[2] / "launch"
KILLS = int(os.environ.get("ELASTIC_KILLS", "2"))
STEPS_A_KILL = 60


def events(folder):
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition, process, seconds, what):
    """What the condition gives as soon as it is true; fails when the job ends or time is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        if process.poll() is not None:
            pytest.fail(f"the job ended with {process.returncode} while the test waited for {what}")
        time.sleep(0.02)
    pytest.fail(f"{what}: not within {seconds} s")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """An elastic job whose workers were killed KILLS times: its folder, its exit status, its output, the kills."""
    folder = tmp_path_factory.mktemp("elastic")
    hosts = folder / "hosts"
    hosts.write_text("localhost:1\n127.0.0.1:1\n")
    executable = shutil.which("horovodrun", path=os.path.dirname(sys.executable))
    command = [executable, "--gloo", "--network-interface", "lo", "-np", "2", "--min-np", "1", "--max-np", "2"]
    command += ["--blacklist-cooldown-range", "1", "2", "--elastic-timeout", "120"]
    command += ["--host-discovery-script", str(LAUNCH / "horovod" / "discover_hosts.sh")]
    epochs = (KILLS + 1) * STEPS_A_KILL // elastic_scenario.STEPS_PER_EPOCH
    command += [sys.executable, str(SCENARIO), "train", str(folder), str(epochs)]
    rng = random.Random(os.environ.get("ELASTIC_SEED", "0"))
    kills, counted = [], 0
    with open(folder / "output", "w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "DQAT_HOSTS": str(hosts)},
        )
        try:
            for _ in range(KILLS):
                # Both workers are in the same stretch of training, and some steps into it.
                into = rng.randrange(1, 20)

                def both(after=counted, steps=into):
                    latest = {}
                    for event in events(folder)[after:]:
                        latest.setdefault(event["pid"], []).append(event)
                    ready = [e for e in latest.values() if e[-1]["size"] == 2 and len(e) > steps]
                    return len(ready) == 2 and [e[-1] for e in ready]

                victim = rng.choice(wait_for(both, process, 120, "both workers to train"))
                time.sleep(rng.uniform(0, 0.05))
                os.kill(victim["pid"], signal.SIGKILL)
                kills.append(victim)
                counted = len(events(folder))
            process.wait(timeout=300)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            for pid in {event["pid"] for event in events(folder)}:
                command_line = pathlib.Path(f"/proc/{pid}/cmdline")
                if command_line.exists() and SCENARIO.name in command_line.read_text():
                    os.kill(pid, signal.SIGKILL)
    return folder, process.returncode, (folder / "output").read_text(), kills


def test_training_ends_although_workers_are_killed(job):
    folder, status, output, kills = job
    assert status == 0, output[-4000:]
    assert len(kills) == KILLS
    ends = [event for event in events(folder) if event["event"] == "end"]
    assert {end["step"] for end in ends} == {(KILLS + 1) * STEPS_A_KILL}
    assert len({json.dumps(end["ranges"]) for end in ends}) == 1
    sizes = {start["size"] for start in events(folder) if start["event"] == "start"}
    assert 2 in sizes


def test_no_step_is_counted_twice(job):
    folder, *_ = job
    stretches = elastic_scenario.stretches(folder)
    assert len(stretches) > KILLS
    kept = collections.Counter(
        step for stretch in stretches for step in range(stretch["begin"] + 1, stretch["end"] + 1)
    )
    assert kept == dict.fromkeys(range(1, (KILLS + 1) * STEPS_A_KILL + 1), 1)
    for event in events(folder):
        if event["event"] in ("start", "end"):  # Keras counts with a variable of its own
            assert event["iterations"] == event["step"]


def test_all_workers_start_a_stretch_with_the_same_bits(job):
    folder, *_ = job
    digests = collections.defaultdict(set)
    for event in events(folder):
        if event["event"] == "start":
            digests[event["step"], event["size"]].add(event["digest"])
    assert all(len(digest) == 1 for digest in digests.values())


def test_ranges_are_those_of_a_run_that_is_restarted_from_the_last_commit(job):
    folder, *_ = job
    # Of any rank: the one that is killed may not have written down its last step, which the other commits.
    ran = [event for event in events(folder) if event["event"] == "step"]
    compared = 0
    for size in (1, 2):
        done = launch(size, str(SCENARIO), "replay", str(folder))
        assert done.returncode == 0, done.stdout + done.stderr
        replayed = json.loads((folder / f"replay_{size}.json").read_text())
        for key, ranges in replayed.items():
            begin, step = map(int, key.split("-"))
            same = [e["ranges"] for e in ran if e["step"] == step and e["size"] == size]
            assert ranges in same, f"after step {step} of the stretch that began at {begin} on {size} workers"
            compared += 1
    assert compared >= len([s for s in elastic_scenario.stretches(folder) if s["end"] > s["begin"]])


def test_outside_of_an_elastic_job_the_same_script_trains_as_ever():
    model = elastic_scenario.build(strategy := dqat.distribute.Strategy())
    state = dqat.distribute.ElasticState(strategy, model)
    state.fit(elastic_scenario.batches, epochs=2, verbose=0)
    assert (state.step, state.epoch, state.batch) == (60, 2, 0)
    assert int(model.optimizer.iterations) == 60


def test_a_loop_of_ones_own_counts_its_steps_and_commits_anywhere():
    strategy = dqat.distribute.Strategy()
    state = dqat.distribute.ElasticState(strategy, elastic_scenario.build(strategy))

    def loop(given):
        assert given is state
        for _ in range(3):
            state.advance()
            state.commit()
        state.end_epoch()
        return "done"

    assert state.run(loop) == "done"
    assert (state.step, state.epoch, state.batch) == (3, 1, 0)


def test_models_that_are_not_ready_and_data_without_a_length_are_refused():
    strategy = dqat.distribute.Strategy()
    with pytest.raises(TypeError, match="not quantized"):
        dqat.distribute.ElasticState(strategy, speech_model())
    with pytest.raises(ValueError, match="not compiled"):
        dqat.distribute.ElasticState(strategy, dqat.quantize_model(speech_model((4,))))
    state = dqat.distribute.ElasticState(strategy, elastic_scenario.build(strategy))
    with pytest.raises(ValueError, match="commit_every must be at least 1, got 0"):
        state.fit(elastic_scenario.batches, epochs=1, commit_every=0)
    with pytest.raises(ValueError, match="unknown or infinite length"):
        state.fit(lambda epoch: elastic_scenario.batches(epoch).repeat(), epochs=1)
