import numpy as np
import pytest
import tensorflow as tf

import dqat
from dqat.export import checksum
from dqat.export.flatbuffer import Flatbuffer, LstmTensors


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


def test_a_range_cut_to_a_third_shows(speech, trained, exported, tmp_path):
    flatbuffer = Flatbuffer(exported.path.read_bytes())
    lstm = flatbuffer.lstms()[1]
    for index in (
        lstm.outputs[0],
        lstm.inputs[LstmTensors.HIDDEN_STATE],
        lstm.intermediates[LstmTensors.EFFECTIVE_HIDDEN_SCALE],
    ):
        flatbuffer.tensor(index).quantization.scale = flatbuffer.tensor(index).quantization.scale / 3
    path = tmp_path / "cut.tflite"
    path.write_bytes(checksum.seal(flatbuffer))
    parity = dqat.verify(trained, path, speech[1][0][:50])
    assert parity.within_1_lsb < 0.5


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
