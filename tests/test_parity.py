import numpy as np
import pytest
import tensorflow as tf
from conftest import compiled

import dqat
from dqat.child_process import ChildDiedError
from dqat.export import checksum
from dqat.export.flatbuffer import Flatbuffer, LstmTensors
from dqat.keras_api import keras
from dqat.layers import QuantizeWrapper


def test_the_exported_file_behaves_as_the_simulation(speech, trained, exported):
    parity = dqat.verify(trained, exported.path, speech[1][0])
    assert parity.within_1_lsb >= 0.99
    assert parity.same_class >= 0.99  # of 370: the classes of two lie within an LSB
    assert parity.equal <= parity.within_1_lsb
    accuracy = {(outputs.argmax(-1) == speech[1][1]).mean() for outputs in (parity.simulation, parity.integer)}
    assert min(accuracy) > 0.85  # it has learnt something that could be lost
    assert "XNNPACK" in parity.kernels


def test_a_dataset_and_an_array_give_the_same_report(speech, trained, exported):
    samples, labels = speech[1][0][:50], speech[1][1][:50]
    dataset = tf.data.Dataset.from_tensor_slices((samples, labels)).batch(16)
    from_array, from_dataset = (dqat.verify(trained, exported.path, data) for data in (samples, dataset))
    np.testing.assert_array_equal(from_array.integer, from_dataset.integer)
    assert from_array.equal == from_dataset.equal


def test_layers_are_compared_one_by_one(speech, trained, exported):
    parity = dqat.verify(trained, exported.path, speech[1][0][:40])
    names = [layer.name for layer in parity.layers]
    assert names == ["speech_quantizer", "lstm_0/hidden", "lstm_1/hidden", "relu/output", "speaker/output"]
    assert parity.not_compared == ("lstm_0/cell_state", "lstm_1/cell_state")
    assert parity.layers[3].layers == ("features", "relu")
    assert all(layer.same_parameters for layer in parity.layers)
    assert all(layer.own_within_1_lsb >= 0.99 and layer.snr_db > 30 for layer in parity.layers)
    assert parity.first_apart is None
    assert parity.outputs[0].name == "speaker" and parity.outputs[0].equal == parity.equal


def edited(path, exported, edit):
    """A copy of the exported file that `edit` has changed, with the checksum of its own."""
    flatbuffer = Flatbuffer(exported.path.read_bytes())
    edit(flatbuffer)
    path.write_bytes(checksum.seal(flatbuffer))
    return path


def test_a_range_cut_to_a_third_is_found_and_its_layer_named(speech, trained, exported, tmp_path):
    def cut(flatbuffer):
        scale, zero_point = exported.parameters["lstm_1/hidden"]
        for index in range(len(flatbuffer.graph.tensors)):
            if flatbuffer.parameters(index) == (scale, zero_point):
                flatbuffer.set_scale(index, scale / 3)

    parity = dqat.verify(trained, edited(tmp_path / "cut.tflite", exported, cut), speech[1][0][:50])
    assert parity.within_1_lsb < 0.5
    assert parity.first_apart.name == "lstm_1/hidden"
    assert not parity.first_apart.same_parameters
    before = next(layer for layer in parity.layers if layer.name == "lstm_0/hidden")
    assert before.within_1_lsb >= 0.99 and before.same_parameters


def test_a_swapped_gate_is_found_and_its_layer_named(speech, trained, exported, tmp_path):
    def swap(flatbuffer):
        inputs = flatbuffer.lstms()[0].inputs
        first, second = LstmTensors.INPUT_WEIGHTS[1:3]
        inputs[first], inputs[second] = inputs[second], inputs[first]

    parity = dqat.verify(trained, edited(tmp_path / "swapped.tflite", exported, swap), speech[1][0][:50])
    assert parity.within_1_lsb < 0.9
    assert parity.first_apart.name == "lstm_0/hidden"
    assert [layer.name for layer in parity.layers if layer.parts] == ["lstm_0/hidden"]


@pytest.fixture(scope="module")
def convolutional(speech):
    """Convolutions with BatchNormalization over real speech, trained quantization-aware."""
    keras.utils.set_random_seed(0)
    outputs = inputs = keras.Input((29, 12, 1), name="speech")
    for index in range(3):
        outputs = keras.layers.Conv2D(8, 3, strides=2, padding="same", name=f"conv_{index}")(outputs)
        outputs = keras.layers.BatchNormalization(momentum=0.5, name=f"norm_{index}")(outputs)
        outputs = keras.layers.ReLU(name=f"relu_{index}")(outputs)
    outputs = keras.layers.Dense(9, name="speaker")(keras.layers.GlobalAveragePooling2D()(outputs))
    model = compiled(dqat.quantize_model(keras.Model(inputs, outputs)))
    model.fit(speech[0][0][..., None], speech[0][1], batch_size=30, epochs=4, verbose=0)
    return model


def test_a_wrong_batch_norm_fold_is_found_and_its_layer_named(speech, convolutional, tmp_path, monkeypatch):
    fold = QuantizeWrapper.inference_weights

    def forgetful(layer):
        weights = fold(layer)
        if layer.name == "conv_1":
            weights["bias"] = weights["bias"] + layer.norm.moving_mean.numpy() * layer.fold_factor().numpy()
        return weights

    samples = speech[1][0][:50, ..., None]
    right = dqat.verify(convolutional, dqat.export_tflite(convolutional, tmp_path / "right.tflite").path, samples)
    assert right.first_apart is None
    monkeypatch.setattr(QuantizeWrapper, "inference_weights", forgetful)
    wrong = dqat.verify(convolutional, dqat.export_tflite(convolutional, tmp_path / "wrong.tflite").path, samples)
    assert wrong.first_apart.name == "relu_1/output"
    assert wrong.first_apart.layers == ("conv_1", "norm_1", "relu_1")
    assert [layer.name for layer in wrong.layers if layer.parts] == ["relu_1/output"]


def test_the_simulation_is_as_before_after_layers_were_compared(speech, trained, exported):
    samples = speech[1][0][:8]
    before = trained(samples, training=False).numpy()
    dqat.verify(trained, exported.path, samples)
    np.testing.assert_array_equal(trained(samples, training=False), before)


def test_layers_may_have_slashes_in_their_names(speech, tmp_path):
    convolution = keras.layers.Conv1D(4, 3, name="block/conv")
    stack = [keras.Input((29, 12), name="in"), convolution, keras.layers.BatchNormalization(name="block/norm")]
    quantized = dqat.quantize_model(keras.Sequential(stack))
    quantized(speech[0][0][:32], training=True)
    file = dqat.export_tflite(quantized, tmp_path / "model.tflite").path
    parity = dqat.verify(quantized, file, speech[1][0][:8])
    assert [layer.name for layer in parity.layers] == ["in_quantizer", "block/norm_quantizer"]
    assert parity.layers[1].layers == ("block/conv", "block/norm")


def test_the_task_metric_of_float_simulation_and_file(speech, float_trained, trained, exported):
    samples, labels = speech[1][0][:60], speech[1][1][:60]
    parity = dqat.verify(trained, exported.path, samples, labels=labels, float_model=float_trained)
    assert parity.metric == "accuracy"
    assert parity.figures == {
        "float": (float_trained(samples).numpy().argmax(-1) == labels).mean(),
        "simulation": (parity.simulation.argmax(-1) == labels).mean(),
        "int8": (parity.integer.argmax(-1) == labels).mean(),
    }
    dataset = tf.data.Dataset.from_tensor_slices((samples, labels)).batch(16)
    wrong = lambda truth, outputs: (outputs.argmax(-1) != truth).mean()  # noqa: E731
    counted = dqat.verify(trained, exported.path, dataset, metric=wrong, layer_samples=0)
    assert counted.figures["int8"] == pytest.approx(1.0 - parity.figures["int8"])
    assert counted.layers == ()
    with pytest.raises(ValueError, match="59 labels for 60 samples"):
        dqat.verify(trained, exported.path, samples, labels=labels[:59])
    with pytest.raises(ValueError, match="metric must be one of accuracy, mse or a function, got 'bleu'"):
        dqat.verify(trained, exported.path, samples, labels=labels, metric="bleu")


def test_litert_runs_the_same_file(speech, trained, exported):
    pytest.importorskip("ai_edge_litert.interpreter", reason="the package ai-edge-litert is not installed")
    here, there = (
        dqat.verify(trained, exported.path, speech[1][0][:50], runtime=runtime) for runtime in ("tensorflow", "litert")
    )
    assert there.kernels.startswith("LiteRT 2.")
    assert there.within_1_lsb >= 0.99 and there.first_apart is None
    np.testing.assert_array_equal(there.integer, here.integer)  # the fused LSTM is the same everywhere


def test_a_file_that_ends_the_interpreter_leaves_the_process_alive(trained, exported, speech, tmp_path):
    """A file without a checksum is tried in a process of its own first."""
    flatbuffer = Flatbuffer(exported.path.read_bytes())
    for index in flatbuffer.lstms()[0].inputs[5:9]:
        flatbuffer.tensor(index).shape = np.array([1, 1], np.int32)
    path = tmp_path / "foreign.tflite"
    path.write_bytes(flatbuffer.to_bytes().replace(b"dqat.sha256:", b"another.tool"))
    with pytest.raises((ChildDiedError, ValueError)):
        dqat.verify(trained, path, speech[1][0][:2])


def test_the_order_of_samples_does_not_matter(speech, trained, exported):
    """An LSTM's state variables must not leak from one sample into the next."""
    samples = speech[1][0][:20]
    forth, back = (dqat.verify(trained, exported.path, data).integer for data in (samples, samples[::-1]))
    np.testing.assert_array_equal(forth, back[::-1])


def test_wrong_arguments_are_refused(speech, trained, exported, tmp_path):
    with pytest.raises(TypeError, match="is not quantized"):
        dqat.verify(object(), exported.path, speech[1][0])
    with pytest.raises(ValueError, match="data has no samples"):
        dqat.verify(trained, exported.path, speech[1][0][:0])
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no model")
    with pytest.raises(ValueError, match="broken.tflite is no TFLite file"):
        dqat.verify(trained, broken, speech[1][0][:1])
