"""Parity inside a model: what each quantizer gives in the simulation, against the file's tensor.

The simulation runs twice. Once as it is: a difference is then all that has gathered on the way. And once with the
file's value put in the place of each quantized tensor, so that every layer sees the file's inputs: a difference is
then the layer's own, and the first layer where there is one is where file and simulation part.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from dqat import graph, integer
from dqat.integer_parity import reference_shares
from dqat.interception import listening, methods_replaced, recurrent_layers
from dqat.keras_api import keras
from dqat.layers import QuantizedBidirectional, QuantizedLayer, QuantizedLSTM, QuantizedRNN
from dqat.model import QuantizedModel, named_quantizers
from dqat.quantizers import Quantizer
from dqat.simulation import Codes

#: A layer of which less than this share of its own values agrees is said to part. Rounding alone stays above it.
LEAST_AGREEING = 0.99
#: Values agree within so many LSB, by bits, where it isn't 1: TFLite's tables for SOFTMAX, TANH and RSQRT are that
#: coarse. It is half a step of int8 in the same range.
_AGREEING_LSB = {16: 128}


@dataclass(frozen=True)
class LayerParity:
    """Parity of what one quantizer gives.

    Attributes:
        name: path of the quantizer, "layer/role".
        layers: names of the layers whose arithmetic lies between this tensor and the quantized ones before it.
        equal: share of values with the same integer, 0 to 1.
        within_1_lsb: share at most one integer apart.
        max_lsb: largest difference in steps of the trained scale.
        snr_db: signal-to-noise ratio of the file's values to the simulation's, in dB; infinite where all are equal.
        own_equal: like `equal`, where the layer gets the file's inputs.
        own_within_1_lsb: like `within_1_lsb`, likewise.
        own_max_lsb: like `max_lsb`, likewise.
        own_agreeing: share of values that agree, likewise: within 1 LSB, with 16 bits within 128.
        reference_equal: share of the file's values that the layer's integer reference gives from the file's inputs
            (`dqat.integer_parity`), of a cell's output for what is within; None where there is no reference.
        same_parameters: whether the file has the trained scale and zero point here.
    """

    name: str
    layers: tuple[str, ...]
    equal: float
    within_1_lsb: float
    max_lsb: int
    snr_db: float
    own_equal: float
    own_within_1_lsb: float
    own_max_lsb: int
    own_agreeing: float
    reference_equal: float | None
    same_parameters: bool

    @property
    def parts(self) -> bool:
        """Whether file and simulation part here: more values differ than rounding explains, or the export is wrong."""
        return self.own_agreeing < LEAST_AGREEING or self.cause == "export"

    @property
    def cause(self) -> str | None:
        """Where a difference comes from, by the integer reference.

        Returns:
            "rounding" where the file computes what its integers must give, so that only the simulation's rounding is
            left; "export" where it does not; None without a reference.
        """
        if self.reference_equal is None:
            return None
        return "rounding" if self.reference_equal == 1.0 else "export"

    @property
    def explanation(self) -> str:
        """`cause` in words for a user; empty without a reference."""
        return {
            None: "",
            "rounding": "rounding in the simulation: the integer reference gives all of the file's values",
            "export": "a wrong export: the integer reference, from the file's inputs, gives "
            f"{self.reference_equal or 0.0:.2%} of the file's values",
        }[self.cause]


@dataclass
class _Watch:
    """One quantizer, and the file's tensors that stand for its calls.

    Attributes:
        layer: name of the layer that it belongs to.
        calls: of that layer in the model.
        tensors: index in the file by scope and number.
        counts: how many numbers each scope had before the converter merged some.
        scale: trained.
        agreeing_lsb: values so near agree.
        simulated: what each call gave, by scope.
    """

    path: str
    layer: str
    calls: int
    tensors: dict[str, dict[int, int]]
    counts: dict[str, int]
    scale: float
    zero_point: int
    agreeing_lsb: int
    simulated: dict[str | None, list[np.ndarray]] = field(default_factory=dict)


class _FileValues:
    """The float32 values of the file's tensors, [samples, ...]; kept as integers, since a network has many."""

    def __init__(self, watched: dict[int, list[np.ndarray]], parameters: dict[int, tuple[float, int]]) -> None:
        self._codes = {index: np.stack(samples) for index, samples in watched.items()}
        self._parameters = parameters

    def size(self, index: int) -> int:
        return self._codes[index].size

    def codes(self, index: int) -> Codes:
        return Codes(self._codes[index], *self._parameters[index])

    def __getitem__(self, index: int) -> np.ndarray:
        scale, zero_point = self._parameters[index]
        return integer.dequantize(self._codes[index], scale=scale, zero_point=zero_point)


class LayerComparison:
    """The quantizers of a model against the tensors of a file, on some samples.

    Args:
        model: the quantization-aware model.
        points: "quantizers" of the file's metadata (`dqat.export.metadata`).
    """

    def __init__(self, model: QuantizedModel, points: dict[str, Any]) -> None:
        self._model = model
        source = graph.read(model)
        calls = {layer.name: len(source.calls_of(layer)) for layer in source.layers()}
        self._watches = {}
        for path, quantizer in named_quantizers(model):
            scopes = points.get(path, {}).get("tensors", {})
            tensors = {scope: dict(map(tuple, pairs)) for scope, pairs in scopes.items()}
            scale, zero_point = _parameters(quantizer)
            layer = path
            while layer not in calls:  # a layer's name may have slashes too
                layer = layer.rpartition("/")[0]
            agreeing = _AGREEING_LSB.get(quantizer.spec.num_bits, 1)
            counts = points.get(path, {}).get("counts", {})
            self._watches[path] = _Watch(path, layer, calls[layer], tensors, counts, scale, zero_point, agreeing)
        self._covers = covered_layers(source)

    @property
    def tensors(self) -> list[int]:
        """Indices of the file's tensors that are compared."""
        found = {
            index for watch in self._watches.values() for scope in watch.tensors.values() for index in scope.values()
        }
        return sorted(found)

    def compare(
        self,
        inputs: Any,
        watched: dict[int, list[np.ndarray]],
        parameters: dict[int, tuple[float, int]],
        *,
        has_references: bool,
    ) -> tuple[LayerParity, ...]:
        """Runs the simulation on the samples that the file was run on.

        Args:
            inputs: of the model, a batch.
            watched: by tensor, the file's integers of each sample, batch size 1.
            parameters: (scale, zero point) of the file's tensors.
            has_references: whether the kernels that ran the file are those that the integer references equal.

        Returns:
            In the order of the simulation's calls, quantizers that are no tensor of the file left out.
        """
        values = _FileValues(watched, parameters)
        order: dict[str, None] = {}
        with _spied(self._model, _Spy(self._watches, order)):
            self._model(inputs, training=False)
        whole = {path: self._figures(watch, values) for path, watch in self._watches.items()}
        counts = {
            (path, scope): len(calls)
            for path, watch in self._watches.items()
            for scope, calls in watch.simulated.items()
        }
        for watch in self._watches.values():
            watch.simulated = {}
        with _spied(self._model, _Forcing(self._watches, {}, counts, values)):
            self._model(inputs, training=False)
        alone = {path: self._figures(watch, values) for path, watch in self._watches.items()}
        references = {} if not has_references else self._references(inputs, values)
        found = []
        for path in order:
            watch = self._watches[path]
            indices = [index for scope in watch.tensors.values() for index in scope.values()]
            if whole[path] is None:
                continue
            trained = (watch.scale, watch.zero_point)
            found.append(
                LayerParity(
                    path,
                    self._covers.get(watch.layer, (watch.layer,)),
                    *whole[path][:4],
                    *alone[path][:3],
                    alone[path][4],
                    references.get(path),
                    same_parameters=all(_same(parameters[index], trained) for index in indices),
                )
            )
        return tuple(found)

    def _references(self, inputs: Any, values: _FileValues) -> dict[str, float]:
        def tensors(path: str, scope: str | None, count: int) -> list[Codes]:
            watch = self._watches[path]
            if scope is None and len(watch.tensors) == 1:
                (scope,) = watch.tensors
            found = [_tensor_of(watch, scope, place, count) for place in range(count)]
            return [] if None in found else [values.codes(index) for index in found]

        return reference_shares(self._model, [np.asarray(part) for part in tf.nest.flatten(inputs)], tensors)

    @staticmethod
    def _figures(watch: _Watch, values: _FileValues) -> tuple[float, float, int, float, float] | None:
        """See `_figures`: of all calls that are a tensor of the file; None where there is none."""
        pairs = []
        for scope, calls in watch.simulated.items():
            for place, simulated in enumerate(calls):
                index = _tensor_of(watch, scope, place, len(calls))
                if index is not None and values.size(index) == simulated.size:
                    pairs.append((simulated, values[index].reshape(simulated.shape)))
        return _figures(pairs, watch.scale, watch.agreeing_lsb) if pairs else None


def _same(found: tuple[float, int], trained: tuple[float, int]) -> bool:
    return np.float32(found[0]) == np.float32(trained[0]) and found[1] == trained[1]


def _parameters(quantizer: Quantizer) -> tuple[float, int]:
    low, high = (part.numpy() for part in quantizer.range())
    spec = quantizer.spec
    found = integer.quantization_parameters(low, high, num_bits=spec.num_bits, narrow_range=spec.narrow_range)
    return float(found["scale"]), int(found["zero_point"])


def _tensor_of(watch: _Watch, scope: str | None, place: int, count: int) -> int | None:
    """The file's tensor for a call: scopes and numbers stand in `dqat.export.points`.

    The file may have more numbers than the simulation has calls: an initial state of zeros comes first, and so does
    a sum on a doubled scale.
    """
    scopes = watch.tensors
    if scope is None and scopes:
        each = max(count // watch.calls, 1)
        call, place, count = place // each, place % each, each
        first = min(scopes, key=len)
        first = first[: first.rfind("_call_")] if "_call_" in first else first
        scope = first if call == 0 else f"{first}_call_{call + 1}"
    numbers = scopes.get(scope, {})
    if not numbers:
        return None
    return numbers.get(place + watch.counts[scope] - count)


def _figures(
    pairs: list[tuple[np.ndarray, np.ndarray]], scale: float, agreeing: int
) -> tuple[float, float, int, float, float]:
    """Share equal, share within 1 LSB, largest difference, signal-to-noise ratio, share that agrees."""
    ours, theirs = (np.concatenate([pair[side].reshape(-1) for pair in pairs]) for side in (0, 1))
    apart = np.rint(np.abs(ours.astype(np.float64) - theirs) / scale)
    equal, within_1_lsb, agreeing = (float((apart <= lsb).mean()) for lsb in (0, 1, agreeing))
    return equal, within_1_lsb, int(apart.max()), signal_to_noise(ours, theirs), agreeing


def signal_to_noise(signal: np.ndarray, other: np.ndarray) -> float:
    """Power of a signal over that of the difference of another from it, in dB; infinite where they are equal."""
    noise = float(np.sum((signal.astype(np.float64) - other) ** 2))
    power = float(np.sum(signal.astype(np.float64) ** 2))
    if noise == 0.0:
        return float("inf")
    return 10.0 * float(np.log10(power / noise)) if power else float("-inf")


def covered_layers(source: graph.Graph) -> dict[str, tuple[str, ...]]:
    """By layer that quantizes its output, the layers between it and the quantized tensors before it."""
    pending: dict[graph.Tensor, tuple[str, ...]] = {}
    found = {}
    for call in source.calls:
        before = [name for tensor in call.inputs for name in pending.get(tensor, ())]
        is_own_layer = isinstance(call.layer, Quantizer)  # a name that only dqat knows
        names = tuple(
            dict.fromkeys([*before, *([] if call.is_input or (is_own_layer and before) else [call.layer.name])])
        )
        quantizes = isinstance(call.layer, Quantizer) or (
            isinstance(call.layer, QuantizedLayer) and _gives_quantized(call.layer)
        )
        if quantizes:
            found.setdefault(call.layer.name, names)
        moves = not isinstance(call.layer, (Quantizer, QuantizedLayer, keras.layers.BatchNormalization))
        pending.update(dict.fromkeys(call.results, () if quantizes or (moves and not before) else names))
    return found


def _gives_quantized(layer: QuantizedLayer) -> bool:
    if isinstance(layer, (QuantizedRNN, QuantizedBidirectional)):
        return True
    return "output" in layer.quantizers()


class _Spy:
    """Records what quantizers give, by path and by the recurrent layer that is running."""

    def __init__(self, watches: dict[str, _Watch], order: dict[str, None]) -> None:
        self.watches, self.order = watches, order
        self.running: list[QuantizedRNN] = []

    def scope(self) -> str | None:
        if not self.running:
            return None
        layer = self.running[-1]
        return f"{layer.name}_output" if isinstance(layer, QuantizedLSTM) else layer.name

    def seen(self, path: str, value: tf.Tensor) -> tf.Tensor:
        """Takes what a quantizer gives; gives what goes on."""
        self.order.setdefault(path)
        watch, scope = self.watches[path], self.scope()
        rows = self._rows(path, scope)
        calls = watch.simulated.setdefault(scope, [])
        calls.append(rows.by_sample(value.numpy()))
        replacement = self.replacement(watch, scope, len(calls) - 1)
        return value if replacement is None else tf.constant(rows.by_time(replacement, value.shape), value.dtype)

    def replacement(self, watch: _Watch, scope: str | None, place: int) -> np.ndarray | None:
        return None

    def _rows(self, path: str, scope: str | None) -> "_Rows":
        if scope is None or isinstance(self.running[-1], QuantizedLSTM):
            return _Rows(None, False)
        layer = self.running[-1]
        names = [name for name, quantizer in layer.points.items() if quantizer.path == path]
        before_loop = bool(names) and names[0] not in layer._in_loop
        return _Rows(self.batch if before_loop else None, layer.layer.go_backwards)

    batch = 1


@dataclass(frozen=True)
class _Rows:
    """How the rows of a tensor lie: sample by sample as in the file, or timestep by timestep, in either direction.

    Attributes:
        batch: samples, where rows are timesteps of all samples; else None.
        backwards: the simulation has turned the sequence round already.
    """

    batch: int | None
    backwards: bool

    def by_sample(self, value: np.ndarray) -> np.ndarray:
        """[time * batch, ...] as [batch, time, ...]."""
        if self.batch is None:
            return value
        value = value.reshape(-1, self.batch, *value.shape[1:]).swapaxes(0, 1)
        return value[:, ::-1] if self.backwards else value

    def by_time(self, value: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """The inverse of `by_sample`, of a tensor of the file."""
        if self.batch is None:
            return value.reshape(shape)
        value = value.reshape(self.batch, -1, *shape[1:])
        value = value[:, ::-1] if self.backwards else value
        return value.swapaxes(0, 1).reshape(shape)


class _Forcing(_Spy):
    """Puts the file's values in the place of the simulation's."""

    def __init__(
        self,
        watches: dict[str, _Watch],
        order: dict[str, None],
        counts: dict[tuple[str, str | None], int],
        values: _FileValues,
    ) -> None:
        super().__init__(watches, order)
        self._counts, self._values = counts, values

    def replacement(self, watch: _Watch, scope: str | None, place: int) -> np.ndarray | None:
        index = _tensor_of(watch, scope, place, self._counts[watch.path, scope])
        if index is None or self._values.size(index) != watch.simulated[scope][place].size:
            return None
        return self._values[index]


@contextlib.contextmanager
def _spied(model: QuantizedModel, spy: _Spy) -> Iterator[None]:
    """While inside, the quantizers of the model tell the spy what they give, and give what it says."""

    def replacements() -> Iterator[tuple[Any, str, Any]]:
        for layer in recurrent_layers(model):
            yield layer, "call", lambda method, layer=layer: _running(method, spy, layer)
            if isinstance(layer, QuantizedLSTM):
                yield layer, "_sequence", lambda method, layer=layer: _sequence(method, spy, layer)

    with listening(model, lambda path, _, value: spy.seen(path, value)), methods_replaced(replacements()):
        yield


def _running(call: Any, spy: _Spy, layer: QuantizedRNN) -> Any:
    def run(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        spy.running.append(layer)
        spy.batch = tf.nest.flatten(inputs)[0].shape[0]
        try:
            return call(inputs, *args, **kwargs)
        finally:
            spy.running.pop()

    return run


def _sequence(call: Any, spy: _Spy, layer: QuantizedLSTM) -> Any:
    """The fused LSTM's states stay inside its operation: its output is what is compared."""

    def sequence(*args: Any, **kwargs: Any) -> Any:
        outputs, last, states = call(*args, **kwargs)
        if layer.layer.return_sequences:
            return spy.seen(layer.hidden.path, outputs), last, states
        return outputs, spy.seen(layer.hidden.path, last), states

    return sequence
