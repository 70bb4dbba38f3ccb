import numpy as np
import pytest
import tensorflow as tf
from conftest import compiled, speech_model

import dqat
from dqat.keras_api import keras
from dqat.model import named_quantizers


def activation_ranges(model):
    return {path: tuple(float(part) for part in quantizer.range()) for path, quantizer in named_quantizers(model)}


def test_delayed_mode_quantizes_with_the_ranges_known_at_the_start_of_the_step(speech):
    model = dqat.quantize_model(speech_model(), range_sync="delayed")
    first, second = speech[0][0][:30], 3 * speech[0][0][30:60]
    unquantized_input = model(first, training=False)
    # No range yet: the step runs as inference without ranges does, and leaves its records behind.
    model.get_layer("dropout_0").rate = 0.0
    np.testing.assert_array_equal(model(first, training=True), unquantized_input)
    after_first = activation_ranges(model)
    assert after_first["speech_quantizer"] == (first.min(), first.max())
    expected = model(second, training=False)
    np.testing.assert_array_equal(model(second, training=True), expected)
    low, high = activation_ranges(model)["speech_quantizer"]
    assert low == pytest.approx(0.99 * first.min() + 0.01 * second.min(), rel=1e-5)
    assert high == pytest.approx(0.99 * first.max() + 0.01 * second.max(), rel=1e-5)


def test_exact_mode_quantizes_with_the_ranges_of_the_same_step(speech):
    model = dqat.quantize_model(speech_model(), range_sync="exact")
    model.get_layer("dropout_0").rate = 0.0
    samples = speech[0][0][:30]
    quantizer = model.get_layer("speech_quantizer")
    assert len(np.unique(quantizer(samples, training=True))) <= 256
    assert len(np.unique(samples)) > 256


def test_inference_leaves_ranges_as_they_are(speech, trained):
    before = activation_ranges(trained)
    trained(10 * speech[1][0][:32], training=False)
    trained.predict(10 * speech[1][0][:32], verbose=0)
    assert activation_ranges(trained) == before


def test_training_given_as_a_tensor_decides_at_run_time(speech):
    for mode in ("delayed", "exact"):
        model = dqat.quantize_model(speech_model(), range_sync=mode)
        step = tf.function(lambda x, training, model=model: model(x, training=training))
        step(speech[0][0][:30], tf.constant(False))
        assert set(activation_ranges(model).values()) == {(np.inf, -np.inf)}
        step(speech[0][0][:30], tf.constant(True))
        assert all(low < high for low, high in activation_ranges(model).values())


@pytest.mark.parametrize("mode", ["delayed", "exact"])
def test_a_nan_stops_the_step_with_the_layers_name_and_enters_no_range(speech, mode):
    model = compiled(dqat.quantize_model(speech_model(), range_sync=mode))
    samples, labels = speech[0][0][:60].copy(), speech[0][1][:60]
    model.fit(samples[:30], labels[:30], verbose=0)
    before = activation_ranges(model)
    samples[45, 20, 3] = np.nan
    with pytest.raises(tf.errors.InvalidArgumentError, match="NaN or Inf in the values of speech_quantizer"):
        model.fit(samples[30:], labels[30:], verbose=0)
    assert activation_ranges(model) == before


def test_skip_leaves_the_record_out_and_counts_it(speech):
    model = dqat.quantize_model(speech_model(), on_nonfinite="skip")
    model(speech[0][0][:30], training=True)
    before = activation_ranges(model)
    samples = speech[0][0][30:60].copy()
    samples[3, 2, 1] = np.inf
    model(samples, training=True)
    assert activation_ranges(model)["speech_quantizer"] == before["speech_quantizer"]
    assert model.get_layer("speech_quantizer").skipped.numpy() == 1


def test_a_custom_loop_needs_nothing_but_the_call(speech):
    model = dqat.quantize_model(speech_model())
    optimizer = keras.optimizers.Adam(3e-3)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step(samples, labels):
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(samples, training=True))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
        return loss

    losses = [float(step(speech[0][0][:90], speech[0][1][:90])) for _ in range(15)]
    assert losses[-1] < losses[0]
    assert all(np.isfinite(value).all() for value in activation_ranges(model).values())


def test_saving_and_loading_gives_the_same_bits_and_goes_on_training(speech, trained, tmp_path):
    trained.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert activation_ranges(loaded) == activation_ranges(trained)
    np.testing.assert_array_equal(loaded(speech[1][0][:64]), trained(speech[1][0][:64]))
    assert loaded.range_sync.mode == trained.range_sync.mode
    before = activation_ranges(loaded)
    loaded.fit(2 * speech[0][0][:60], speech[0][1][:60], verbose=0)
    assert activation_ranges(loaded) != before


def test_checkpoints_hold_the_ranges(speech, trained, tmp_path):
    trained.save_weights(tmp_path / "checkpoint")
    other = dqat.quantize_model(speech_model((32, 24)))
    other.load_weights(tmp_path / "checkpoint").expect_partial()
    assert activation_ranges(other) == activation_ranges(trained)


def test_ranges_lists_activations_states_and_weights(trained):
    found = dqat.ranges(trained)
    assert set(found) == {
        "speech_quantizer",
        *(f"lstm_{i}/{role}" for i in (0, 1) for role in ("hidden", "cell_state", "kernel", "recurrent_kernel")),
        "features/kernel",
        "relu/output",
        "speaker/kernel",
        "speaker/output",
    }
    kernel = trained.get_layer("lstm_0").layer.cell.kernel.numpy().reshape(12, 4, 32)
    np.testing.assert_array_equal(found["lstm_0/kernel"][1], np.abs(kernel).max(axis=(0, 2)))
    np.testing.assert_array_equal(found["lstm_0/kernel"][0], -np.abs(kernel).max(axis=(0, 2)))
