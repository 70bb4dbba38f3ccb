"""The accuracy sweeps: what one seed gives, and that an interrupted sweep goes on where it ended."""

import json
import pathlib
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import accuracy, post_training, sequence_accuracy
from dqat import child_process
from dqat.keras_api import keras

DATA = pathlib.Path(__file__).parent.parent / "data"


@pytest.fixture
def short(monkeypatch):
    """Recipes of one epoch and few units."""
    task = sequence_accuracy.TASKS["speech"]
    recipe = replace(task.recipe, units=8, batch=54, float_epochs=1, qat_epochs=1)
    monkeypatch.setitem(sequence_accuracy.TASKS, "speech", replace(task, recipe=recipe))


def test_a_seed_gives_the_figures_of_all_contenders(short, tmp_path, capsys):
    row = sequence_accuracy.run("speech/lstm", 0, DATA, tmp_path)
    for contender in ("float", "float_longer", "simulation", "int8", "post_training"):
        assert 0.0 < row[contender] <= 1.0
    assert row["within_1_lsb"] > 0.99
    accuracy.show([{"case": "speech/lstm", "seed": 0, **row}])
    assert f"{row['int8']:.2%}" in capsys.readouterr().out


def test_a_converter_that_dies_is_a_figure_too(tmp_path):
    inputs = keras.Input((5, 3))
    keras.Model(inputs, keras.layers.GRU(4)(inputs)).save(tmp_path / "gru.keras")
    samples = np.zeros((4, 5, 3), np.float32)
    with pytest.raises(child_process.ChildDiedError, match="Segmentation fault"):
        child_process.run(post_training.convert, str(tmp_path / "gru.keras"), samples, str(tmp_path / "gru.tflite"))


def test_a_sweep_runs_what_is_missing_alone(monkeypatch, tmp_path):
    ran = []

    def figures(name, seed, data, out):
        ran.append((name, seed))
        return {"metric": "accuracy", **dict.fromkeys(("float", "int8", "within_1_lsb", "same_class"), 0.5)}

    monkeypatch.setattr(accuracy, "RUNNERS", {"a": figures, "b": figures})
    file = tmp_path / "rows.jsonl"
    accuracy.main(case=["a"], seeds=2, data=DATA, json_lines=file, threads=0)
    accuracy.main(case=None, seeds=2, data=DATA, json_lines=file, threads=0)
    assert ran == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["case"], row["seed"]) for row in rows] == ran
