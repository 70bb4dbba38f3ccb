"""A report on a model and its file, as one HTML file that needs nothing else, and as Markdown."""

import json
import os
import pathlib
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from dqat.coverage_report import Coverage, coverage
from dqat.export.inspection import TfliteFile, inspect_tflite
from dqat.keras_api import keras
from dqat.latency import Latency, measure
from dqat.layers import QuantizedLayer
from dqat.model import ranges
from dqat.parity import ParityReport
from dqat.range_watch import quantized_values

_HERE = pathlib.Path(__file__).parent


@dataclass(frozen=True)
class Histogram:
    """How the values of one tensor lie, and the range that was chosen.

    Attributes:
        name: path of the quantizer, or "layer/weight".
        counts: by bin.
        edges: of the bins, one more than counts.
        low: lowest value of the range; the least of all channels.
        high: highest value of the range; the greatest of all channels.
        outside: share of the values outside of [low, high], 0 to 1.
    """

    name: str
    counts: np.ndarray
    edges: np.ndarray
    low: float
    high: float
    outside: float


@dataclass(frozen=True)
class Report:
    """Everything that a report shows.

    Attributes:
        name: of the model.
        file: the integer file.
        parity: what `dqat.verify` found.
        coverage: what is quantized.
        activations: histograms of what the quantizers got.
        weights: histograms of the weights.
        development: rows of `callbacks.RangeWatch`, oldest first; empty where there is no log.
        sizes: bytes by "float" and "int8"; float where the float model is known.
        latencies: of one call, likewise.
    """

    name: str
    file: TfliteFile
    parity: ParityReport
    coverage: Coverage
    activations: tuple[Histogram, ...]
    weights: tuple[Histogram, ...]
    development: tuple[dict[str, Any], ...]
    sizes: dict[str, int]
    latencies: dict[str, Latency]

    @classmethod
    def of(
        cls,
        model: keras.Model,
        path: str | os.PathLike,
        parity: ParityReport,
        samples: Any,
        *,
        float_model: keras.Model | None = None,
        log: str | os.PathLike | None = None,
        seconds: float = 1.0,
    ) -> "Report":
        """Gathers it.

        Args:
            model: the quantization-aware model.
            path: the file that `export_tflite` wrote.
            parity: of both.
            samples: inputs of the model, of which the first 64 fill the histograms.
            float_model: the float model, for its size and latency.
            log: what `callbacks.RangeWatch` logged.
            seconds: how long each file is timed.

        Raises:
            TypeError: for a model that is not quantized.
            ValueError: for a log that is none.
        """
        few = tf.nest.map_structure(lambda part: np.asarray(part)[:64], samples)
        file = inspect_tflite(path)
        sizes, latencies = {"int8": file.size}, {"int8": measure(path, seconds=seconds)}
        if float_model is not None:
            content = float_tflite(float_model)
            with tempfile.TemporaryDirectory() as folder:
                twin = pathlib.Path(folder) / "float.tflite"
                twin.write_bytes(content)
                sizes = {"float": len(content), **sizes}
                latencies = {"float": measure(twin, seconds=seconds), **latencies}
        found = ranges(model)
        activations = [
            _histogram(name, before, found[name]) for name, (before, _) in quantized_values(model, few).items()
        ]
        weights = [
            _histogram(f"{layer.name}/{role}", value.numpy(), found[f"{layer.name}/{role}"])
            for layer in model.layers
            if isinstance(layer, QuantizedLayer)
            for role, value in layer.weight_values().items()
        ]
        return cls(
            model.name,
            file,
            parity,
            coverage(model),
            tuple(activations),
            tuple(weights),
            _read_log(log),
            sizes,
            latencies,
        )

    def html(self) -> str:
        """One HTML file: plots are inside it, and it asks no network for anything.

        Raises:
            ImportError: without matplotlib and Jinja.
        """
        from dqat.report import plots

        figures = {
            "parity": plots.parity(self.parity) if self.parity.layers else "",
            "development": plots.development(self.development) if self.development else "",
            "activations": plots.histograms(self.activations) if self.activations else "",
            "weights": plots.histograms(self.weights) if self.weights else "",
        }
        return _render("page.html.jinja", report=self, plots=figures, most=plots.MOST_PANELS)

    def markdown(self) -> str:
        """The tables of the report.

        Raises:
            ImportError: without Jinja.
        """
        return _render("page.md.jinja", report=self)


def float_tflite(model: keras.Model) -> bytes:
    """The float model as a TFLite file, batch size 1."""
    specs = [tf.TensorSpec([1, *tensor.shape[1:]], tensor.dtype) for tensor in model.inputs]
    one = len(specs) == 1
    call = lambda *inputs: model(inputs[0] if one else list(inputs), training=False)  # noqa: E731
    function = tf.function(call).get_concrete_function(*specs)
    return tf.lite.TFLiteConverter.from_concrete_functions([function], model).convert()


def _render(template: str, **values: Any) -> str:
    try:
        import jinja2
    except ImportError:
        raise ImportError("a report needs Jinja and matplotlib: pip install 'dqat[report]'") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=template.endswith(".html.jinja"), trim_blocks=True
    )
    return environment.get_template(template).render(**values)


def _histogram(name: str, values: np.ndarray, range_: tuple[np.ndarray, np.ndarray]) -> Histogram:
    low, high = float(np.min(range_[0])), float(np.max(range_[1]))
    values = values[np.isfinite(values)]
    # Over the range too: the plot shows both, and the bins of a few values in a wide range would be too thin to see.
    ends = min(low, values.min(initial=low)), max(high, values.max(initial=high))
    counts, edges = np.histogram(values, bins=80, range=ends)
    return Histogram(name, counts, edges, low, high, float(((values < low) | (values > high)).mean()))


def _read_log(log: str | os.PathLike | None) -> tuple[dict[str, Any], ...]:
    if log is None:
        return ()
    try:
        rows = tuple(json.loads(line) for line in pathlib.Path(log).read_text().splitlines())
        if not all({"step", "ranges", "clipping", "snr_db"} <= row.keys() for row in rows):
            raise ValueError("fields are missing")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{log} is no log of callbacks.RangeWatch: {error}") from None
    return rows
