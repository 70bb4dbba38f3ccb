"""What a file tells of itself, beside its checksum: versions, what was trained, and which tensor is whose.

Interpreters ignore it. It is JSON under the name `dqat.model`:

- "dqat", "tensorflow": versions; "model": its name; "io", "streaming", "loop": as `export_tflite` was told.
- "training": "steps", training steps of the quantization-aware model; "range_sync"; "observed", the first step whose
  values entered the ranges and the first one that did not any more, null for none.
- "quantizers": by path "layer/role" its "spec", "observer", "scale", "zero_point", "min" and "max" (float32 values of
  the lowest and the highest level), "tensors": by scope (see `dqat.export.points`) pairs of number and index, and
  "counts": by scope how many numbers there were before the converter merged some.
"""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from dqat import native
from dqat.export.flatbuffer import Flatbuffer
from dqat.export.points import Point
from dqat.keras_api import keras
from dqat.model import named_quantizers

NAME = "dqat.model"


def add_points(flatbuffer: Flatbuffer, points: Iterable[Point]) -> None:
    """Writes the points of a file, with the indices of their tensors."""
    tensors: dict[str, dict[str, list[tuple[int, int]]]] = {}
    counts: dict[str, dict[str, int]] = {}
    for point in points:
        tensors.setdefault(point.path, {}).setdefault(point.scope, []).append((point.number, point.tensor))
        counts.setdefault(point.path, {})[point.scope] = point.count
    _write(flatbuffer, {"tensors": tensors, "counts": counts})


def complete(
    flatbuffer: Flatbuffer,
    model: keras.Model,
    parameters: dict[str, tuple[float, int]],
    *,
    has_points: bool = True,
    **options: Any,
) -> None:
    """Writes everything else beside the points that are there.

    Args:
        flatbuffer: with points.
        model: that was exported.
        parameters: (scale, zero point) by quantizer.
        has_points: whether points are tensors of the graph that is called; those of a loop's body can't be read.
        **options: of the export.
    """
    points = read(flatbuffer) if has_points else {"tensors": {}, "counts": {}}
    start, freeze = model.range_sync.schedule.window
    quantizers = {}
    for path, quantizer in named_quantizers(model):
        scale, zero_point = parameters[path]
        spec = quantizer.spec
        lowest = -(2 ** (spec.num_bits - 1)) + spec.narrow_range
        ends = (lowest, 2 ** (spec.num_bits - 1) - 1)
        low, high = (float(np.float32(scale) * np.float32(end - zero_point)) for end in ends)
        quantizers[path] = {
            "spec": str(spec),
            "observer": type(quantizer.observer).__name__,
            "scale": scale,
            "zero_point": zero_point,
            "min": low,
            "max": high,
            "tensors": points["tensors"].get(path, {}),
            "counts": points["counts"].get(path, {}),
        }
    training = {
        "steps": model.range_sync.schedule.steps,
        "range_sync": model.range_sync.mode,
        "observed": [start, freeze],
    }
    versions = {"dqat": native.module.build_info()["dqat"], "tensorflow": tf.__version__}
    _write(flatbuffer, {**versions, "model": model.name, **options, "training": training, "quantizers": quantizers})


def read(flatbuffer: Flatbuffer) -> dict[str, Any]:
    """What a file tells; empty where it tells nothing.

    Raises:
        ValueError: where it is no JSON.
    """
    content = flatbuffer.metadata().get(NAME)
    return {} if content is None else json.loads(content)


def require_whole(told: dict[str, Any]) -> dict[str, Any]:
    """What `read` gave, where it is empty or all there.

    Raises:
        ValueError: where a part is missing, or not of its kind.
    """
    if not told:
        return told
    try:
        _, _ = told["training"]["observed"]
        whole = {"dqat", "tensorflow", "model"} <= told.keys() and {"steps", "range_sync"} <= told["training"].keys()
        for one in told["quantizers"].values():
            numbers = (one["scale"], one["zero_point"], one["min"], one["max"])
            whole = whole and all(isinstance(number, (int, float)) for number in numbers)
            whole = whole and {"spec", "observer", "tensors", "counts"} <= one.keys()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{NAME} in it is not what dqat writes: {error!r}") from error
    if not whole:
        raise ValueError(f"{NAME} in it is not what dqat writes: a part is missing, or no number")
    return told


def _write(flatbuffer: Flatbuffer, content: dict[str, Any]) -> None:
    flatbuffer.set_metadata(NAME, json.dumps(content, separators=(",", ":"), allow_nan=False).encode())
