import numpy as np
import pytest

import dqat
from dqat.algorithms import calibrate, sensitivity
from dqat.keras_api import keras
from dqat.quantize_configs import Default8BitQuantizeConfig
from dqat.switching import in_float

layers = keras.layers
FOUR_BITS = dqat.Scheme.with_bits(4, 8, per_channel=False)


@pytest.fixture(scope="module")
def quantized(digits, digit_network):
    """The network with 4-bit weights, one range per tensor, without training. Do not change it."""
    model = dqat.quantize_model(digit_network, scheme=FOUR_BITS)
    calibrate(model, [digits[0][0][:256]])
    return model


@pytest.fixture(scope="module")
def found(digits, quantized):
    return sensitivity(quantized, digits[1][0][:256], labels=digits[1][1][:256])


def test_everything_in_float_is_the_float_model(digits, digit_network, quantized):
    images = digits[1][0][:64]
    before = quantized(images).numpy()
    with in_float(quantized):
        np.testing.assert_allclose(quantized(images), digit_network(images), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(quantized(images), before)


@pytest.mark.parametrize("cell", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_recurrent_layers_can_be_in_float_too(cell, rng):
    stack = [keras.Input((7, 6)), layers.Bidirectional(cell(5, return_sequences=True)), cell(5), layers.Dense(3)]
    model = keras.Sequential(stack)
    quantized = dqat.quantize_model(model)
    samples = rng.normal(size=(16, 7, 6)).astype(np.float32)
    calibrate(quantized, [samples])
    assert not np.allclose(quantized(samples), model(samples), atol=1e-4)
    with in_float(quantized):
        np.testing.assert_allclose(quantized(samples), model(samples), atol=1e-5)


def test_a_tensor_keeps_its_range_where_the_one_that_has_it_is_in_float(rng):
    inputs = keras.Input((6,))
    parts = [layers.Dense(4, name=name)(inputs) for name in ("first", "second")]
    model = dqat.quantize_model(keras.Model(inputs, layers.Concatenate()(parts)))
    samples = rng.normal(size=(512, 6)).astype(np.float32)
    calibrate(model, [samples])
    quantized = model(samples).numpy()
    for off in (0, 1):
        with in_float(model, {f"{('first', 'second')[off]}/output"}):
            outputs = model(samples).numpy()
        levels = [len(np.unique(half)) for half in np.split(outputs, 2, axis=-1)]
        assert levels[off] > 1000 and levels[1 - off] <= 256
        np.testing.assert_array_equal(np.split(outputs, 2, -1)[1 - off], np.split(quantized, 2, -1)[1 - off])


def test_a_layer_of_two_bits_among_layers_of_eight_comes_first(digits, digit_network):
    two_bits = dqat.quantizers.LastValueQuantizer(2, per_axis=False, symmetric=True, narrow_range=True)
    config = Default8BitQuantizeConfig(["kernel"], [], True)
    config.weight_quantizer = two_bits

    def marked(layer):
        return dqat.quantize_annotate_layer(layer, config if layer.name == "last" else None)

    annotated = keras.models.clone_model(digit_network, clone_function=marked)
    annotated.set_weights(digit_network.get_weights())
    model = dqat.quantize_apply(annotated)
    calibrate(model, [digits[0][0][:256]])
    worst, *others = sensitivity(model, digits[1][0][:128]).rows
    assert worst.layers == ("last",)
    assert worst.alone_db < others[0].alone_db - 6
    assert worst.without_db == max(row.without_db for row in (worst, *others))


def test_rows_hold_every_layer_and_every_tensor_but_the_inputs_once(quantized, found):
    names = [name for row in found.rows for name in row.layers]
    assert sorted(names) == sorted(
        layer.name for layer in quantized.layers if not layer.name.startswith(quantized.input_names[0])
    )
    tensors = [path for row in found.rows for path in row.tensors]
    assert sorted(tensors) == sorted(set(dqat.ranges(quantized)) - {f"{quantized.input_names[0]}_quantizer"})
    assert found.metric == "accuracy" and found.quantized_figure < found.float_figure
    assert all(row.alone_db > found.quantized_db for row in found.rows), "one alone costs less than all together"
    assert len(str(found).splitlines()) == 2 + len(found.rows)


def test_chosen_layers_win_back_accuracy_in_the_integer_file(digits, digit_network, tmp_path):
    """8 bits, a network whose weights are made for trouble: one channel of one kernel is 100 times the others."""
    model = keras.models.clone_model(digit_network)
    model.set_weights(digit_network.get_weights())
    norm, after = model.get_layer("norm_0a"), model.get_layer("pointwise_0")
    factor = np.where(np.arange(12) == 5, 200.0, 1.0).astype(np.float32)
    norm.gamma.assign(norm.gamma * factor)
    norm.beta.assign(norm.beta * factor)
    after.kernel.assign(after.kernel / factor[:, None])
    (images, _), (test_images, classes) = digits

    def exported(names):
        quantized = dqat.quantize_model(model, float_layers=names)
        calibrate(quantized, [images[:256]])
        path = dqat.export_tflite(quantized, tmp_path / "model.tflite").path
        return quantized, dqat.verify(quantized, path, test_images, labels=classes, float_model=model, layer_samples=0)

    quantized, before = exported([])
    names = sensitivity(quantized, images[:256]).choose(gain_db=20.0, weights=0.3)
    assert {"depthwise_0", "pointwise_0"} <= set(names), "both sides of the tensor that needs more than 8 bits"
    _, after = exported(names)
    assert before.figures["int8"] < before.figures["float"] - 0.05
    assert after.figures["int8"] > before.figures["int8"] + 0.5 * (before.figures["float"] - before.figures["int8"])
    assert after.within_1_lsb >= 0.99


def test_a_budget_is_kept(found):
    total = sum(row.weights for row in found.rows)
    sizes = {row.layers: row.weights for row in found.rows}

    def rows(**budget):
        names = found.choose(**budget)
        return [row for row in sizes if set(row) <= set(names)]

    assert found.choose(weights=0.0, layers=0) == ()
    assert all(sizes[row] == 0 for row in rows(weights=0.0, gain_db=100.0))
    assert sum(sizes[row] for row in rows(weights=0.3, gain_db=100.0)) <= 0.3 * total
    assert len(rows(weights=1.0, gain_db=100.0, layers=2)) == 2
    assert len(rows(weights=1.0, gain_db=0.1)) <= len(rows(weights=1.0, gain_db=100.0))


@pytest.mark.parametrize("budget", [{"gain_db": 0.0}, {"weights": 1.5}, {"weights": -0.1}, {"layers": -1}])
def test_wrong_budgets_are_refused(found, budget):
    with pytest.raises(ValueError, match=f"{next(iter(budget))}={next(iter(budget.values()))}"):
        found.choose(**budget)


def test_a_metric_needs_labels(digits, quantized):
    with pytest.raises(ValueError, match="a metric needs labels"):
        sensitivity(quantized, digits[1][0][:8], metric="accuracy")
