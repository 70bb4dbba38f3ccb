"""Every model that the project can quantize: a file in integers, and a parity table by `dqat verify` alone.

All of them with HYPOTHESIS_PROFILE=nightly, else one of each kind.
"""

import json
import os

import numpy as np
import pytest
from layer_table import ROWS, Row
from recurrent_models import FRAMES, FUSED, UNROLLED
from typer.testing import CliRunner

import dqat
from dqat.cli import app
from dqat.keras_api import keras

SOME = {
    *(
        "Dense, BatchNormalization",
        "Conv2D, BatchNormalization, ReLU",
        "SeparableConv2D",
        "Concatenate",
        "shared layer",
    ),
    *("Embedding", "lstm, stacked", "bidirectional lstm, ave", "gru", "a user's own cell"),
}
RECURRENT = {**FUSED, **UNROLLED}
NAMES = [*ROWS, *RECURRENT]
if os.environ.get("HYPOTHESIS_PROFILE") != "nightly":
    NAMES = [name for name in NAMES if name in SOME]


def model_samples_and_targets(name, speech):
    if name in ROWS:
        return ROWS[name].model(), ROWS[name].samples(24), lambda model: Row.targets(model, 24)
    keras.utils.set_random_seed(1)
    return RECURRENT[name](), [speech[0][0][:24, :FRAMES]], lambda model: np.eye(9)[speech[0][1][:24]]


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_exported_and_compared_by_layer_from_the_shell(name, speech, tmp_path):
    model, samples, targets = model_samples_and_targets(name, speech)
    model = dqat.quantize_model(model)
    # Clipped: gradients of layer-norm cells explode at the constant first frames, in float too.
    model.compile(keras.optimizers.SGD(1e-3, clipnorm=1.0), "mse")
    model.fit(samples if len(samples) > 1 else samples[0], targets(model), batch_size=12, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "samples.npz", **dict(zip(model.input_names, samples, strict=True)))

    def call(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    file = tmp_path / "model.tflite"
    exported = call("export", tmp_path / "model.keras", file)
    assert exported.exit_code == 0, exported.stderr
    assert "integer only" in call("inspect", file).stdout
    verified = call("verify", tmp_path / "model.keras", file, tmp_path / "samples.npz", "--json")
    assert verified.exit_code == 0, verified.stderr or verified.stdout
    found = json.loads(verified.stdout)
    assert found["first_apart"] is None
    assert {layer["cause"] for layer in found["layers"]} <= {"rounding", None}
    compared = {layer["name"] for layer in found["layers"]}
    outputs = {name for name in dqat.inspect_tflite(file).told["quantizers"] if name.endswith(("output", "hidden"))}
    assert outputs <= compared
    assert found["within_1_lsb"] >= 0.9
