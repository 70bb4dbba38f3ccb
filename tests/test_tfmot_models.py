"""Models of tfmot, taken over with weights and ranges; tfmot runs in a process of its own, since it brings tf_keras."""

import importlib.util
import pathlib

import numpy as np
import pytest

import dqat
import dqat.tfmot as tfmot
from dqat.keras_api import keras
from dqat.model import named_quantizers

ROOT = pathlib.Path(__file__).parent.parent
needs_tfmot = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_model_optimization") is None,
    reason="the package tensorflow-model-optimization is not installed (extra: benchmarks)",
)

#: Trains each kind of model with tfmot, and leaves its file, and what it gives for some samples.
MAKE = """
import sys
sys.path.insert(0, sys.argv[1])
from benchmarks.tfmot import load
import numpy as np, tensorflow as tf
tfmot, keras = load(), tf.keras
layers = keras.layers
x = inputs = keras.Input((12, 12, 3), name="images")
a = layers.Conv2D(4, 3, activation="relu", name="left")(x)
b = layers.Conv2D(4, 3, name="right")(x)
x = layers.MaxPooling2D(name="pool")(layers.Concatenate(name="both")([a, b]))
x = layers.Conv2D(5, 3, use_bias=False, name="conv")(x)
x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
x = layers.Add(name="sum")([x, layers.Conv2D(5, 1, name="point")(x)])
x = layers.Dense(6, name="dense")(layers.Flatten(name="flat")(x))
functional = keras.Model(inputs, x)
sequential = keras.Sequential([keras.Input((12, 12, 3)), layers.Conv2D(4, 3, activation="relu", name="conv"),
                               layers.Flatten(name="flat"), layers.Dense(4, name="dense")])
samples = np.random.default_rng(0).normal(size=(256, 12, 12, 3)).astype(np.float32)
quantize_model = tfmot.quantization.keras.quantize_model
scheme = tfmot.quantization.keras.experimental.default_n_bit.DefaultNBitQuantizeScheme(
    num_bits_weight=4, num_bits_activation=6)
annotated = tfmot.quantization.keras.quantize_annotate_model(sequential)
made = {"functional": quantize_model(functional), "sequential": quantize_model(sequential)}
with tfmot.quantization.keras.quantize_scope():
    made["n_bit"] = tfmot.quantization.keras.quantize_apply(annotated, scheme)
for name, model in made.items():
    model.compile("adam", "mse")
    model.fit(samples, np.zeros((256, *model.output_shape[1:])), epochs=3, verbose=0)
    model(samples, training=True)  # brings the weights' ranges up to the last update
    model.save(f"{sys.argv[2]}/{name}.h5")
    np.save(f"{sys.argv[2]}/{name}.npy", model(samples[:64], training=False))
np.save(f"{sys.argv[2]}/samples.npy", samples[:64])
"""


@pytest.fixture(scope="module")
def made(run_python, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfmot")
    run_python("-c", MAKE, str(ROOT), str(folder))
    return folder


@needs_tfmot
@pytest.mark.parametrize(
    "name, within_a_step, most",
    # What goes into the concatenation of the first is quantized twice there, in two ranges; five layers amplify that.
    [("functional", 0.85, 3), ("sequential", 0.99, 1)],
)
def test_outputs_agree_within_a_step_and_the_file_with_both(name, within_a_step, most, made, tmp_path):
    model = tfmot.load_quantized_model(made / f"{name}.h5")
    samples, theirs = np.load(made / "samples.npy"), np.load(made / f"{name}.npy")
    step = float(list(named_quantizers(model))[-1][1].scale())
    apart = np.abs(model(samples).numpy() - theirs) / step
    assert (apart < 1.01).mean() >= within_a_step
    assert apart.max() < most + 0.01
    report = dqat.export_tflite(model, tmp_path / "model.tflite")
    assert dqat.verify(model, report.path, samples).within_1_lsb > 0.99


@needs_tfmot
def test_ranges_are_tfmots(made):
    import h5py

    model = tfmot.load_quantized_model(made / "functional.h5")
    found = dqat.ranges(model)
    with h5py.File(made / "functional.h5") as file:
        theirs = {}
        file["model_weights"].visititems(
            lambda name, value: (
                theirs.update({"/".join(name.split("/")[-2:]): np.array(value)})
                if isinstance(value, h5py.Dataset)
                else None
            )
        )
    pairs = {
        "images_quantizer": "quantize_layer/quantize_layer",
        "quant_relu/output": "quant_relu/output",
        "quant_sum/output": "quant_sum/output",
        "quant_point/output": "quant_point/post_activation",
        "quant_left/output": "quant_both/output",  # of the concatenation that both go into
        "quant_right/output": "quant_both/output",
        "quant_dense/output": "quant_dense/post_activation",
    }
    for ours, one in pairs.items():
        np.testing.assert_array_equal(found[ours], [theirs[f"{one}_min:0"], theirs[f"{one}_max:0"]], err_msg=ours)
    np.testing.assert_allclose(found["quant_dense/kernel"][1], theirs["quant_dense/kernel_max:0"], rtol=1e-6)
    for name in ("conv/kernel", "norm/gamma", "norm/moving_mean", "dense/bias"):
        layer, role = name.split("/")
        layer = model.get_layer(f"quant_{layer}") if layer != "norm" else model.get_layer("quant_norm")
        np.testing.assert_array_equal(getattr(getattr(layer, "layer", layer), role), theirs[f"{name}:0"])


@needs_tfmot
def test_the_bits_of_an_n_bit_model_come_too_and_its_export_is_refused(made, tmp_path):
    model = tfmot.load_quantized_model(made / "n_bit.h5")
    layer = model.get_layer("quant_conv")
    assert layer.weight_specs()["kernel"].num_bits == 4
    assert layer.quantizers()["output"].spec.num_bits == 6
    with pytest.raises(dqat.ExportError, match=r"quant_conv/output \(6 bits\).*quant_conv/kernel \(4 bits\)"):
        dqat.export_tflite(model, tmp_path / "model.tflite")


@needs_tfmot
def test_a_model_trains_on(made):
    model = tfmot.load_quantized_model(made / "sequential.h5")
    model.compile("adam", "mse")
    samples = np.load(made / "samples.npy")
    entry = next(iter(dqat.ranges(model)))
    before = dqat.ranges(model)[entry]
    model.fit(samples * 0.5, np.zeros((64, 4)), epochs=1, verbose=0)
    after = dqat.ranges(model)[entry]
    assert 0.9 * before[1] < after[1] < before[1], "the moving average goes on from there"


def test_what_tfmot_has_not_quantized_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="tfmot has quantized no layer"):
        tfmot.load_quantized_model(model)
    model.save(tmp_path / "saved", save_format="tf")
    with pytest.raises(ValueError, match="is a SavedModel: load it with tfmot's quantize_scope"):
        tfmot.load_quantized_model(tmp_path / "saved")
