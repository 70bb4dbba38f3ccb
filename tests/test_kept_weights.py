"""Pruned and clustered models stay so through quantization-aware training, and in the file."""

import numpy as np
import pytest
from conftest import compiled

import dqat
import dqat.tfmot as tfmot
from dqat.keras_api import keras

PRUNED, CLUSTERED = ("pointwise_0", "pointwise_1", "last"), 16
collab_opts, combine = tfmot.quantization.keras.collab_opts, tfmot.experimental.combine


def pruned(weight):
    """The smaller half is 0, as magnitude pruning leaves it."""
    return np.where(np.abs(weight) < np.median(np.abs(weight)), 0, weight).astype(np.float32)


def clustered(weight):
    """So many values in all, 0 among them where there are zeros: the means of what lies near them."""
    values = weight[weight != 0]
    edges = np.quantile(values, np.linspace(0, 1, CLUSTERED)[1:-1])
    place = np.digitize(values, edges)
    found = weight.copy()
    found[weight != 0] = np.float32([values[place == one].mean() for one in range(CLUSTERED - 1)])[place]
    return found


def with_kernels(network, change):
    model = keras.models.clone_model(network)
    model.set_weights(network.get_weights())
    for name in PRUNED:
        kernel = model.get_layer(name).kernel
        kernel.assign(change(kernel.numpy()))
    return model


def trained(model, scheme, digits, optimizer=None):
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    annotated.set_weights(model.get_weights())
    quantized = tfmot.quantization.keras.quantize_apply(annotated, scheme)
    compiled(quantized)
    if optimizer is not None:
        quantized.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics="accuracy")
    quantized.fit(*digits[0], batch_size=64, epochs=1, verbose=0)
    return quantized


def kernels(model):
    return {name: model.get_layer(f"quant_{name}").quantized_weights()["kernel"].numpy() for name in PRUNED}


def stored(path, kernel):
    """The file's integers of a kernel, output channels first."""
    shape = (kernel.shape[-1], *kernel.shape[:-1])
    (subgraph,) = dqat.inspect_tflite(path).subgraphs
    (found,) = [tensor for tensor in subgraph.tensors if tuple(tensor.shape) == shape and tensor.values]
    return np.frombuffer(found.values, np.int8).reshape(shape)


OPTIMIZERS = [
    lambda: keras.optimizers.Adam(3e-3),
    lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    lambda: keras.optimizers.AdamW(3e-3, weight_decay=0.01),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["Adam", "momentum", "AdamW"])
def test_zeros_stay_zeros_through_training_and_in_the_file(optimizer, digits, digit_network, tmp_path):
    model = with_kernels(digit_network, pruned)
    scheme = collab_opts.Default8BitPrunePreserveQuantizeScheme()
    quantized = trained(model, scheme, digits, optimizer())
    path = dqat.export_tflite(quantized, tmp_path / "model.tflite").path
    for name, kernel in kernels(quantized).items():
        before = model.get_layer(name).kernel.numpy()
        assert 0.45 < (before == 0).mean() < 0.55
        assert not kernel[before == 0].any()
        assert not quantized.get_layer(f"quant_{name}").layer.kernel.numpy()[before == 0].any()
        assert not stored(path, kernel)[np.moveaxis(before == 0, -1, 0)].any()
        assert not np.array_equal(before[before != 0], kernel[before != 0]), "the others train"


def test_without_the_scheme_zeros_are_lost(digits, digit_network):
    model = with_kernels(digit_network, pruned)
    quantized = trained(model, tfmot.quantization.keras.default_8bit.Default8BitQuantizeScheme(), digits)
    for name, kernel in kernels(quantized).items():
        assert kernel[model.get_layer(name).kernel.numpy() == 0].any()


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["Adam", "momentum", "AdamW"])
@pytest.mark.parametrize("sparsity", [False, True])
def test_equal_weights_stay_equal_through_training_and_in_the_file(
    sparsity, optimizer, digits, digit_network, tmp_path
):
    change = (lambda kernel: clustered(pruned(kernel))) if sparsity else clustered
    model = with_kernels(digit_network, change)
    scheme = combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=sparsity)
    quantized = combine.strip_clustering_cqat(trained(model, scheme, digits, optimizer()))
    path = dqat.export_tflite(quantized, tmp_path / "model.tflite").path
    for name in PRUNED:
        before = model.get_layer(name).kernel.numpy()
        layer = quantized.get_layer(f"quant_{name}")
        kernel = layer.weight_values()["kernel"].numpy()
        assert len(np.unique(before)) == CLUSTERED - 1 + sparsity
        assert len(np.unique(kernel)) <= len(np.unique(before))
        assert not np.array_equal(before, kernel), "clusters train"
        # A convolution has a scale for each channel, so its integers are few in each.
        codes = stored(path, kernel)
        parts = codes if before.ndim > 2 else [codes]
        assert max(len(np.unique(part)) for part in parts) <= len(np.unique(before))
        if sparsity:
            assert not kernel[before == 0].any() and not codes[np.moveaxis(before == 0, -1, 0)].any()


def test_clusters_learn_as_their_weights_would(digits, digit_network):
    """The network that lost accuracy to clustering gets most of it back."""
    model = compiled(with_kernels(digit_network, lambda kernel: clustered(pruned(kernel))))
    before = model.evaluate(*digits[1], verbose=0)[1]
    quantized = trained(model, combine.Default8BitClusterPreserveQuantizeScheme(), digits)
    exact = digit_network.evaluate(*digits[1], verbose=0)[1]
    assert quantized.evaluate(*digits[1], verbose=0)[1] >= before + 0.5 * (exact - before)


def test_a_loaded_model_keeps_what_the_saved_one_kept(digits, digit_network, tmp_path):
    model = with_kernels(digit_network, lambda kernel: clustered(pruned(kernel)))
    quantized = trained(model, combine.Default8BitClusterPreserveQuantizeScheme(), digits)
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one in (quantized, loaded):
        one.fit(*digits[0], batch_size=64, epochs=1, verbose=0, shuffle=False)
    for name in PRUNED:
        kernel = loaded.get_layer(f"quant_{name}").weight_values()["kernel"].numpy()
        assert len(np.unique(kernel)) <= CLUSTERED
        np.testing.assert_array_equal(kernel, quantized.get_layer(f"quant_{name}").weight_values()["kernel"])


def test_a_kernel_that_was_not_clustered_is_told_and_trains(digit_network):
    scheme = dqat.Scheme(kept="clusters")
    kernel = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32, name="wide")])
    model.layers[0].kernel.assign(kernel)
    with pytest.warns(UserWarning, match="wide/kernel has 2048 distinct weights"):
        quantized = dqat.quantize_model(model, scheme=scheme)
    np.testing.assert_array_equal(quantized.get_layer("wide").weight_values()["kernel"], kernel)


def test_nothing_else_can_be_kept():
    with pytest.raises(ValueError, match="kept must be one of zeros, clusters, zeros and clusters, or None, got 'all'"):
        dqat.Scheme(kept="all")
