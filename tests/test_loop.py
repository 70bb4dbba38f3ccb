"""Export with a loop: the file of the unrolled cells, in a fraction of the bytes."""

import numpy as np
import pytest
from conftest import compiled
from recurrent_models import FRAMES, UNROLLED, chain

import dqat
from dqat.export.inspection import inspect_tflite
from dqat.interpreter import Runner
from dqat.keras_api import keras

layers = keras.layers
MODELS = {
    "gru": UNROLLED["gru"],
    "gru, reset before": UNROLLED["gru, reset before"],
    "gru, dense, simple rnn": chain(
        lambda: layers.GRU(8, return_sequences=True), lambda: layers.Dense(7), lambda: layers.SimpleRNN(6)
    ),
    "stacked cells": UNROLLED["stacked cells"],
    "a user's own cell": UNROLLED["a user's own cell"],
}


@pytest.mark.parametrize("name", MODELS)
def test_a_loop_has_the_outputs_of_the_unrolled_file_in_every_bit(name, speech, tmp_path):
    keras.utils.set_random_seed(0)
    samples, speakers = speech[0][0][:, -FRAMES:], speech[0][1]
    model = compiled(dqat.quantize_model(MODELS[name]()), 1e-2)
    model.fit(samples, speakers, batch_size=27, epochs=2, verbose=0)
    loop = dqat.export_tflite(model, tmp_path / "loop.tflite", loop=True)
    whole = dqat.export_tflite(model, tmp_path / "whole.tflite")
    assert loop.operators.count("WHILE") == 1
    assert loop.size < whole.size
    assert loop.parameters == whole.parameters
    found = inspect_tflite(loop.path)
    assert found.float_islands == []
    assert not any(tensor.is_float for graph in found.subgraphs for tensor in graph.tensors)
    x = np.float32(speech[1][0][:60, -FRAMES:])
    for kernels in ("default", "builtin"):
        ours, theirs = (Runner(report.path, kernels).run([x])[0] for report in (loop, whole))
        np.testing.assert_array_equal(ours, theirs)
        assert len(np.unique(ours)) > 20
    assert dqat.verify(model, loop.path, x).within_1_lsb >= 0.99


def exported(part, tmp_path, frames=FRAMES, **options):
    inputs = keras.Input((frames, 4), name="frames")
    model = dqat.quantize_model(keras.Model(inputs, part(inputs)))
    x = np.random.default_rng(0).normal(size=(8, frames, 4)).astype(np.float32)
    for _ in range(2):
        model(x, training=True)
    return dqat.export_tflite(model, tmp_path / f"{frames}.tflite", loop=True, **options)


def test_the_size_of_a_loop_does_not_depend_on_its_length(tmp_path):
    sizes = [exported(layers.GRU(8), tmp_path, frames).size for frames in (10, 1000)]
    assert abs(sizes[0] - sizes[1]) < 100


def test_a_loop_takes_floats_where_it_is_told_to(tmp_path):
    report = exported(layers.GRU(8), tmp_path, io="float32")
    (graph, *_) = inspect_tflite(report.path).subgraphs
    assert [graph.tensors[index].name for index in graph.inputs] == ["frames"]
    assert [operator.name for operator in graph.operators] == ["QUANTIZE", "RESHAPE", "WHILE", "DEQUANTIZE"]
    samples = np.random.default_rng(1).normal(size=(5, FRAMES, 4)).astype(np.float32)
    assert Runner(report.path).run([samples])[0].shape == (5, 8)


@pytest.mark.parametrize("target", ["edgetpu", "nnapi"])
def test_targets_tell_of_loops(target, tmp_path):
    report = exported(layers.GRU(8), tmp_path, target=target)
    assert any(fallback.operator == "WHILE" and fallback.certain for fallback in report.fallbacks)


@pytest.mark.parametrize(
    "part, reason",
    [
        (layers.LSTM(4), "is one already: leave it out"),
        (layers.Flatten(), "there is no such layer"),
        (layers.GRU(4, return_sequences=True), "an output of the model has all frames"),
        (layers.Bidirectional(layers.GRU(4)), "runs from the end of the sequence"),
    ],
    ids=["lstm", "none", "sequences", "bidirectional"],
)
def test_what_a_loop_is_not_for_is_refused(part, reason, tmp_path):

    with pytest.raises(dqat.ExportError, match=reason):
        exported(part, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_loop_is_no_stream(tmp_path):
    with pytest.raises(ValueError, match="loop=True is for whole sequences"):
        exported(layers.GRU(4), tmp_path, streaming=True)
