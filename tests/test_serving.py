"""A SavedModel of a quantized model serves with the op library alone, without dqat's Python."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import compiled, speech_model

import dqat
from dqat import native

BATCHES = (64, 1, 7)
SAVERS = {
    "tf.saved_model.save": lambda model, path: tf.saved_model.save(model, path),
    "model.save": lambda model, path: model.save(path, save_format="tf"),
    "model.export": lambda model, path: model.export(path),
}

# What a server does: TensorFlow, the op library, SavedModels. The process proves that dqat was not imported.
SERVE = f"""
import sys
import numpy as np
import tensorflow as tf
library, samples, *models = sys.argv[1:]
tf.load_op_library(library)
samples = tf.constant(np.load(samples))
for model in models:
    loaded = tf.saved_model.load(model)
    serve = loaded.signatures["serving_default"]
    (name,) = serve.structured_input_signature[1]
    found = {{}}
    for batch in {BATCHES}:
        (found[str(batch)],) = serve(**{{name: samples[:batch]}}).values()
    if callable(loaded):
        found["called for training"] = loaded(100 * samples, training=True)
        (found["after that"],) = serve(**{{name: samples}}).values()
    np.savez(model + ".npz", **found)
assert not any(module.split(".")[0] == "dqat" for module in sys.modules), "dqat was imported"
"""


@pytest.fixture(scope="module", params=["delayed", "exact"])
def served(request, speech, tmp_path_factory, run_python):
    """A model of each sync mode, the samples, and what its SavedModels answered in a process of their own."""
    folder = tmp_path_factory.mktemp("served")
    model = compiled(dqat.quantize_model(speech_model((6, 5)), range_sync=request.param))
    model.fit(speech[0][0][:60], speech[0][1][:60], batch_size=30, verbose=0)
    samples = speech[1][0][: max(BATCHES)].astype(np.float32)
    np.save(folder / "samples.npy", samples)
    before = dqat.ranges(model)
    paths = {name: str(folder / name) for name in SAVERS}
    for name, save in SAVERS.items():
        save(model, paths[name])
    run_python("-c", SERVE, native.module.__spec__.origin, str(folder / "samples.npy"), *paths.values())
    return model, samples, before, {name: np.load(path + ".npz") for name, path in paths.items()}


@pytest.mark.parametrize("saver", SAVERS)
def test_a_saved_model_gives_the_same_bits_in_a_process_without_dqat(served, saver):
    model, samples, _, answers = served
    # In a graph, as it serves.
    simulation = tf.function(lambda x: model(x, training=False))
    for batch in BATCHES:
        got, expected = answers[saver][str(batch)], simulation(samples[:batch]).numpy()
        np.testing.assert_array_equal(got.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("saver", ["tf.saved_model.save", "model.save"])
def test_ranges_in_a_saved_model_stand_still_even_when_it_is_called_for_training(served, saver):
    answers = served[-1][saver]
    assert answers["called for training"].shape == answers["64"].shape
    np.testing.assert_array_equal(answers["after that"], answers["64"])


def test_saving_leaves_the_model_as_it_was_and_it_trains_on(served, speech):
    model, _, before, _ = served
    weights = model.get_weights()
    for name, (low, high) in dqat.ranges(model).items():
        np.testing.assert_array_equal(low, before[name][0], err_msg=name)
        np.testing.assert_array_equal(high, before[name][1], err_msg=name)
    model.fit(3 * speech[0][0][:30], speech[0][1][:30], verbose=0)
    assert dqat.ranges(model)["speech_quantizer"] != before["speech_quantizer"]
    model.set_weights(weights)  # for the other tests
