"""Conditions under which a device's runtime takes an operator, by the names that the data files give them."""

import math
from collections.abc import Callable

import numpy as np

from dqat.export.flatbuffer import LstmTensors
from dqat.export.inspection import Operator, Subgraph, Tensor

#: Takes an operator and its graph; says whether the condition holds.
Condition = Callable[[Operator, Subgraph], bool]
#: The longest row that the Edge TPU's SOFTMAX takes.
_LONGEST_SOFTMAX = 16_000


def _tensors(operator: Operator, graph: Subgraph) -> list[Tensor]:
    return [graph.tensors[index] for index in (*operator.inputs, *operator.outputs) if index >= 0]


def _integers(operator: Operator, graph: Subgraph, place: int) -> np.ndarray | None:
    """The values of a constant int32 input; None where it is computed."""
    tensor = graph.tensors[operator.inputs[place]]
    return np.frombuffer(tensor.values, np.int32).reshape(tensor.shape) if tensor.kind == "constant" else None


def _ends(operator: Operator, graph: Subgraph) -> tuple[Tensor, Tensor]:
    return graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]


def _is_one_row(tensor: Tensor) -> bool:
    return math.prod(tensor.shape[:-1]) in (1, -1)  # -1: any number of samples


def _same_dilation(operator: Operator, graph: Subgraph) -> bool:
    return operator.options["dilationWFactor"] == operator.options["dilationHFactor"]


def _no_activation(operator: Operator, graph: Subgraph) -> bool:
    return operator.options["fusedActivationFunction"] == 0


def _rank_at_most_4(operator: Operator, graph: Subgraph) -> bool:
    return all(len(tensor.shape) <= 4 for tensor in _tensors(operator, graph))


def _rank_4(operator: Operator, graph: Subgraph) -> bool:
    return all(len(tensor.shape) == 4 for tensor in _ends(operator, graph))


def _no_scalar(operator: Operator, graph: Subgraph) -> bool:
    return len(_ends(operator, graph)[1].shape) > 0


def _one_scale(operator: Operator, graph: Subgraph) -> bool:
    source, result = _ends(operator, graph)
    return (source.scales, source.zero_points) == (result.scales, result.zero_points)


def _one_row(operator: Operator, graph: Subgraph) -> bool:
    return _is_one_row(_ends(operator, graph)[1])


def _default_weights(operator: Operator, graph: Subgraph) -> bool:
    return operator.options["weightsFormat"] == 0


def _short_row(operator: Operator, graph: Subgraph) -> bool:
    source, _ = _ends(operator, graph)
    return _is_one_row(source) and source.shape[-1] <= _LONGEST_SOFTMAX


def _reduced_axes(operator: Operator, graph: Subgraph) -> set[int] | None:
    axes = _integers(operator, graph, 1)
    rank = len(_ends(operator, graph)[0].shape)
    return None if axes is None else {int(axis) % rank for axis in axes.reshape(-1)}


def _not_over_batch(operator: Operator, graph: Subgraph) -> bool:
    axes = _reduced_axes(operator, graph)
    return axes is not None and 0 not in axes


def _whole_channels(operator: Operator, graph: Subgraph) -> bool:
    axes, shape = _reduced_axes(operator, graph), _ends(operator, graph)[0].shape
    return axes is not None and (len(shape) - 1 not in axes or shape[-1] % 4 == 0)


def _not_packed_along_batch(operator: Operator, graph: Subgraph) -> bool:
    return operator.options["axis"] != 0


def _not_packed_along_last(operator: Operator, graph: Subgraph) -> bool:
    return operator.options["axis"] not in (-1, len(_ends(operator, graph)[1].shape) - 1)


def _not_split_along_batch(operator: Operator, graph: Subgraph) -> bool:
    axis = _integers(operator, graph, 0)
    rank = len(graph.tensors[operator.inputs[1]].shape)
    return axis is not None and int(axis.reshape(-1)[0]) % rank != 0


def _batch_not_padded(operator: Operator, graph: Subgraph) -> bool:
    sizes = _integers(operator, graph, 1)
    return sizes is not None and not sizes[0].any()


def _unit_strides(operator: Operator, graph: Subgraph) -> bool:
    strides = _integers(operator, graph, 3)
    return strides is not None and bool((strides == 1).all())


def _no_crops(operator: Operator, graph: Subgraph) -> bool:
    crops = _integers(operator, graph, 2)
    return crops is not None and not crops.any()


def _constant_size(operator: Operator, graph: Subgraph) -> bool:
    return _integers(operator, graph, 1) is not None


def _computed_input(operator: Operator, graph: Subgraph) -> bool:
    return _ends(operator, graph)[0].kind != "constant"


def _joined_zeros(operator: Operator, graph: Subgraph) -> bool:
    """A constant is zeros, and joined with one other tensor."""
    inputs = [graph.tensors[index] for index in operator.inputs]
    constants = [tensor for tensor in inputs if tensor.kind == "constant"]
    zeros = all((np.frombuffer(one.values, np.int8) == (one.zero_points or (0,))[0]).all() for one in constants)
    return not constants or (zeros and len(inputs) - len(constants) == 1)


def _no_peepholes(operator: Operator, graph: Subgraph) -> bool:
    return all(operator.inputs[place] < 0 for place in LstmTensors.PEEPHOLES)


CONDITIONS: dict[str, Condition] = {
    "same_dilation": _same_dilation,
    "no_activation": _no_activation,
    "rank_at_most_4": _rank_at_most_4,
    "rank_4": _rank_4,
    "no_scalar": _no_scalar,
    "one_scale": _one_scale,
    "one_row": _one_row,
    "default_weights": _default_weights,
    "short_row": _short_row,
    "not_over_batch": _not_over_batch,
    "whole_channels": _whole_channels,
    "not_packed_along_batch": _not_packed_along_batch,
    "not_packed_along_last": _not_packed_along_last,
    "not_split_along_batch": _not_split_along_batch,
    "batch_not_padded": _batch_not_padded,
    "unit_strides": _unit_strides,
    "no_crops": _no_crops,
    "constant_size": _constant_size,
    "computed_input": _computed_input,
    "joined_zeros": _joined_zeros,
    "no_peepholes": _no_peepholes,
}
