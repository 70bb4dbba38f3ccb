import numpy as np
import pytest
import tensorflow as tf
from conftest import compiled

import dqat
from dqat.algorithms import BitSchedule, set_least_bits
from dqat.callbacks import Checkpoints
from dqat.keras_api import keras

layers = keras.layers


def network():
    keras.utils.set_random_seed(0)
    stack = [keras.Input((6,)), layers.Dense(12, activation="relu", name="first"), layers.Dense(3, name="last")]
    return keras.Sequential(stack)


def batches(rng, count=12):
    samples = rng.normal(size=(8 * count, 6)).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((samples, np.arange(8 * count) % 3)).batch(8)


class Levels(keras.callbacks.Callback):
    """How many levels of a kernel and of an output are used in each step."""

    def __init__(self, samples):
        super().__init__()
        self.samples, self.found = samples, []

    def on_train_batch_begin(self, batch, logs=None):
        first = self.model.get_layer("first")
        outputs = self.model(self.samples, training=False)
        self.found.append((len(np.unique(first.quantized_weights()["kernel"])), len(np.unique(outputs))))


def test_each_step_has_the_bits_of_its_place(rng):
    model = compiled(dqat.quantize_model(network(), scheme="w2a8"))
    levels = Levels(rng.normal(size=(512, 6)).astype(np.float32))
    schedule = BitSchedule(weights={0: 8, 4: 4, 8: 2}, activations={0: 16, 6: 0})
    model.fit(batches(rng), callbacks=[schedule, levels], verbose=0)
    kernels, outputs = zip(*levels.found[1:], strict=True)  # in step 0 no range is known yet
    assert all(15 < count <= 255 for count in kernels[:3])
    assert all(3 < count <= 15 for count in kernels[3:7])
    assert all(count == 3 for count in kernels[7:])
    assert all(count > 256 for count in outputs[:5])
    assert all(count <= 256 for count in outputs[5:])


def test_a_tensor_with_more_bits_of_its_own_keeps_them(rng):
    model = dqat.quantize_model(keras.Sequential([keras.Input((5, 6)), layers.LSTM(4, name="lstm")]))
    set_least_bits(model, weights=4, activations=12)
    lstm = model.get_layer("lstm")
    assert {spec.num_bits for spec in lstm.weight_specs().values()} == {8}
    assert (lstm.hidden.spec.num_bits, lstm.cell_state.spec.num_bits) == (12, 16)
    samples = rng.normal(size=(64, 5, 6)).astype(np.float32)
    model(samples, training=True)
    assert len(np.unique(model(samples))) > 200
    set_least_bits(model)
    assert lstm.hidden.spec.num_bits == 8


def test_a_schedule_that_ends_where_it_began_changes_no_bit(rng):
    models = [compiled(dqat.quantize_model(network(), scheme="w4a8")) for _ in range(2)]
    for model, callbacks in zip(models, ([], [BitSchedule({0: 4}, {0: 8})]), strict=True):
        model.fit(batches(np.random.default_rng(0)), callbacks=callbacks, verbose=0)
    for one, other in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_resumed_run_goes_on_with_the_bits_of_its_step_to_the_same_weights(rng, tmp_path):
    data = batches(rng)
    strategy = dqat.distribute.Strategy("none")

    def fresh():
        return compiled(dqat.quantize_model(network(), scheme="w2a8"))

    def schedule():
        return BitSchedule(weights={0: 8, 4: 4, 8: 2})

    whole = fresh()
    whole.fit(data, callbacks=[schedule()], verbose=0)
    broken = fresh()
    saving = Checkpoints(strategy, tmp_path, every=6)
    broken.fit(data.take(6), callbacks=[schedule(), saving], verbose=0)
    assert broken.get_layer("first").weight_specs()["kernel"].num_bits == 4
    resumed = fresh()
    resumed(np.zeros((1, 6), np.float32))
    assert Checkpoints(strategy, tmp_path).restore(resumed, resumed.optimizer) == 6
    after = schedule()
    resumed.fit(data.skip(6), callbacks=[after], verbose=0)
    assert after.bits == (2, 0)
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_saved_model_has_its_own_bits(rng, tmp_path):
    model = compiled(dqat.quantize_model(network()))
    model.fit(batches(rng), callbacks=[BitSchedule({0: 16}, {0: 16})], verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    samples = rng.normal(size=(16, 6)).astype(np.float32)
    assert not np.array_equal(loaded(samples), model(samples))
    set_least_bits(model)
    np.testing.assert_array_equal(loaded(samples), model(samples))
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    assert dqat.verify(model, report.path, samples).within_1_lsb == 1.0


@pytest.mark.parametrize(
    "schedule, message",
    [
        ({4: 8}, "weights must say how many bits step 0 has"),
        ({0: 8, -1: 8}, "and no step before it"),
        ({0: 4, 10: 8}, "that never rise"),
        ({0: 17}, "2 to 16 bits"),
        ({0: 1}, "2 to 16 bits"),
    ],
)
def test_wrong_schedules_are_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        BitSchedule(weights=schedule)


def test_learned_steps_and_float_models_are_refused():
    scheme = dqat.Scheme(observer=dqat.observers.LearnedStep())
    with pytest.raises(ValueError, match="a learned step belongs to its number of bits, and .*first/output"):
        set_least_bits(dqat.quantize_model(network(), scheme=scheme), weights=8)
    with pytest.raises(TypeError, match="is not quantized"):
        compiled(network()).fit(np.zeros((2, 6)), np.zeros(2), callbacks=[BitSchedule()], verbose=0)
    with pytest.raises(ValueError, match="activations must be 0 to 16 bits, got 17"):
        set_least_bits(dqat.quantize_model(network()), activations=17)
