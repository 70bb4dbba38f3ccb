"""Contract 2 of the design on every engine, real devices and processes: the bits of N replicas against those of one."""

import numpy as np
import pytest

MODES = ["delayed", "exact"]
ENGINES = [(engine, replicas) for engine in ("mirrored", "multiworker", "horovod") for replicas in (2, 4)]


def bits(array):
    return np.ascontiguousarray(array, np.float32).view(np.int32)


@pytest.fixture(params=ENGINES, ids=lambda case: f"{case[0]}-{case[1]}")
def processes(request, run_scenario):
    """What the processes of an engine found in the contract's scenarios."""
    engine, replicas = request.param
    found = run_scenario("contract", replicas, engine=engine)
    assert len(found) == (1 if engine == "mirrored" else replicas)
    for process in found:
        assert int(process["size"]) == replicas
        assert process["engine"] == ("horovod" if engine == "horovod" else "tf")
    return found


@pytest.fixture
def whole(run_scenario):
    """The same of one process that sees the whole batches."""
    return run_scenario("contract", 1)[0]


def test_the_contract_of_ranges(processes, whole):
    for mode in MODES:
        _split_tensors_give_the_bits_of_the_whole(processes, whole, mode)
        _all_replicas_hold_identical_bits_after_every_training_step(processes, mode)
        _training_is_that_of_one_process_on_the_whole_batch(processes, whole, mode)


def _split_tensors_give_the_bits_of_the_whole(processes, whole, mode):
    for name, once in (("recorded_activations", 1), ("recorded_histograms", 2)):
        expected = whole[f"{name}/{mode}/ranges"]
        assert len(np.unique(expected[..., -1])) > 5  # ranges that moved
        for process in processes:
            np.testing.assert_array_equal(bits(process[f"{name}/{mode}/ranges"]), bits(expected))
            assert process[f"{name}/{mode}/identical"].all()
            if mode == "delayed":
                assert process[f"{name}/{mode}/collectives"] == once
    for process in processes:
        key = f"recorded_histograms/{mode}/counts"
        np.testing.assert_array_equal(process[key], whole[key])


def _all_replicas_hold_identical_bits_after_every_training_step(processes, mode):
    for process in processes:
        identical = process[f"lstm_training/{mode}/identical"]
        assert len(identical) == 50 and identical.all()
        assert process[f"lstm_training/{mode}/steps"] == 50
        first = processes[0][f"lstm_training/{mode}/ranges"]
        assert np.isfinite(first).all() and len(np.unique(first[:, 1, 1])) > 40
        np.testing.assert_array_equal(bits(process[f"lstm_training/{mode}/ranges"]), bits(first))


def _training_is_that_of_one_process_on_the_whole_batch(processes, whole, mode):
    expected = whole[f"lstm_training/{mode}/ranges"]
    for process in processes:
        # The input's range does not depend on the weights.
        np.testing.assert_array_equal(bits(process[f"lstm_training/{mode}/ranges"][:, 0]), bits(expected[:, 0]))
        apart = np.abs(process[f"lstm_training/{mode}/ranges"] - expected) / np.abs(expected).max(axis=(0, 2))[:, None]
        loss = np.abs(process[f"lstm_training/{mode}/loss"] / whole[f"lstm_training/{mode}/loss"] - 1)
        print(f"{mode}: ranges {apart.max():.2e}, losses {loss.max():.2e} of one process")
        assert apart.max() < 0.02
        assert loss.max() < 0.01
