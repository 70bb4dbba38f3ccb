"""The sbatch template on a real Slurm cluster of one node: see slurm_cluster.py."""

import os
import pathlib
import sys

import pytest

from distributed.slurm_cluster import obstacle, slurm

ROOT = pathlib.Path(__file__).parents[2]
OPTIONS = ["--units", 16, "--float-epochs", 1, "--qat-epochs", 1, "--seeds", 1, "--batch", 54]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := obstacle():
        pytest.skip(reason)
    with slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def submit(cluster, output, *script):
    """Submits the template for two tasks on the one node; gives the job's state, exit code and output."""
    path = f"{os.path.dirname(sys.executable)}:{cluster.environment['PATH']}"
    where = ["--nodes=1", "--ntasks-per-node=2", f"--chdir={ROOT}", f"--output={output}"]
    template = ROOT / "launch" / "slurm" / "train.sbatch"
    variables = f"--export=PATH={path},SLURM_CONF={cluster.environment['SLURM_CONF']},TF_CPP_MIN_LOG_LEVEL=2"
    sent = cluster.run("sbatch", "--parsable", *where, variables, template, *script)
    assert sent.returncode == 0, sent.stderr
    state, code = cluster.wait(sent.stdout.strip(), seconds=240)
    return state, code, output.read_text()


def test_the_template_trains_two_tasks_to_the_end(cluster, tmp_path):
    script = ["launch/train_sequence.py", "--out", tmp_path, *OPTIONS]
    state, code, output = submit(cluster, tmp_path / "job.out", *script)
    assert (state, code) == ("COMPLETED", "0:0"), output[-4000:]
    assert "2 replicas (tf)" in output
    assert output.count("ranges identical bits on all ranks") == 1
    assert (tmp_path / "speech_lstm_0.tflite").stat().st_size > 1000


def test_a_task_that_fails_ends_the_job(cluster, tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(
        "import os, sys, time\nif os.environ['SLURM_PROCID'] == '1':\n    sys.exit('task 1 fails')\ntime.sleep(600)\n"
    )
    state, code, output = submit(cluster, tmp_path / "job.out", script)
    assert state == "FAILED" and code != "0:0"
    assert "task 1 fails" in output
