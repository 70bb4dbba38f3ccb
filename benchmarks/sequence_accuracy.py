"""One seed of a sequence task: see accuracy.py."""

import pathlib
from typing import Any

import numpy as np
import tensorflow as tf
import train_sequence
from tensorflow.lite.python.convert import ConverterError
from train_sequence import TASKS, Options

import dqat
from benchmarks import post_training
from dqat import child_process

keras = tf.keras
CASES = (*(f"{task}/{cell}" for task in ("speech", "watch") for cell in ("lstm", "gru", "bilstm")), "text/lstm")
#: Samples from which the converter takes ranges in post-training quantization.
CALIBRATION = 200


def run(case: str, seed: int, data: pathlib.Path, out: pathlib.Path) -> dict[str, Any]:
    """Trains with the recipe of launch/train_sequence.py and gives the figures of all contenders.

    The float model is kept in `out`: a run that was interrupted goes on from there.
    """
    task, _, cell = case.partition("/")
    chosen = TASKS[task]
    training, (samples, labels) = chosen.load(data / chosen.folder)
    options = Options(task, cell, chosen.recipe, out=out)
    metric = "bits per character" if task == "text" else "accuracy"
    score = train_sequence.bits if task == "text" else train_sequence.accuracy

    strategy = dqat.distribute.Strategy("none")
    kept = pathlib.Path(f"{options.path}_{seed}.keras")
    if kept.exists():
        model = keras.models.load_model(kept, compile=False)
    else:
        model = train_sequence.train_float(options, training, strategy, seed)
        model.save(kept)
    figures: dict[str, Any] = {"metric": metric, "float": score(train_sequence.logits_of(model, samples), labels)}

    # What fine-tuning gives by itself: the float model trained on, in the same way.
    longer = keras.models.clone_model(model)
    longer.set_weights(model.get_weights())
    train_sequence.train_further(longer, options, training, strategy, seed)
    figures["float_longer"] = score(train_sequence.logits_of(longer, samples), labels)

    quantized = dqat.quantize_model(model)
    train_sequence.train_further(quantized, options, training, strategy, seed)
    path = f"{options.path}_{seed}.tflite"
    dqat.export_tflite(quantized, path)
    parity = dqat.verify(quantized, path, samples)
    figures |= {
        "simulation": score(parity.simulation, labels),
        "int8": score(parity.integer, labels),
        "within_1_lsb": parity.within_1_lsb,
        "max_lsb": parity.max_lsb,
        "same_class": parity.same_class,
    }
    chosen = np.random.default_rng(seed).permutation(len(training[0]))[:CALIBRATION]
    logits = post_training_logits(f"{options.path}_{seed}", training[0][chosen], samples)
    figures["post_training"] = logits if isinstance(logits, str) else score(logits, labels)
    return figures


def post_training_logits(path: str, calibration: np.ndarray, samples: np.ndarray) -> np.ndarray | str:
    """What the post-training quantized file gives for the test samples, or what became of it.

    Args:
        path: of the saved float model, without suffix.
        calibration: samples from which the converter takes the ranges.
        samples: test samples.
    """
    file = f"{path}_post_training.tflite"
    try:
        child_process.run(post_training.convert, f"{path}.keras", calibration, file, timeout=900.0)
        return child_process.run(post_training.outputs, file, samples, timeout=1800.0)
    except child_process.ChildDiedError as error:
        print(f"post-training quantization of {path}: {error}", flush=True)
        return "crashed"
    except (ConverterError, RuntimeError, ValueError) as error:  # what the converter says stands in the row
        return f"refused: {str(error).strip().splitlines()[-1][:80]}"
