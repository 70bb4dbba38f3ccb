"""The same training script, unchanged, on every engine, with `fit`. Loops of one's own: `features.loop_of_ones_own`."""

import os

import pytest
from conftest import ROOT

from distributed.conftest import launch, launch_workers

SCRIPT = ROOT / "launch" / "train_sequence.py"
OPTIONS = ["--units", "8", "--float-epochs", "1", "--qat-epochs", "1", "--seeds", "1", "--batch", "54"]
#: Splits the processor into two devices, then runs a script.
ON_TWO_DEVICES = """
import pathlib, runpy, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.argv = sys.argv[1:]
sys.path.insert(0, str(pathlib.Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("engine", ["mirrored", "none", "multiworker", "horovod"])
def test_one_script_trains_exports_and_verifies_on_every_engine(engine, tmp_path):
    if engine != "mirrored" and os.environ.get("HYPOTHESIS_PROFILE") != "nightly":
        pytest.skip(
            "in the nightly profile; the demo runs it on Horovod, the Slurm test on MultiWorkerMirroredStrategy"
        )
    command = [str(SCRIPT), *OPTIONS, "--out", str(tmp_path), "--data", str(ROOT / "data")]
    if engine == "multiworker":
        done = launch_workers(2, *command)
        statuses, output = {status for status, _ in done}, "\n".join(text for _, text in done)
    else:
        command = ["-c", ON_TWO_DEVICES, *command] if engine == "mirrored" else command
        environment = {"DQAT_ENGINE": "tf"} if engine == "mirrored" else {}
        done = launch(2 if engine == "horovod" else 1, *command, environment=environment)
        statuses, output = {done.returncode}, done.stdout + done.stderr
    assert statuses == {0}, output[-4000:]
    replicas, name = {"none": (1, "none"), "horovod": (2, "horovod")}.get(engine, (2, "tf"))
    assert f"{replicas} replicas ({name})" in output
    assert output.count("ranges identical bits on all ranks") == 1  # said by the chief alone
    assert (tmp_path / "speech_lstm_0.tflite").stat().st_size > 1000
