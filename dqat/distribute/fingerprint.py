"""Whether all processes train the same model: compared before the first step, where a difference would hang."""

import hashlib
from itertools import zip_longest

import numpy as np
import tensorflow as tf

from dqat import native
from dqat.distribute.engine import Engine
from dqat.keras_api import keras
from dqat.model import QuantizedModel, named_quantizers


def fingerprint(model: keras.Model) -> list[str]:
    """What must be the same on all replicas, a line each: versions, layers, shapes, quantizers, modes."""
    lines = [f"dqat {native.module.build_info()['dqat']}", f"TensorFlow {tf.__version__}"]
    lines += [f"layer {layer.name}: {line}" for layer, line in zip(model.layers, structure(model), strict=False)]
    if isinstance(model, QuantizedModel):
        sync = model.range_sync
        lines.append(f"range_sync {sync.mode}, on_nonfinite {sync.on_nonfinite}")
        lines += [f"quantizer {path}: {each.own_spec}, {each.observer}" for path, each in named_quantizers(model)]
        start, freeze = sync.schedule.window
        lines.append(f"ranges observed from step {start} to {'the end' if freeze is None else freeze}")
    return lines


def structure(model: keras.Model) -> list[str]:
    """What a checkpoint must agree on: layers, shapes and quantizers, without names that Keras may number anew."""
    lines = []
    for layer in model.layers:
        weights = ", ".join(str(tuple(weight.shape)) for weight in layer.weights)
        lines.append(f"{type(layer).__name__}, weights {weights or 'none'}")
    if isinstance(model, QuantizedModel):
        lines += [f"quantizer {each.own_spec}, {each.observer}" for _, each in named_quantizers(model)]
    return lines


def compare(engine: Engine, lines: list[str]) -> None:
    """Compares the lines among the processes; all must call it.

    Raises:
        RuntimeError: on every process, where they differ; names the first difference.
    """
    if engine.processes == 1:
        return
    text = "\n".join(lines).encode()
    digest = np.frombuffer(hashlib.sha256(text).digest() + len(text).to_bytes(4, "little"), np.int32)
    digests = engine.all_gather(digest, "dqat.fingerprint")
    if all((other == digests[0]).all() for other in digests):
        return
    longest = max(int(other[-1]) for other in digests)
    padded = np.zeros([longest], np.int32)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    gathered = engine.all_gather(padded, "dqat.fingerprint.text")
    texts = [bytes(other.astype(np.uint8)).rstrip(b"\0").decode().split("\n") for other in gathered]
    ranks_each = engine.size // engine.processes
    for process, other in enumerate(texts):
        for here, there in zip_longest(texts[0], other, fillvalue="nothing more"):
            if here != there:
                raise RuntimeError(
                    "dqat: the model is not the same on all replicas. The first difference: "
                    f"rank {process * ranks_each} has {there!r}, rank 0 has {here!r}"
                )
