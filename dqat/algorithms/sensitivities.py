"""What each layer's quantization costs a model, and which layers to leave in float or at 16 bits.

After Wu et al., Integer Quantization for Deep Learning Inference (2020, arXiv:2004.09602), section 5: quantize one
layer at a time, and leave those in float that cost the most.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from dqat import graph
from dqat.algorithms.bias_correction import require_ranges
from dqat.keras_api import keras
from dqat.layer_parity import covered_layers, signal_to_noise
from dqat.layers import QuantizedBidirectional, QuantizedLayer, QuantizedRNN, Requantization
from dqat.model import QuantizedModel, named_quantizers, require_quantized
from dqat.parity import Metric, task_figures
from dqat.quantizers import Quantizer
from dqat.rules import has_int16_operator
from dqat.switching import in_float


@dataclass(frozen=True)
class LayerSensitivity:
    """What the quantization of one layer costs; with the layers that are one operator with it in the file.

    Attributes:
        layers: names, such as a convolution, its BatchNormalization and its ReLU.
        tensors: paths of their quantized tensors, weights and activations.
        weights: numbers in their quantized weights.
        alone_db: signal-to-noise ratio of the model's outputs, in dB, with these tensors quantized alone; infinite
            where that changes nothing.
        without_db: the same with these layers in float, as in a file: their output is quantized where an integer layer
            reads it.
        alone: the task metric with these quantized alone; None without labels.
        without: the task metric with these layers in float; None without labels.
    """

    layers: tuple[str, ...]
    tensors: tuple[str, ...]
    weights: int
    alone_db: float
    without_db: float
    alone: float | None
    without: float | None


@dataclass(frozen=True)
class _Unit:
    """Layers that are one operator in the file.

    Attributes:
        layers: names.
        kernels: paths of weights.
        inner: paths of what is quantized on the way to the output.
        output: path of its quantizer.
        weights: numbers in the weights.
        readers: indices of the units that read the output; None for the end of the model.
        operators: what it can be in a file beside int8, of "float" and "int16".
    """

    layers: tuple[str, ...]
    kernels: tuple[str, ...]
    inner: tuple[str, ...]
    output: str
    weights: int
    readers: frozenset[int | None]
    operators: frozenset[str]


@dataclass(frozen=True)
class _Outputs:
    """A model on some samples, with some of its tensors in float.

    Attributes:
        inputs: paths of the quantizers of the model's inputs, and the units that read each.
    """

    model: QuantizedModel
    units: list[_Unit]
    inputs: dict[str, frozenset[int | None]]
    samples: Any
    labels: Any
    metric: str | Metric | None

    def values(self, floats: set[str] | None) -> list[np.ndarray]:
        """Its outputs with these tensors in float; None for all."""
        with in_float(self.model, floats):
            return [output.numpy() for output in tf.nest.flatten(self.model(self.samples, training=False))]

    def without(self, chosen: set[int], into: str = "float") -> list[np.ndarray]:
        """Its outputs where these units are operators of that kind in the file, and all others int8 ones.

        Activations of 16 bits count as float: their steps are 256 times as fine as those of the others.
        """
        floats: set[str] = set()
        for index in chosen:
            unit = self.units[index]
            if into == "float":  # the model's ends are quantized whoever makes them
                floats |= {*unit.kernels, *unit.inner, *([unit.output] if unit.readers <= chosen else [])}
            else:
                floats |= {*unit.inner, *([unit.output] if unit.readers - {None} <= chosen else [])}
        if into == "int16":
            floats |= {path for path, readers in self.inputs.items() if readers <= chosen}
        return self.values(floats)

    def ratio(self, expected: list[np.ndarray], found: list[np.ndarray]) -> float:
        """Signal-to-noise ratio in dB, over all outputs."""
        signal, other = (np.concatenate([part.reshape(-1) for part in parts]) for parts in (expected, found))
        return signal_to_noise(signal, other)

    def figure(self, found: list[np.ndarray]) -> tuple[str | None, float | None]:
        """Name and value of the task metric."""
        name, figures = task_figures(self.metric, self.labels, {"model": found[0]})
        return name, figures.get("model")


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` found; printing it gives a Markdown table.

    Attributes:
        rows: the layers, the one that costs most by itself first.
        quantized_db: signal-to-noise ratio of the outputs, in dB, with everything quantized.
        metric: name of the task metric, or None.
        float_figure: the task metric with nothing quantized; None without labels.
        quantized_figure: the task metric with everything quantized; None without labels.
    """

    rows: tuple[LayerSensitivity, ...]
    quantized_db: float
    metric: str | None
    float_figure: float | None
    quantized_figure: float | None
    _outputs: _Outputs = field(repr=False, compare=False)

    def choose(
        self, *, gain_db: float = 6.0, weights: float = 0.1, layers: int | None = None, into: str = "float"
    ) -> tuple[str, ...]:
        """The layers to leave in float, or at 16 bits: as many as it takes for a gain, and no more than a budget.

        In the order of `rows`, a row is taken out of quantization where it fits into what is left of the budget, and
        the model is measured with all that were taken out so far. Where the ratio has not risen, the layers that read
        the row's output are taken out with it, which spares that output its quantization; where that does not help
        either, the row goes back. So on until the gain is reached. Layers without such an operator in an integer file
        (recurrent ones) stay.

        Args:
            gain_db: how much the signal-to-noise ratio of the model's outputs is to rise, in dB. 6 dB is half the
                error: what one bit more for every tensor would give.
            weights: the largest share of the model's quantized weights that the chosen layers may have, 0 to 1.
            layers: the largest number of rows; None for any.
            into: "float", or "int16" for activations of 16 bits and weights of 8.

        Returns:
            Names for `dqat.quantize_model(model, float_layers=...)`, or `int16_layers=...`; empty where the budget has
            room for no row that helps.

        Raises:
            ValueError: for a gain that is not positive, a budget out of bounds, or another kind.
        """
        if gain_db <= 0 or not 0 <= weights <= 1 or (layers is not None and layers < 0):
            raise ValueError(
                "gain_db must be positive, weights 0 to 1 and layers at least 0, got "
                f"gain_db={gain_db}, weights={weights}, layers={layers}"
            )
        if into not in ("float", "int16"):
            raise ValueError(f"into must be 'float' or 'int16', got {into!r}")
        units = self._outputs.units
        left, reached = weights * sum(unit.weights for unit in units), self.quantized_db
        expected, chosen = self._outputs.values(None), set()
        places = {unit.layers: index for index, unit in enumerate(units)}
        for place in (places[row.layers] for row in self.rows):
            for more in ({place}, {place, *(units[place].readers - {None})}):
                more = more - chosen
                enough = reached >= self.quantized_db + gain_db
                too_many = layers is not None and len(chosen | more) > layers
                cost = sum(units[index].weights for index in more)
                if enough or too_many or not more or cost > left:
                    continue
                if not all(into in units[index].operators for index in more):
                    continue
                ratio = self._outputs.ratio(expected, self._outputs.without(chosen | more, into))
                if ratio > reached:
                    chosen, reached, left = chosen | more, ratio, left - cost
        return tuple(name for index in sorted(chosen) for name in units[index].layers)

    def __str__(self) -> str:
        """A Markdown table."""
        names = f" {self.metric} alone | {self.metric} without |" if self.metric else ""
        lines = [f"| layers | weights | alone, dB | without, dB |{names}"]
        lines.append("|---|---|---|---|" + ("---|---|" if self.metric else ""))
        for row in self.rows:
            figures = f" {row.alone:.4f} | {row.without:.4f} |" if self.metric else ""
            parts = ", ".join(row.layers), str(row.weights), f"{row.alone_db:.1f}", f"{row.without_db:.1f}"
            lines.append(f"| {' | '.join(parts)} |{figures}")
        return "\n".join(lines)


def sensitivity(
    model: keras.Model, samples: Any, *, labels: Any = None, metric: str | Metric | None = None
) -> Sensitivity:
    """What the quantization of each layer costs, alone and as a part of the whole.

    The model runs twice for each row, eagerly: with the row's tensors quantized and all others in float, and with the
    row's layers in float and all others quantized. Both are compared with the model in float: the same weights without
    fake-quantization. A layer comes with those that are one operator with it in the file, and the quantizer of a
    model's input is in no row.

    Args:
        model: what `dqat.quantize_model` returned, with ranges: trained, or calibrated (`dqat.algorithms.calibrate`).
        samples: a batch of inputs of the model, such as some hundred.
        labels: of the samples, for a task metric of the first output.
        metric: "accuracy", "mse" or a function; see `dqat.verify`.

    Returns:
        A `Sensitivity`, whose `choose` names the layers to leave in float.

    Raises:
        TypeError: for a model that is not quantized.
        ValueError: where a quantizer has no range yet, for a metric without labels, or another number of labels.
    """
    require_quantized(model)
    require_ranges(model)
    outputs = _Outputs(model, *_units(model), samples, labels, metric)
    expected, quantized = outputs.values(None), outputs.values(set())
    name, float_figure = outputs.figure(expected)
    rows = []
    for index, unit in enumerate(outputs.units):
        tensors = (*unit.kernels, *unit.inner, unit.output)
        alone = outputs.values({path for path in _paths(model) if path not in tensors})
        without = outputs.without({index})
        ratios = (outputs.ratio(expected, found) for found in (alone, without))
        figures = (outputs.figure(found)[1] for found in (alone, without))
        rows.append(LayerSensitivity(unit.layers, tensors, unit.weights, *ratios, *figures))
    rows.sort(key=lambda row: row.alone_db)
    ratio = outputs.ratio(expected, quantized)
    return Sensitivity(tuple(rows), ratio, name, float_figure, outputs.figure(quantized)[1], outputs)


def _paths(model: QuantizedModel) -> list[str]:
    weights = [
        f"{one.name}/{role}" for one in model.layers if isinstance(one, QuantizedLayer) for role in one.weight_specs()
    ]
    return [*(path for path, _ in named_quantizers(model)), *weights]


def _units(model: QuantizedModel) -> tuple[list[_Unit], dict[str, frozenset[int | None]]]:
    """The layers that are one operator in the file, each with its tensors and readers, and who reads the inputs."""
    source = graph.read(model)
    by_name = {layer.name: layer for layer in source.layers()}
    parts_of, entries = [], []
    for last, names in covered_layers(source).items():
        parts = [by_name[name] for name in dict.fromkeys((*names, last))]
        is_unit = any(isinstance(part, QuantizedLayer) for part in parts)  # else it is the quantizer of an input
        (parts_of if is_unit else entries).append(parts)
    readers = [frozenset(found) for found in _readers(source, [*parts_of, *entries])]
    units = []
    for parts, its_readers in zip(parts_of, readers, strict=False):
        wrapped = [part for part in parts if isinstance(part, QuantizedLayer)]
        weights = {f"{one.name}/{role}": value for one in wrapped for role, value in one.weight_values().items()}
        points = [f"{one.name}/{role}" for one in wrapped for role in one.quantizers()]
        points += [part.name for part in parts if isinstance(part, Quantizer)]
        units.append(
            _Unit(
                layers=tuple(part.name for part in parts if not isinstance(part, Quantizer)),
                kernels=tuple(weights),
                inner=tuple(points[:-1]),
                output=points[-1],
                weights=sum(int(tf.size(value)) for value in weights.values()),
                readers=its_readers,
                operators=_operators(wrapped),
            )
        )
    paths = [next(part.name for part in parts if isinstance(part, Quantizer)) for parts in entries]
    return units, dict(zip(paths, readers[len(units) :], strict=True))


def _operators(parts: list[QuantizedLayer]) -> frozenset[str]:
    """See `_Unit.operators`."""
    if any(isinstance(part, (QuantizedRNN, QuantizedBidirectional, Requantization)) for part in parts):
        return frozenset()
    return frozenset({"float", *(["int16"] if all(has_int16_operator(part.layer) for part in parts) else [])})


def _readers(source: graph.Graph, units: list[list[keras.layers.Layer]]) -> list[set[int | None]]:
    """By unit, those that read its output, as it is or moved by layers of no unit; None for the model's end."""
    unit_of = {id(layer): index for index, layers in enumerate(units) for layer in layers}
    origins: dict[graph.Tensor, set[int]] = {}
    readers: list[set[int | None]] = [set() for _ in units]
    for call in source.calls:
        unit = unit_of.get(id(call.layer))
        read = {origin for tensor in call.inputs for origin in origins.get(tensor, ())}
        for origin in read - {unit} if unit is not None else ():
            readers[origin].add(unit)
        origins.update(dict.fromkeys(call.results, read if unit is None else {unit}))
    for tensor in graph.tensors_in(source.outputs):
        for origin in origins.get(tensor, ()):
            readers[origin].add(None)
    return readers
