"""Every layer that is said to be supported goes the whole way."""

import numpy as np
import pytest
import tensorflow as tf
from layer_table import ROWS

import dqat
from dqat.export.flatbuffer import Flatbuffer
from dqat.keras_api import keras


@pytest.fixture(scope="module")
def trained_row():
    """The quantized model of a row, trained for three steps; each row is trained once."""
    made = {}

    def of(name):
        if name not in made:
            model = dqat.quantize_model(ROWS[name].model())
            inputs = ROWS[name].samples(32)
            inputs = inputs if len(inputs) > 1 else inputs[0]
            model.compile(keras.optimizers.SGD(1e-3), "mse")
            targets = np.zeros((32, *model.output_shape[1:]), np.float32)
            losses = model.fit(inputs, targets, batch_size=16, epochs=2, verbose=0).history["loss"]
            assert np.isfinite(losses).all()
            made[name] = model, inputs
        return made[name]

    return of


@pytest.mark.parametrize("name", ROWS)
def test_all_values_of_the_simulation_lie_on_a_grid(trained_row, name):
    model, inputs = trained_row(name)
    outputs = model(inputs, training=False).numpy()
    assert len(np.unique(outputs)) <= 256
    assert all(np.isfinite(part).all() for range_ in dqat.ranges(model).values() for part in range_)


@pytest.mark.parametrize("name", ROWS)
def test_a_saved_model_is_the_same_bit_for_bit(trained_row, tmp_path, name):
    model, inputs = trained_row(name)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(inputs, training=False), model(inputs, training=False))
    before, after = dqat.ranges(model), dqat.ranges(loaded)
    assert before.keys() == after.keys()
    for path, range_ in before.items():
        np.testing.assert_array_equal(range_, after[path])
    assert str(dqat.coverage(loaded)) == str(dqat.coverage(model))


@pytest.mark.parametrize("name", ROWS)
def test_the_integer_file_is_what_was_simulated(trained_row, tmp_path, name):
    model, inputs = trained_row(name)
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    assert Flatbuffer(report.path.read_bytes()).float_tensors() == []
    parity = dqat.verify(model, report.path, inputs)
    assert parity.within_1_lsb >= ROWS[name].least
    assert parity.max_lsb <= ROWS[name].largest
    assert len(np.unique(parity.integer)) > 5


def test_a_row_is_quantized_for_training_as_tensorflow_differentiates_it(trained_row):
    model, inputs = trained_row("Conv2D, BatchNormalization, ReLU")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(inputs, training=True) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(gradient is not None for gradient in gradients)
