"""Checkpoints that a run goes on from: killed while writing, damaged, of another model, on other replicas."""

import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

import dqat
from distributed import features
from dqat.distribute.checkpoints import CheckpointError
from dqat.keras_api import keras

# Writes a checkpoint after a checkpoint until it is killed.
WRITER = """
import sys
sys.path[:0] = sys.argv[2:4]
from distributed import features
import dqat, numpy as np
strategy = dqat.distribute.Strategy()
model = features.quantized(strategy, features.dense())
checkpoints = dqat.callbacks.Checkpoints(strategy, sys.argv[1], keep=2)
for step in range(1, 100000):
    model(np.full((2, 6, 6, 3), step, np.float32), training=True)
    checkpoints.save(model, None, step)
    print(step, flush=True)
"""


def new_model(make=features.dense):
    return dqat.quantize_model(make())


def restored(folder, model):
    return dqat.callbacks.Checkpoints(dqat.distribute.Strategy(), folder).restore(model)


def test_a_kill_in_mid_checkpoint_leaves_the_previous_one(tmp_path):
    tests = pathlib.Path(__file__).parents[1]
    for kill in range(3):
        folder = tmp_path / str(kill)
        command = [sys.executable, "-c", WRITER, str(folder), str(tests), str(tests.parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as writer:
            for line in writer.stdout:
                if int(line) == 2 + kill:
                    break
            time.sleep(0.003 * kill)  # into the next one
            writer.send_signal(signal.SIGKILL)
            last = [int(line) for line in writer.stdout]
        model = new_model()
        step = restored(folder, model)
        assert step >= max([2 + kill, *last])
        # The moving average of 1, 2, …, step.
        assert model.range_sync.schedule.steps == step
        expected = 1.0
        for value in range(2, step + 1):
            expected += 0.01 * (value - expected)
        assert float(model.range_sync.quantizers[0].max) == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of steps 1 and 2."""
    model = new_model()
    checkpoints = dqat.callbacks.Checkpoints(dqat.distribute.Strategy(), tmp_path)
    for step in (1, 2):
        model(np.full((2, 6, 6, 3), step, np.float32), training=True)
        checkpoints.save(model, None, step)
    return tmp_path


def test_a_damaged_checkpoint_is_an_error_that_names_it_and_an_older_one_can_be_asked_for(saved):
    (data,) = saved.glob("ckpt-2.data*")
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="ckpt-2 can't be restored, it is damaged"):
        restored(saved, new_model())
    older = dqat.callbacks.Checkpoints(dqat.distribute.Strategy(), saved).restore(new_model(), step=1)
    assert older == 1


def test_a_checkpoint_of_another_model_is_an_error_that_names_the_first_difference(saved):
    with pytest.raises(CheckpointError, match=r"of another model. The first difference: it has '.*Flatten.*', not"):
        restored(saved, new_model(features.convolutional))


def test_a_foreign_checkpoint_is_an_error(tmp_path):
    tf.train.CheckpointManager(tf.train.Checkpoint(x=tf.Variable(1.0)), str(tmp_path), 1).save()
    with pytest.raises(CheckpointError, match=r"is no checkpoint of dqat\.callbacks\.Checkpoints"):
        restored(tmp_path, new_model())


def test_no_checkpoint_is_a_start_from_step_0(tmp_path):
    assert restored(tmp_path, new_model()) == 0


@pytest.mark.parametrize("engine", ["mirrored", "horovod"])
def test_one_process_goes_on_from_two_replicas(run_scenario, engine):
    found = run_scenario("features", 2, engine=engine)[0]
    model = new_model()
    optimizer = keras.optimizers.Adam(0.01)
    folder = pathlib.Path(str(found["resume/latest"])).parent
    assert dqat.callbacks.Checkpoints(dqat.distribute.Strategy(), folder).restore(model, optimizer) == 6
    np.testing.assert_array_equal(features.ranges_of(model), found["resume/ranges"][-1])
    np.testing.assert_array_equal(features.weights_of(model), found["resume/weights"])
    assert int(optimizer.iterations) == 6
