"""Which tensor of a file carries what a quantizer of the model gives: what parity by layer compares.

Each fake-quant op of the float graph has a name that tells its quantizer. The converter makes a QUANTIZE operator of
it, and gives that operator's result the name. The tensor that goes into it keeps its name in the integer file: so it
gets one that is nobody else's.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import tensorflow as tf

from dqat.export.flatbuffer import Flatbuffer

_NAME = re.compile(r"(?P<scope>[^/;]+)/dqat\.(?P<path>[^/;]+)\.point(?:_(?P<number>\d+))?\.end$")


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


def count_points(operations: Iterable[str]) -> dict[tuple[str, str], int]:
    """How many fake-quant ops each quantizer has in each call, by scope and legal path, from the ops' names."""
    found = filter(None, map(_NAME.search, operations))
    return dict(Counter((match["scope"], match["path"]) for match in found))


def points_of(floats: Flatbuffer, paths: Iterable[str], counts: dict[tuple[str, str], int]) -> Iterator[Point]:
    """The points of a float file, with the names of the tensors that are quantized there; they are renamed.

    Args:
        floats: what the converter made.
        paths: of the model's quantizers.
        counts: what `count_points` gave for the graph that was converted.
    """
    known, numbers = {_safe(path): path for path in paths}, itertools.count()
    renamed: dict[int, str] = {}
    for operator in floats.graph.operators:
        if floats.operator_name(operator) != "QUANTIZE":
            continue
        (result,), (source,) = operator.outputs, operator.inputs
        found = _NAME.search(floats.tensor(result).name.decode().split(";")[-1])
        if found is None or found["path"] not in known:
            continue
        # The end of the model has its name from what comes after the quantization.
        after = [
            index
            for other in floats.graph.operators
            if floats.operator_name(other) == "DEQUANTIZE" and other.inputs[0] == result
            for index in other.outputs
            if index in floats.graph.outputs
        ]
        count = counts[found["scope"], found["path"]]
        point = Point(known[found["path"]], found["scope"], int(found["number"] or 0), count, source)
        if after:
            name = floats.tensor(after[0]).name.decode()
        elif source in floats.graph.inputs:
            name = floats.tensor(source).name.decode()
        elif source in renamed:  # that several quantizers read
            name = renamed[source]
        else:  # the quantizer makes further names by appending digits
            name = renamed[source] = f"{point.path}({next(numbers)})"
            floats.tensor(source).name = name.encode()
        yield replace(point, tensor=name)
