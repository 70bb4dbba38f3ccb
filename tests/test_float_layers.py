"""Layers that the caller leaves in float, in training and in the file."""

import numpy as np
import pytest

import dqat
from dqat.algorithms import calibrate
from dqat.export import ExportError
from dqat.keras_api import keras

layers = keras.layers


def branches():
    """A convolution whose activation is an operator of its own, a sum, and a softmax at the end."""
    inputs = keras.Input((8, 8, 3))
    outputs = layers.Conv2D(4, 3, activation="gelu", name="conv")(inputs)
    outputs = layers.Add(name="sum")([outputs, layers.Conv2D(4, 1, name="point")(outputs)])
    outputs = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, use_bias=False, name="second")(outputs))
    outputs = layers.GlobalAveragePooling2D(name="mean")(layers.ReLU(name="relu")(outputs))
    return keras.Model(inputs, layers.Dense(5, activation="softmax", name="dense")(outputs))


def partly_float(names, rng, model=None, **options):
    model = dqat.quantize_model(model or branches(), float_layers=names, **options)
    samples = rng.normal(size=(64, *model.input_shape[1:])).astype(np.float32)
    calibrate(model, [samples])
    return model, samples


@pytest.mark.parametrize(
    "names, island",
    [
        (["conv"], ["DEQUANTIZE", "CONV_2D", "GELU", "QUANTIZE"]),
        (["sum"], ["DEQUANTIZE", "DEQUANTIZE", "ADD", "QUANTIZE"]),
        (["second", "norm", "relu"], ["DEQUANTIZE", "CONV_2D", "QUANTIZE"]),
        (["mean"], ["DEQUANTIZE", "MEAN", "QUANTIZE"]),
        (["dense"], ["DEQUANTIZE", "FULLY_CONNECTED", "SOFTMAX", "QUANTIZE"]),
        (["mean", "dense"], ["DEQUANTIZE", "MEAN", "FULLY_CONNECTED", "SOFTMAX", "QUANTIZE"]),
    ],
    ids=lambda names: "+".join(names),
)
def test_named_layers_are_float_in_the_file_and_all_others_integer(names, island, rng, tmp_path):
    model, samples = partly_float(names, rng)
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    islands = dqat.inspect_tflite(report.path).float_islands
    assert [name for part in islands for name in part] == island
    parity = dqat.verify(model, report.path, samples)
    assert parity.within_1_lsb >= 0.99
    assert parity.first_apart is None


def structural():
    """Layers that only join, choose or average values, and want one scale of integers."""
    inputs = keras.Input((8, 8, 3))
    joined = layers.Concatenate(name="join")([layers.Conv2D(4, 1, name="a")(inputs), layers.Conv2D(4, 1)(inputs)])
    larger = layers.Maximum(name="larger")([joined, layers.Conv2D(8, 1)(inputs)])
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(layers.AveragePooling2D(name="pool")(larger))))


@pytest.mark.parametrize(
    "names, operators",
    [
        (["join"], ["CONCATENATION"]),
        (["a", "join"], ["CONV_2D", "CONCATENATION"]),
        (["join", "larger"], ["CONCATENATION", "MAXIMUM"]),
        (["pool"], ["AVERAGE_POOL_2D"]),
    ],
    ids=lambda names: "+".join(names),
)
def test_layers_that_join_or_average_can_be_float_too(names, operators, rng, tmp_path):
    model, samples = partly_float(names, rng, structural())
    path = dqat.export_tflite(model, tmp_path / "model.tflite").path
    islands = [name for part in dqat.inspect_tflite(path).float_islands for name in part]
    assert [name for name in islands if not name.endswith("QUANTIZE")] == operators
    assert dqat.verify(model, path, samples).within_1_lsb == 1.0


def test_a_float_layer_has_its_exact_weights_in_the_file(rng, tmp_path):
    model, _ = partly_float(["second", "norm", "relu"], rng)
    norm, conv = model.get_layer("norm"), model.get_layer("second")
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    factor = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    folded = np.moveaxis(conv.kernel.numpy() * factor, -1, 0)
    (subgraph,) = dqat.inspect_tflite(report.path).subgraphs
    floats = [
        np.frombuffer(tensor.values, np.float32)
        for tensor in subgraph.tensors
        if tensor.values and len(tensor.values) == 4 * folded.size
    ]
    assert any(np.allclose(values, folded.reshape(-1), rtol=1e-5) for values in floats)


def test_the_report_says_so_and_a_saved_model_knows_it(rng, tmp_path):
    model, samples = partly_float(["conv", "dense"], rng)
    assert model.float_layers == ("conv", "dense")
    rows = {row.layer: row.how for row in dqat.coverage(model).rows if not row.quantized}
    assert rows["conv"] == rows["dense"] == "stays in float"
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.float_layers == ("conv", "dense")
    np.testing.assert_array_equal(loaded(samples), model(samples))
    first, second = (dqat.export_tflite(one, tmp_path / "model.tflite").path.read_bytes() for one in (model, loaded))
    assert first == second


def test_a_layer_that_quantize_apply_leaves_alone_is_float_in_the_file_too(rng, tmp_path):
    marked = keras.models.clone_model(
        branches(),
        clone_function=lambda layer: layer if layer.name == "second" else dqat.quantize_annotate_layer(layer),
    )
    model = dqat.quantize_apply(marked)
    samples = rng.normal(size=(64, 8, 8, 3)).astype(np.float32)
    calibrate(model, [samples])
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    assert dqat.inspect_tflite(report.path).float_islands == [["DEQUANTIZE", "CONV_2D", "QUANTIZE"]]
    assert dqat.verify(model, report.path, samples).within_1_lsb >= 0.99


def test_a_layer_is_known_by_the_names_that_reports_give_it(rng):
    for name in ("conv", "quant_conv", "conv_gelu", "quant_conv_gelu"):
        model = dqat.quantize_model(branches(), float_layers=[name], quantized_layer_name_prefix="quant_")
        assert model.float_layers == ("conv",)


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="the model has no layer third; it has .*second"):
        dqat.quantize_model(branches(), float_layers=["third"])
    with pytest.raises(ValueError, match="must be a sequence of names, got the string 'conv'"):
        dqat.quantize_model(branches(), float_layers="conv")


@pytest.mark.parametrize("scheme, words", [("int8", "recurrent layers have no float"), ("w8a16", "amid int8 layers")])
def test_what_has_no_file_is_refused_by_name(scheme, words, rng, tmp_path):
    stack = [keras.Input((5, 6)), layers.Dense(4, name="before"), layers.LSTM(4, name="lstm"), layers.Dense(3)]
    float_layer = "lstm" if scheme == "int8" else "before"
    model, _ = partly_float([float_layer], rng, keras.Sequential(stack), scheme=scheme)
    with pytest.raises(ExportError, match=words) as error:
        dqat.export_tflite(model, tmp_path / "model.tflite")
    assert float_layer in str(error.value)
