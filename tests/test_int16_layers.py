"""Layers whose activations the caller leaves at 16 bits, amid layers of 8: in training and in the file."""

import os

import numpy as np
import pytest
import tensorflow as tf
from layer_table import ROWS
from recurrent_models import FRAMES, FUSED, UNROLLED
from test_float_layers import branches
from test_int16 import INT8_ONLY

import dqat
from dqat import integer
from dqat.algorithms import calibrate, sensitivity
from dqat.export.flatbuffer import Flatbuffer
from dqat.keras_api import keras
from dqat.layers.requantization import requantized

layers = keras.layers
ALL = [name for name in ROWS if name not in INT8_ONLY]
#: One of each kind of operator; all with HYPOTHESIS_PROFILE=nightly.
SOME = (
    *("Dense, BatchNormalization", "SeparableConv1D", "Conv2DTranspose", "LayerNormalization", "Attention", "mish"),
    *("Embedding", "Concatenate", "QuantizePoint", "Dot", "AveragePooling3D", "Flatten", "MaxPooling2D"),
)


def amid(row):
    """The row's layers between layers of 8 bits, and their names."""
    keras.utils.set_random_seed(1)
    is_float = row.integers is None
    inputs = [keras.Input(shape, dtype="float32" if is_float else "int32") for shape in row.shapes]
    before = [layers.Dense(x.shape[-1], name=f"before_{index}")(x) for index, x in enumerate(inputs)]
    inner = row.make(*(before if is_float else inputs))
    others = {f"before_{index}" for index in range(len(inputs))} | {tensor.node.layer.name for tensor in inputs}
    after = [layers.Dense(4, name=f"after_{index}")(x) for index, x in enumerate(tf.nest.flatten(inner))]
    whole = keras.Model(inputs, after)
    names = [layer.name for layer in dqat.quantize_model(whole).layers]
    ends = {f"{tensor.node.layer.name}_quantizer" for tensor in inputs}
    return whole, [name for name in names if name not in others and not name.startswith("after_") and name not in ends]


def wide(names, rng, model=None, **options):
    model = dqat.quantize_model(model or branches(), int16_layers=names, **options)
    samples = rng.normal(size=(64, *model.input_shape[1:])).astype(np.float32)
    calibrate(model, [samples])
    return model, samples


def types(path):
    """By operator, the types of what is computed into and out of it."""
    flatbuffer = Flatbuffer(path.read_bytes())
    found = []
    for operator in flatbuffer.graph.operators:
        ends = [index for index in (*operator.inputs[:1], *operator.outputs) if index >= 0]
        found.append((flatbuffer.operator_name(operator), *(flatbuffer.tensor(index).type for index in ends)))
    assert flatbuffer.float_tensors() == []
    names = Flatbuffer.type_name
    return [(name, *map(names, kinds)) for name, *kinds in found]


WIDEN, NARROW = [("CAST", "INT8", "INT32"), ("QUANTIZE", "INT32", "INT16")], [("QUANTIZE", "INT16", "INT8")]


@pytest.mark.parametrize(
    "names, wide_operators",
    [
        (["sum"], [*WIDEN, *WIDEN, ("ADD", "INT16", "INT16"), *NARROW]),
        (["second", "norm", "relu"], [*WIDEN, ("CONV_2D", "INT16", "INT16"), *NARROW]),
        (["mean"], [*WIDEN, ("MEAN", "INT16", "INT16"), *NARROW]),
        (["dense"], [*WIDEN, ("FULLY_CONNECTED", "INT16", "INT16"), ("SOFTMAX", "INT16", "INT16")]),
    ],
    ids=lambda names: "+".join(names) if isinstance(names[0], str) else "",
)
def test_named_layers_have_int16_tensors_and_all_others_int8(names, wide_operators, rng, tmp_path):
    model, samples = wide(names, rng)
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    found = types(report.path)
    assert [one for one in found if set(one[1:]) != {"INT8"}] == wide_operators
    parity = dqat.verify(model, report.path, samples)
    assert parity.first_apart is None and not parity.not_compared
    assert parity.within_1_lsb == 1.0


@pytest.mark.parametrize("where, ends", [("first", ("INT16", "INT8")), ("last", ("INT8", "INT16"))])
def test_the_model_s_ends_have_the_bits_of_the_layers_that_they_belong_to(where, ends, rng, tmp_path):
    stack = [keras.Input((12,)), *(layers.Dense(9, name=name) for name in ("first", "second", "last"))]
    model, samples = wide([where], rng, keras.Sequential(stack))
    path = dqat.export_tflite(model, tmp_path / "model.tflite").path
    found = types(path)
    assert (found[0][1], found[-1][-1]) == ends
    parity = dqat.verify(model, path, samples)
    assert parity.first_apart is None and parity.max_lsb <= (128 if where == "last" else 1)
    floats = dqat.export_tflite(model, tmp_path / "float.tflite", io="float32")
    assert (floats.operators[0], floats.operators[-1]) == ("QUANTIZE", "DEQUANTIZE")
    with pytest.raises(ValueError, match="io must be None, as the activations were trained, or float32, got 'int8'"):
        dqat.export_tflite(model, tmp_path / "no.tflite", io="int8")


def test_the_output_of_a_last_layer_of_16_bits_is_finer(rng, tmp_path):
    stack = [keras.Input((12,)), layers.Dense(9, name="first"), layers.Dense(1, name="last")]
    errors = []
    for names in ([], ["last"]):
        keras.utils.set_random_seed(0)
        model, samples = wide(names, np.random.default_rng(0), keras.models.clone_model(keras.Sequential(stack)))
        path = dqat.export_tflite(model, tmp_path / "model.tflite").path
        runs = dqat.verify(model, path, samples)
        errors.append(len(np.unique(runs.integer)))
    assert errors[1] == len(samples) > errors[0]


def test_requantization_is_that_of_the_interpreter_of_a_file(tmp_path):
    stack = [keras.Input((1,)), layers.Dense(1, name="first"), layers.Dense(1, name="second")]
    model = dqat.quantize_model(keras.Sequential(stack), int16_layers=["first"])
    values = np.linspace(-1.0, 1.0, 4096, dtype=np.float32)[:, None]
    model.get_layer("first").layer.kernel.assign([[1.0]])
    model(values, training=True)
    parity = dqat.verify(model, dqat.export_tflite(model, tmp_path / "model.tflite").path, values, layer_samples=4096)
    (narrow,) = [layer for layer in parity.layers if layer.name == "first_int8/output"]
    assert narrow.own_equal == 1.0


@pytest.mark.parametrize("ratio", [2.0**-8, 2.0**-7, 0.5, 1.0, 0.0071234, 0.00392, 181.3, 255.99999])
def test_requantization_is_tflite_s_for_every_level(ratio):
    most = 2**15 if ratio <= 1.0 else 255
    levels, scales = np.arange(-most, most), (np.float32(ratio), np.float32(1.0))
    multiplier, shift = integer.quantize_multiplier(float(scales[0]))
    expected = integer.requantize(levels.astype(np.int32), multiplier=multiplier, shift=shift)
    np.testing.assert_array_equal(requantized(tf.constant(levels, tf.float32), *scales), expected)


@pytest.mark.parametrize("name", ALL if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else SOME)
def test_every_layer_can_be_one_of_16_bits(name, tmp_path):
    model, names = amid(ROWS[name])
    model = dqat.quantize_model(model, int16_layers=names)
    samples = ROWS[name].samples(24)
    samples = samples if len(samples) > 1 else samples[0]
    for _ in range(2):
        model(samples, training=True)
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    types(report.path)
    parity = dqat.verify(model, report.path, samples)
    assert parity.first_apart is None
    assert parity.within_1_lsb == 1.0
    assert parity.equal >= 0.95


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_recurrent_layers_too(name, speech, tmp_path):
    source = {**FUSED, **UNROLLED}[name]()
    names = [layer.name for layer in source.layers if isinstance(layer, layers.RNN)]
    model = dqat.quantize_model(source, int16_layers=names)
    samples = speech[0][0][:24, :FRAMES]
    for _ in range(2):
        model(samples, training=True)
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    assert "INT16" in {kind for one in types(report.path) for kind in one[1:]}
    parity = dqat.verify(model, report.path, samples)
    assert parity.first_apart is None and parity.within_1_lsb >= 0.99


def test_a_saved_model_trains_on_and_gives_the_same_file(rng, tmp_path):
    model, samples = wide(["sum", "dense"], rng)
    model.compile("sgd", "mse")
    model.fit(samples, np.zeros((64, 5), np.float32), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(samples), model(samples))
    first, second = (dqat.export_tflite(one, tmp_path / "model.tflite").path.read_bytes() for one in (model, loaded))
    assert first == second
    rows = {(row.layer, row.tensor): row.how for row in dqat.coverage(model).rows}
    assert "int16" in rows["sum", "output"] and "int8" in rows["sum_int8", "output"]


def test_beside_float_layers(rng, tmp_path):
    model, samples = wide(["sum"], rng, float_layers=["second", "norm", "relu"])
    path = dqat.export_tflite(model, tmp_path / "model.tflite").path
    assert dqat.inspect_tflite(path).float_islands == [["DEQUANTIZE", "CONV_2D", "QUANTIZE"]]
    assert dqat.verify(model, path, samples).within_1_lsb == 1.0


def test_what_has_no_kernel_or_makes_no_sense_is_refused():
    with pytest.raises(dqat.UnsupportedLayerError, match="operator GELU has no kernel for int16"):
        dqat.quantize_model(branches(), int16_layers=["conv"])
    with pytest.raises(ValueError, match="int16_layers: the model has no layer third"):
        dqat.quantize_model(branches(), int16_layers=["third"])
    with pytest.raises(ValueError, match="named in float_layers and in int16_layers: sum"):
        dqat.quantize_model(branches(), int16_layers=["sum"], float_layers=["sum"])
    with pytest.raises(ValueError, match="the scheme has other bits"):
        dqat.quantize_model(branches(), int16_layers=["sum"], scheme="w8a16")


def test_chosen_layers_win_back_accuracy(digits, digit_network, tmp_path):
    """One channel has values 200 times those of the others, and the layer behind doesn't look at it."""
    model = keras.models.clone_model(digit_network)
    model.set_weights(digit_network.get_weights())
    norm, after = model.get_layer("norm_0a"), model.get_layer("pointwise_0")
    is_loud = np.arange(12) == 5
    norm.gamma.assign(norm.gamma * np.where(is_loud, 200.0, 1.0))
    norm.beta.assign(np.where(is_loud, 400.0, norm.beta))
    after.kernel.assign(after.kernel * np.where(is_loud, 0.0, 1.0)[:, None])
    (images, _), (test_images, classes) = digits

    def exported(names):
        quantized = dqat.quantize_model(model, int16_layers=names)
        calibrate(quantized, [images[:256]])
        path = dqat.export_tflite(quantized, tmp_path / "model.tflite").path
        return quantized, dqat.verify(quantized, path, test_images, labels=classes, float_model=model, layer_samples=0)

    quantized, before = exported([])
    names = sensitivity(quantized, images[:256]).choose(gain_db=10.0, weights=0.5, into="int16")
    assert {"depthwise_0", "pointwise_0"} <= set(names), "both sides of the tensor that needs more than 8 bits"
    _, after = exported(names)
    assert before.figures["int8"] < before.figures["float"] - 0.05
    assert after.figures["int8"] > before.figures["int8"] + 0.5 * (before.figures["float"] - before.figures["int8"])
    assert after.within_1_lsb >= 0.99
    with pytest.raises(ValueError, match="into must be 'float' or 'int16', got 'int4'"):
        sensitivity(quantized, images[:8]).choose(into="int4")
