"""Parity: the simulation against the exported file, in LSBs, by output and by layer."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from dqat import child_process, interpreter
from dqat.export import metadata
from dqat.export.flatbuffer import Flatbuffer
from dqat.export.inspection import inspect_tflite
from dqat.interpreter import Runner, numbers
from dqat.keras_api import keras
from dqat.layer_parity import LayerComparison, LayerParity, signal_to_noise
from dqat.model import float32_model, named_quantizers, require_quantized

#: The integer references are this TensorFlow's builtin kernels.
_REFERENCE_VERSION = "2.15."
#: Takes labels and outputs [samples, ...], and gives a figure.
Metric = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class OutputParity:
    """Parity of one output of the model.

    Attributes:
        name: of the output.
        equal: share of the values with the same integer, 0 to 1.
        within_1_lsb: share of the values at most one integer apart.
        max_lsb: largest difference in integers.
        snr_db: signal-to-noise ratio of the file's values to the simulation's, in dB; infinite where all are equal.
    """

    name: str
    equal: float
    within_1_lsb: float
    max_lsb: int
    snr_db: float


@dataclass(frozen=True)
class ParityReport:
    """What `verify` found.

    Attributes:
        equal: share of the output values with the same integer, 0 to 1.
        within_1_lsb: share at most one integer apart.
        max_lsb: largest difference in integers.
        same_class: share of samples whose largest output stands at the same place.
        outputs: parity by output.
        layers: parity by quantizer, in the order of the simulation, on the first `layer_samples` samples and builtin
            kernels; empty where the file does not tell which tensor is whose (another tool, a batch size other
            than 1).
        not_compared: quantizers that are no tensor of the file, such as states inside TFLite's LSTM operator, or
            constant there; empty where `layers` is.
        metric: name of the task metric, or None where there are no labels.
        figures: the metric by "float", "simulation" and "int8", as far as they are known.
        simulation: float32 [samples, ...], what the quantization-aware model gives; a list where it has several
            outputs.
        integer: the same from the file, dequantized.
        kernels: which kernels of which interpreter the figures are for.
    """

    equal: float
    within_1_lsb: float
    max_lsb: int
    same_class: float
    outputs: tuple[OutputParity, ...]
    layers: tuple[LayerParity, ...]
    not_compared: tuple[str, ...]
    metric: str | None
    figures: dict[str, float]
    simulation: np.ndarray | list[np.ndarray] = field(repr=False)
    integer: np.ndarray | list[np.ndarray] = field(repr=False)
    kernels: str

    @property
    def first_apart(self) -> LayerParity | None:
        """The first layer where file and simulation part: which differs by more than rounding by itself."""
        return next((layer for layer in self.layers if layer.parts), None)


def _in_order(samples: Any, names: list[str]) -> list[np.ndarray]:
    """The samples of each input, in the model's order."""
    if isinstance(samples, dict):
        if missing := [name for name in names if name not in samples]:
            raise ValueError(
                f"samples must have the model's inputs {', '.join(names)}: there is no {', '.join(missing)} among "
                f"{', '.join(map(str, samples)) or 'nothing'}"
            )
        return [numbers(samples[name]) for name in names]
    several = len(names) > 1 and isinstance(samples, (list, tuple))
    return [numbers(part) for part in (samples if several else [samples])]


def _batches(data: object, names: list[str]) -> Iterator[tuple[list[np.ndarray], Any]]:
    """Samples of each input, and labels where a dataset has them."""
    if isinstance(data, tf.data.Dataset):
        for batch in data:
            pair = batch if isinstance(batch, tuple) else (batch, None)
            yield _in_order(pair[0], names), None if len(pair) < 2 or pair[1] is None else np.asarray(pair[1])
        return
    samples = _in_order(data, names)
    for begin in range(0, len(samples[0]), 64):
        yield [part[begin : begin + 64] for part in samples], None


def verify(
    model: keras.Model,
    path: str | os.PathLike,
    data: object,
    *,
    labels: np.ndarray | None = None,
    metric: str | Metric | None = None,
    float_model: keras.Model | None = None,
    kernels: str = "default",
    runtime: str = "tensorflow",
    layer_samples: int = 16,
) -> ParityReport:
    """Runs simulation and exported file on the same samples and compares them, by output and by layer.

    Args:
        model: the quantization-aware model that was exported; one in mixed precision is simulated in float32.
        path: the file that `export_tflite` wrote.
        data: float32 samples [samples, ...], or a `tf.data.Dataset` of batches, with labels or without. For a
            model with several inputs: a list in the model's order, or a dict by input name, of such.
        labels: of the samples, for the task metric of a model with one output; a dataset may bring its own.
        metric: "accuracy" (labels are classes), "mse", or a function of labels and outputs. With labels and None:
            accuracy where they are integers, else the mean squared error.
        float_model: the float model, for its figure beside the others.
        kernels: of the interpreter, "default" or "builtin" (without XNNPACK).
        runtime: "tensorflow", or "litert" (the package ai-edge-litert).
        layer_samples: so many samples are compared by layer; 0 for none.

    Returns:
        A `ParityReport`.

    Raises:
        TypeError: for a model that is not quantized.
        TfliteFileError: for a damaged file.
        ValueError: for a file that is no int8 model or a streaming one, no samples, samples of another number or
            shape of inputs or with a NaN or an Inf, labels that are not as many as the samples, or another metric.
        ImportError: for a runtime that is not installed.
        ChildDiedError: for a file without dqat's checksum that ends the process of the interpreter.
    """
    require_quantized(model)
    model = float32_model(model)
    told = inspect_tflite(path).told
    if told and told.get("streaming"):
        raise ValueError(
            f"{path} takes one frame a call, and `verify` compares whole sequences: verify the file without "
            "streaming=True; dqat.streaming.Stream runs this one"
        )
    words = interpreter.describe(kernels, runtime)
    if not interpreter.is_sealed(path):
        child_process.run(interpreter.try_once, os.fspath(path), timeout=120.0)
    runner = Runner(path, kernels, runtime)
    simulated, integers, floats, batches, truth = [], [], [], [], []
    for batch, its_labels in _batches(data, model.input_names):
        outputs = model(_as_inputs(model, batch), training=False)
        simulated.append([output.numpy() for output in tf.nest.flatten(outputs)])
        integers.append(runner.run(batch))
        if float_model is not None:
            floats.append(tf.nest.flatten(float_model(_as_inputs(model, batch), training=False))[0].numpy())
        if its_labels is not None:
            truth.append(its_labels)
        if sum(len(one[0]) for one in batches) < layer_samples:
            batches.append(batch)
    if not simulated:
        raise ValueError("data has no samples")
    simulation, integer = (
        [np.concatenate(parts) for parts in zip(*all_, strict=True)] for all_ in (simulated, integers)
    )
    apart, same_class, dequantized, ratios = [], [], [], []
    for values, codes, (scale, zero_point) in zip(simulation, integer, runner.output_parameters, strict=True):
        codes = codes.astype(np.int32)
        expected = np.rint(values / scale).astype(np.int32) + zero_point
        apart.append(np.abs(expected - codes).reshape(-1))
        same_class.append((expected.argmax(-1) == codes.argmax(-1)).mean())
        dequantized.append(((codes - zero_point) * np.float32(scale)).astype(np.float32))
        ratios.append(signal_to_noise(values, dequantized[-1]))
    one = len(simulation) == 1
    total = _parity("", np.concatenate(apart), 0.0)
    labels = np.concatenate(truth) if labels is None and truth else labels
    outputs = {"simulation": simulation[0], "int8": dequantized[0]}
    if floats:
        outputs = {"float": np.concatenate(floats), **outputs}
    name, figures = task_figures(metric, labels, outputs)
    layers = _by_layer(model, path, batches, layer_samples, runtime) if layer_samples and runner.batch_size == 1 else ()
    compared = {layer.name for layer in layers}
    return ParityReport(
        equal=total.equal,
        within_1_lsb=total.within_1_lsb,
        max_lsb=total.max_lsb,
        same_class=float(np.mean(same_class)),
        outputs=tuple(map(_parity, model.output_names, apart, ratios)),
        layers=layers,
        not_compared=tuple(path for path, _ in named_quantizers(model) if layers and path not in compared),
        metric=name,
        figures=figures,
        simulation=simulation[0] if one else simulation,
        integer=dequantized[0] if one else dequantized,
        kernels=words,
    )


def _as_inputs(model: keras.Model, batch: list[np.ndarray]) -> Any:
    return batch[0] if len(batch) == 1 else tf.nest.pack_sequence_as(model._nested_inputs, batch)


def _parity(name: str, apart: np.ndarray, ratio: float) -> OutputParity:
    return OutputParity(name, float((apart == 0).mean()), float((apart <= 1).mean()), int(apart.max()), ratio)


def _accuracy(labels: np.ndarray, outputs: np.ndarray) -> float:
    return float((outputs.argmax(-1) == labels.reshape(outputs.shape[:-1])).mean())


def _mean_squared_error(labels: np.ndarray, outputs: np.ndarray) -> float:
    return float(np.mean((outputs - labels.reshape(outputs.shape)) ** 2))


#: Task metrics by name.
METRICS: dict[str, Metric] = {"accuracy": _accuracy, "mse": _mean_squared_error}


def task_figures(
    metric: str | Metric | None, labels: np.ndarray | None, outputs: dict[str, np.ndarray]
) -> tuple[str | None, dict[str, float]]:
    """Name of a task metric, and its value by whose outputs it is of; (None, {}) without labels.

    Args:
        metric: see `verify`.
        labels: of the samples, or None.
        outputs: [samples, ...] each, of the same samples.

    Raises:
        ValueError: see `verify`.
    """
    if isinstance(metric, str) and metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)} or a function, got {metric!r}")
    if labels is None:
        if metric is not None:
            raise ValueError("a metric needs labels: give labels=..., or a dataset of samples and labels")
        return None, {}
    labels = np.asarray(labels)
    samples = len(next(iter(outputs.values())))
    if len(labels) != samples:
        raise ValueError(f"there are {len(labels)} labels for {samples} samples")
    if metric is None:
        metric = "accuracy" if np.issubdtype(labels.dtype, np.integer) else "mse"
    function = METRICS[metric] if isinstance(metric, str) else metric
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    return name, {who: float(function(labels, values)) for who, values in outputs.items()}


def _by_layer(
    model: keras.Model, path: str | os.PathLike, batches: list[list[np.ndarray]], samples: int, runtime: str
) -> tuple[LayerParity, ...]:
    with open(path, "rb") as file:
        flatbuffer = Flatbuffer(file.read())
    told = metadata.read(flatbuffer)
    if not told:
        return ()
    comparison = LayerComparison(model, told["quantizers"])
    parameters = {index: flatbuffer.parameters(index) for index in comparison.tensors}
    if None in parameters.values() or not parameters:
        return ()
    inputs = [np.concatenate(parts)[:samples] for parts in zip(*batches, strict=True)]
    runner = Runner(path, "builtin", runtime, watch=comparison.tensors)
    runner.run(inputs)
    has_references = runtime == "tensorflow" and tf.__version__.startswith(_REFERENCE_VERSION)
    return comparison.compare(_as_inputs(model, inputs), runner.watched, parameters, has_references=has_references)
