"""Which tensor of a file carries what a quantizer of the model gives: what parity by layer compares.

Each fake-quant op of the float graph has a name that tells its quantizer. The converter makes a QUANTIZE operator of
it, and gives that operator's result the name. The tensor that goes into it keeps its name in the integer file: so it
gets one that is nobody else's.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from dqat.export.flatbuffer import Flatbuffer

_NAME = re.compile(r"(?P<scope>[^/;]+)/dqat\.(?P<path>[^/;]+)\.point(?:_(?P<number>\d+))?\.end$")
#: The same, with the digits by which the converter tells a copy of it apart.
_COPY = re.compile(_NAME.pattern.removesuffix("$") + r"\d*$")


@dataclass(frozen=True)
class Point:
    """One tensor of a file.

    Attributes:
        path: of the quantizer.
        scope: of the layer's call: the layer's name, or "NAME_call_2" and so on for further calls.
        number: of the fake-quant ops of this quantizer in that call, from 0: timesteps.
        count: of those ops; the converter merges some with others, and they are no points then.
        tensor: its name, and later its index, in the file.
    """

    path: str
    scope: str
    number: int
    count: int
    tensor: str | int


def name_of(path: str) -> str:
    """The name of the next fake-quant op of a quantizer in the present scope.

    It ends in letters: the converter tells names apart with further digits, and 11 would come out as 111.
    """
    unique = tf.compat.v1.get_default_graph().unique_name(f"dqat.{_safe(path)}.point")
    return f"{unique.split('/')[-1]}.end"


def _safe(path: str) -> str:
    return re.sub(r"[^\w.-]", ".", path)


@dataclass(frozen=True)
class Marks:
    """The fake-quant ops of a graph before its conversion; each is a scope, a quantizer's legal path, and a number.

    Attributes:
        counts: how many ops each quantizer has in each call, by scope and path.
        same: the ops that compute the same as others, all of them by each: the converter makes one of them.
    """

    counts: dict[tuple[str, str], int]
    same: dict[tuple[str, str, int], list[tuple[str, str, int]]]


def marks_of(operations: Iterable[tf.Operation]) -> Marks:
    """The marks among a graph's operations, which come in the order of computation."""
    numbers: dict[Any, int] = {}
    values: dict[str, int] = {}
    by_value: dict[int, list[tuple[str, str, int]]] = {}
    for operation in operations:
        values[operation.name] = value = numbers.setdefault(_computation(operation, values), len(numbers))
        if found := _NAME.search(operation.name):
            by_value.setdefault(value, []).append((found["scope"], found["path"], int(found["number"] or 0)))
    marks = [mark for group in by_value.values() for mark in group]
    same = {mark: group for group in by_value.values() if len(group) > 1 for mark in group}
    return Marks(dict(Counter(mark[:2] for mark in marks)), same)


def _computation(operation: tf.Operation, values: dict[str, int]) -> Any:
    """The same for two operations that compute the same; `values` has one number for each of those before."""
    if operation.op_def.is_stateful and operation.type != "ReadVariableOp":
        return operation.name
    if operation.type == "Placeholder":
        return operation.name
    inputs = tuple((values[tensor.op.name], tensor.value_index) for tensor in operation.inputs)
    attributes = (
        (name, hashlib.sha256(attribute.SerializeToString(deterministic=True)).digest())
        for name, attribute in operation.node_def.attr.items()
        if not name.startswith("_")
    )
    return operation.type, inputs, tuple(sorted(attributes))


def path_of(floats: Flatbuffer, operator: Any, paths: dict[str, str]) -> str | None:
    """The path of the quantizer that a QUANTIZE operator of a float file stands for; None for another operator.

    Args:
        floats: what the converter made.
        operator: of it.
        paths: of the model's quantizers, by their legal form (`legal_paths`).
    """
    found = _found(floats, operator, _COPY)
    return None if found is None else paths.get(found["path"])


def legal_paths(paths: Iterable[str]) -> dict[str, str]:
    """Paths of quantizers by the form that they have in names of tensors."""
    return {_safe(path): path for path in paths}


def _found(floats: Flatbuffer, operator: Any, names: re.Pattern[str] = _NAME) -> re.Match[str] | None:
    if floats.operator_name(operator) != "QUANTIZE":
        return None
    return names.search(floats.tensor(operator.outputs[0]).name.decode().split(";")[-1])


def points_of(floats: Flatbuffer, paths: Iterable[str], marks: Marks) -> Iterator[Point]:
    """The points of a float file, with the names of the tensors that are quantized there; they are renamed.

    Args:
        floats: what the converter made.
        paths: of the model's quantizers.
        marks: of the graph that was converted.
    """
    known = legal_paths(paths)
    found = dict(_marked_tensors(floats, known))
    # What the converter made one of several has the name of one.
    merged = {other: name for mark, name in found.items() for other in marks.same.get(mark, ())}
    for mark, name in (merged | found).items():
        scope, path, number = mark
        yield Point(known[path], scope, number, marks.counts[scope, path], name)


def _marked_tensors(floats: Flatbuffer, known: dict[str, str]) -> Iterator[tuple[tuple[str, str, int], str]]:
    """The marks that are QUANTIZE operators of a float file, and the names that their inputs get.

    Args:
        floats: the file; its tensors are renamed.
        known: paths of quantizers by their legal form.
    """
    numbers = itertools.count()
    renamed: dict[int, str] = {}
    for operator in floats.graph.operators:
        found = _found(floats, operator)
        if found is None or found["path"] not in known:
            continue
        (result,), (source,) = operator.outputs, operator.inputs
        # The end of the model has its name from what comes after the quantization.
        after = [
            index
            for other in floats.graph.operators
            if floats.operator_name(other) == "DEQUANTIZE" and other.inputs[0] == result
            for index in other.outputs
            if index in floats.graph.outputs
        ]
        if after:
            name = floats.tensor(after[0]).name.decode()
        elif source in floats.graph.inputs:
            name = floats.tensor(source).name.decode()
        elif source in renamed:  # that several quantizers read
            name = renamed[source]
        else:  # the quantizer makes further names by appending digits
            name = renamed[source] = f"{known[found['path']]}({next(numbers)})"
            floats.tensor(source).name = name.encode()
        yield (found["scope"], found["path"], int(found["number"] or 0)), name
