"""What is in a TFLite file, and how two of them differ."""

import os
import pathlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dqat.export import checksum, metadata
from dqat.export.flatbuffer import Flatbuffer

_IDENTIFIER = b"TFL3"  # at byte 4 of every TFLite file


class TfliteFileError(ValueError):
    """A file that is no TFLite model, or a damaged one."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        name: as in the file.
        kind: "input", "output", "constant", "variable" (kept between calls), "computed" or "unused".
        dtype: "INT8", "INT32", "FLOAT32", ...
        shape: sizes; -1 where it is open until the interpreter resizes it.
        scales: float32, one, or one per channel; empty where the tensor is not quantized.
        zero_points: as many as scales.
        axis: of the channels; None per tensor.
        values: a constant's bytes.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int | None
    values: bytes

    @property
    def is_float(self) -> bool:
        """Whether its values are of a floating-point type."""
        return self.dtype.startswith("FLOAT")


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        name: of the kind.
        inputs: indices of tensors; -1 stands for one that is left out.
        outputs: likewise.
        options: its settings that are numbers, by their names in TFLite's schema, such as "strideW".
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Subgraph:
    """Operators in order of execution, tensors by index, and indices of the ends. The first subgraph is the model."""

    operators: tuple[Operator, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def is_float(self, operator: Operator) -> bool:
        """Whether an operator computes with floats; conversions to and from integers do too."""
        return any(self.tensors[index].is_float for index in (*operator.inputs, *operator.outputs) if index >= 0)

    def float_islands(self) -> list[list[str]]:
        """Runs of consecutive operators that compute with floats, by name."""
        islands: list[list[str]] = []
        inside = False
        for operator in self.operators:
            if self.is_float(operator):
                if not inside:
                    islands.append([])
                islands[-1].append(operator.name)
            inside = self.is_float(operator)
        return islands


@dataclass(frozen=True)
class TfliteFile:
    """What `inspect_tflite` read.

    Attributes:
        path: of the file.
        size: bytes.
        description: what the converter wrote there.
        subgraphs: the model first, then what its control flow calls.
        metadata: names and sizes in bytes of the file's metadata.
        told: what dqat wrote of the model (see `dqat.export.metadata`); empty in other tools' files.
    """

    path: pathlib.Path
    size: int
    description: str
    subgraphs: tuple[Subgraph, ...]
    metadata: dict[str, int]
    told: dict[str, Any]

    @property
    def operators(self) -> Counter:
        """How often each operator occurs, in all subgraphs."""
        return Counter(operator.name for subgraph in self.subgraphs for operator in subgraph.operators)

    @property
    def float_islands(self) -> list[list[str]]:
        """Runs of operators that compute with floats, in all subgraphs; empty for an integer-only file."""
        return [island for subgraph in self.subgraphs for island in subgraph.float_islands()]

    @property
    def constant_bytes(self) -> int:
        """Bytes of weights, biases and other constants; the same values are counted once."""
        return sum(len(values) for values in {t.values for subgraph in self.subgraphs for t in subgraph.tensors})


def inspect_tflite(path: str | os.PathLike) -> TfliteFile:
    """Reads a TFLite file, without running it.

    Args:
        path: the file.

    Returns:
        A `TfliteFile`.

    Raises:
        OSError: where the file can't be read.
        TfliteFileError: where it is no TFLite model, or a damaged one. In files that dqat wrote, one wrong bit
            is enough, since they carry a checksum.
    """
    path = pathlib.Path(path)
    return describe(path.read_bytes(), path)


def describe(content: bytes, path: pathlib.Path) -> TfliteFile:
    """Like `inspect_tflite`, of a file's contents; the path is for messages and the result."""
    if content[4:8] != _IDENTIFIER:
        raise TfliteFileError(f"{path} is no TFLite file: bytes 4 to 8 are not {_IDENTIFIER.decode()!r}")
    if checksum.is_wrong(content):
        raise TfliteFileError(f"{path} is damaged: its contents do not have the checksum that dqat wrote into it")
    try:
        description, subgraphs, sizes, told = _parse(content)
    except Exception as error:
        # The schema's classes read wherever the file points them, within its bounds: what they stumble over
        # can be of any type, and the file is what is wrong.
        raise TfliteFileError(f"{path} is damaged: {' '.join(str(error).split()) or type(error).__name__}") from error
    return TfliteFile(path, len(content), description, subgraphs, sizes, told)


def _parse(content: bytes) -> tuple[str, tuple[Subgraph, ...], dict[str, int], dict[str, Any]]:
    flatbuffer = Flatbuffer(content)
    sizes = {name: len(value) for name, value in flatbuffer.metadata().items()}
    subgraphs = tuple(_subgraph(flatbuffer, graph) for graph in flatbuffer.model.subgraphs)
    told = metadata.require_whole(metadata.read(flatbuffer))
    return (flatbuffer.model.description or b"").decode(), subgraphs, sizes, told


def _bytes(data: np.ndarray | None) -> bytes:
    return b"" if data is None else bytes(data)


def _options(options: Any) -> dict[str, float]:
    """Those that are numbers; nothing for an operator without options."""
    found = {} if options is None else vars(options)
    return {name: value for name, value in found.items() if isinstance(value, (bool, int, float))}


def _subgraph(flatbuffer, graph) -> Subgraph:
    operators = tuple(
        Operator(
            flatbuffer.operator_name(operator),
            tuple(int(index) for index in _list(operator.inputs)),
            tuple(int(index) for index in _list(operator.outputs)),
            _options(operator.builtinOptions),
        )
        for operator in _list(graph.operators)
    )
    used = {index for operator in operators for index in (*operator.inputs, *operator.outputs)}
    used |= {int(index) for operator in _list(graph.operators) for index in _list(operator.intermediates)}
    inputs, outputs = set(_list(graph.inputs)), set(_list(graph.outputs))
    tensors = []
    for index, tensor in enumerate(_list(graph.tensors)):
        values = _bytes(flatbuffer.model.buffers[tensor.buffer].data)
        kind = "computed"
        for name, holds in (
            ("unused", index not in used),
            ("variable", tensor.isVariable),
            ("constant", values),
            ("output", index in outputs),
            ("input", index in inputs),
        ):
            kind = name if holds else kind
        tensors.append(_tensor(flatbuffer, tensor, kind, values))
    for index in used:
        if not -1 <= index < len(tensors):
            raise ValueError(f"an operator refers to tensor {index} of {len(tensors)}")
    ends = (tuple(int(index) for index in _list(side)) for side in (graph.inputs, graph.outputs))
    return Subgraph(operators, tuple(tensors), *ends)


def _list(values) -> list:
    return [] if values is None else list(values)


def _tensor(flatbuffer, tensor, kind: str, values: bytes) -> Tensor:
    quantization = tensor.quantization
    scales = tuple(float(scale) for scale in _list(quantization and quantization.scale))
    if len(scales) != len(_list(quantization and quantization.zeroPoint)):
        raise ValueError(f"{tensor.name!r} has not as many zero points as scales")
    return Tensor(
        name=tensor.name.decode(),
        kind=kind,
        dtype=flatbuffer.type_name(tensor.type),
        shape=tuple(
            int(size) for size in _list(tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape)
        ),
        scales=scales,
        zero_points=tuple(int(point) for point in _list(quantization and quantization.zeroPoint)),
        axis=int(quantization.quantizedDimension) if len(scales) > 1 else None,
        values=values,
    )


@dataclass(frozen=True)
class Difference:
    """One difference of two files: where, and what each has."""

    where: str
    first: str
    second: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.where}: {self.first} | {self.second}"


def compare_tflite(first: str | os.PathLike, second: str | os.PathLike) -> list[Difference]:
    """The differences of two files, operator by operator; names of tensors are not compared.

    Args:
        first: a TFLite file.
        second: another.

    Returns:
        In order of execution: operators, then their options, and types, shapes, scales, zero points and constants of
        the tensors at the same place. Where the operators themselves differ, only they are listed.

    Raises:
        OSError: where a file can't be read.
        TfliteFileError: where one is no TFLite model, or a damaged one.
    """
    a, b = inspect_tflite(first), inspect_tflite(second)
    found = []
    if len(a.subgraphs) != len(b.subgraphs):
        return [Difference("subgraphs", str(len(a.subgraphs)), str(len(b.subgraphs)))]
    for number, (one, other) in enumerate(zip(a.subgraphs, b.subgraphs, strict=True)):
        prefix = f"subgraph {number}, " if number else ""
        found += [Difference(prefix + d.where, d.first, d.second) for d in _differences(one, other)]
    return found


def _differences(a: Subgraph, b: Subgraph) -> Iterator[Difference]:
    names = [[operator.name for operator in graph.operators] for graph in (a, b)]
    if names[0] != names[1]:
        places = (index for index, pair in enumerate(zip(*names, strict=False)) if pair[0] != pair[1])
        place = next(places, min(map(len, names)))
        ours = [side[place] if place < len(side) else "(none)" for side in names]
        yield Difference(f"operator {place}", *ours)
        return
    seen = set()
    for place, (one, other) in enumerate(zip(a.operators, b.operators, strict=True)):
        for name in one.options | other.options:
            values = [str(side.options.get(name, "(none)")) for side in (one, other)]
            if values[0] != values[1]:
                yield Difference(f"operator {place} ({one.name}), {name}", *values)
        for side, left, right in (("input", one.inputs, other.inputs), ("output", one.outputs, other.outputs)):
            where = f"operator {place} ({one.name}), {side}"
            if len(left) != len(right):
                yield Difference(f"{where}s", str(len(left)), str(len(right)))
                continue
            for slot, pair in enumerate(zip(left, right, strict=True)):
                if pair in seen:
                    continue
                seen.add(pair)
                yield from _tensor_differences(
                    f"{where} {slot}", *(_at(g, i) for g, i in zip((a, b), pair, strict=True))
                )


def _at(graph: Subgraph, index: int) -> Tensor | None:
    return graph.tensors[index] if index >= 0 else None


def _tensor_differences(where: str, a: Tensor | None, b: Tensor | None) -> Iterator[Difference]:
    if a is None or b is None:
        if a is not b:
            yield Difference(where, *("left out" if t is None else t.name for t in (a, b)))
        return
    for part in ("dtype", "shape", "scales", "zero_points"):
        one, other = getattr(a, part), getattr(b, part)
        if one != other:
            yield Difference(f"{where}, {part}", _short(one), _short(other))
    if a.values != b.values and (a.dtype, a.shape) == (b.dtype, b.shape):
        yield Difference(f"{where}, constant", *_described_values(a, b))


def _short(value: object) -> str:
    if isinstance(value, tuple) and len(value) > 4:
        return f"({', '.join(f'{part:.9g}' for part in value[:3])}, ... {len(value)} values)"
    if isinstance(value, tuple):
        return f"({', '.join(f'{part:.9g}' for part in value)})"
    return str(value)


def _described_values(a: Tensor, b: Tensor) -> tuple[str, str]:
    apart = np.frombuffer(a.values, np.uint8)[: len(b.values)] != np.frombuffer(b.values, np.uint8)[: len(a.values)]
    return f"{len(a.values)} bytes", f"{len(b.values)} bytes, {int(apart.sum())} of them other"
