"""Real Horovod processes. The ranges of several are held, bit for bit, against those of one."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import dqat
from distributed.conftest import launch

MODES = ["delayed", "exact"]


def bits(array):
    return np.asarray(array, np.float32).view(np.int32)


@pytest.mark.parametrize("mode", MODES)
def test_both_ranks_hold_identical_bits_after_every_step(run_scenario, mode):
    first, second = run_scenario("training", 2, mode)
    assert (first["engine"], int(first["size"])) == ("horovod", 2)
    assert len(first["ranges"]) == 20
    np.testing.assert_array_equal(bits(first["ranges"]), bits(second["ranges"]))
    assert first["identical"].all() and second["identical"].all()
    assert np.isfinite(first["ranges"]).all()
    assert len(np.unique(first["ranges"][:, 0, 1])) > 10  # ranges that moved
    np.testing.assert_array_equal(bits(first["weights"]), bits(second["weights"]))


def test_recurrent_layers_have_identical_ranges_on_both_ranks(run_scenario):
    first, second = run_scenario("training_of_recurrent_layers", 2, "delayed")
    np.testing.assert_array_equal(bits(first["ranges"]), bits(second["ranges"]))
    assert first["identical"].all() and second["identical"].all()
    assert np.isfinite(first["ranges"]).all()
    assert int(first["collectives"]) == 1


@pytest.mark.parametrize("mode", MODES)
def test_with_fixed_weights_ranges_are_those_of_one_process_on_the_whole_batch(run_scenario, mode):
    (whole,) = run_scenario("fixed_weights", 1, mode)
    ranks = run_scenario("fixed_weights", 2, mode)
    paths = list(whole["paths"])
    for rank in ranks:
        # The input is the same tensor, split.
        index = paths.index("speech_quantizer")
        np.testing.assert_array_equal(bits(rank["ranges"][:, index]), bits(whole["ranges"][:, index]))
        # Behind a matrix product of another batch size the last bits of its sums may differ.
        np.testing.assert_allclose(rank["ranges"], whole["ranges"], rtol=2e-6)


def range_collectives(timeline):
    """Names of the range collectives that Horovod ran, from its own timeline, one entry per run."""
    text = timeline.read_text().rstrip().rstrip(",")
    events = json.loads(text if text.endswith("]") else text + "]")
    names = {event["pid"]: event["args"].get("name", "") for event in events if event.get("name") == "process_name"}
    ran = [names[event["pid"]] for event in events if event.get("name") == "ALLREDUCE"]
    return [name for name in ran if name.startswith(("dqat.ranges", "dqat.range."))]


def test_delayed_mode_runs_exactly_one_range_collective_a_step(run_scenario):
    first, _ = run_scenario("training", 2, "delayed")
    assert range_collectives(first["timeline"]) == ["dqat.ranges"] * 20
    assert first["collectives"] == 1


@pytest.mark.parametrize(
    "scenario, quantizers",
    [("steps_with_5_quantizers", 5), ("steps_with_150_quantizers", 150), ("steps_of_resnet50", 72)],
)
def test_delayed_mode_runs_one_range_collective_a_step_however_many_quantizers(run_scenario, scenario, quantizers):
    first, _ = run_scenario(scenario, 2)
    assert first["quantizers"] == quantizers
    assert range_collectives(first["timeline"]) == ["dqat.ranges"] * 3


def test_exact_mode_runs_one_a_quantizer_of_a_chain_and_none_for_the_recurrent_states(run_scenario):
    first, _ = run_scenario("training", 2, "exact")
    outside_recurrence = int(first["quantizers"]) - 4  # two LSTMs with two states each, which go with the last
    assert first["collectives"] == outside_recurrence
    ran = range_collectives(first["timeline"])
    assert len(ran) == 20 * outside_recurrence
    assert ran.count("dqat.ranges.1") == ran.count(f"dqat.ranges.{outside_recurrence}") == 20


def test_histograms_cost_one_collective_more_a_step(run_scenario):
    first, second = run_scenario("training_with_percentiles", 2)
    assert sorted(range_collectives(first["timeline"])) == ["dqat.ranges"] * 20 + ["dqat.ranges.counts"] * 20
    assert first["collectives"] == second["collectives"] == 2
    np.testing.assert_array_equal(bits(first["ranges"]), bits(second["ranges"]))
    assert first["identical"].all()
    assert len(np.unique(first["ranges"][:, :, 1])) > 20


def test_steps_that_two_ranks_learn_are_those_of_one_process(run_scenario):
    (whole,) = run_scenario("training_of_learned_steps", 1)
    ranks = run_scenario("training_of_learned_steps", 2)
    # After five steps; later, single values that fall to the other side of a level pull the runs apart.
    start, later = (whole["ranges"][index, whole["learned"], 1] for index in (0, 4))
    moved = np.abs(later / start - 1)
    assert (moved > 1e-5).all() and (moved > 0.1).sum() >= 3
    for rank in ranks:
        assert rank["identical"].all()
        assert rank["collectives"] == 1
        np.testing.assert_array_equal(bits(rank["ranges"]), bits(ranks[0]["ranges"]))
        # A gradient scale that depended on a rank's batch would be off by 41%.
        apart = np.abs(rank["ranges"][4, rank["learned"], 1] / later - 1)
        assert (apart < 0.001 * moved + 1e-6).all()


def test_quantizing_outside_the_scope_is_an_error_that_says_what_to_write(run_scenario):
    for rank in run_scenario("outside_the_scope", 2):
        assert "one of 2 that horovodrun started" in str(rank["message"])
        assert "with strategy.scope():" in str(rank["message"])


def test_a_horovod_without_tensorflow_is_an_error_that_says_how_to_build_it(tmp_path):
    """Such a build is an installation without the TensorFlow extension: the same files less one."""
    import horovod

    original = horovod.__path__[0]
    copy = tmp_path / "horovod"
    subprocess.run(["cp", "-r", original, copy], check=True)
    (extension,) = (copy / "tensorflow").glob("mpi_lib*.so")
    extension.unlink()
    # horovodrun itself stays whole: it was installed with another framework's extension.
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import dqat; dqat.distribute.Strategy()"
    done = launch(2, "-c", script)
    assert done.returncode != 0
    assert "Horovod can't be used here: it is not installed, or was built without TensorFlow" in done.stderr
    assert "HOROVOD_WITH_TENSORFLOW=1" in done.stderr


def test_the_engine_is_one_process_outside_horovodrun_and_wrong_names_are_refused():
    assert dqat.distribute.Strategy().engine == "none"
    with pytest.raises(ValueError, match="engine must be one of auto, none, tf, horovod, got 'mpi'"):
        dqat.distribute.Strategy("mpi")
    with pytest.raises(TypeError, match="must be one of MirroredStrategy, .* got CentralStorageStrategy"):  # noqa: SIM117
        with tf.distribute.experimental.CentralStorageStrategy().scope():
            dqat.distribute.Strategy()


def test_a_script_that_asks_for_horovod_runs_alone_as_one_rank():
    script = "import dqat; s = dqat.distribute.Strategy('horovod'); print(s.engine, s.rank, s.size)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["horovod", "0", "1"], done.stderr
