"""Scales and biases of the file's products, to the last bit those of the simulation.

The converter computes them too, in another order: a third of its scales differ in their last bit, and one bias in some
hundreds by 1. Either moves one output of 100,000 to the next level.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dqat import graph
from dqat.export.flatbuffer import Flatbuffer
from dqat.layers import QuantizeWrapper
from dqat.layers.affine import AFFINE
from dqat.layers.product_grid import ProductGrid, affine_grid
from dqat.model import QuantizedModel
from dqat.neighbours import Neighbours

_PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
#: What the converter computes lies as near.
_SCALE_TOLERANCE, _BIAS_TOLERANCE = 1e-5, 2


def settle_products(
    model: QuantizedModel, flatbuffer: Flatbuffer, stored: Callable[[QuantizeWrapper, str], np.ndarray]
) -> None:
    """Writes scales of weights, and biases.

    Args:
        model: trained.
        flatbuffer: of integers.
        stored: gives the integers of a layer's weight in the file's order.
    """
    operators: dict[int, list[Any]] = {}
    for operator in flatbuffer.graph.operators:
        if flatbuffer.operator_name(operator) in _PRODUCTS:
            weights = flatbuffer.constant(operator.inputs[1])
            if weights is not None:
                operators.setdefault(weights.size, []).append(operator)
    for grid, codes in _grids(model, stored):
        sizes = operators if codes.size == 1 else [codes.size]
        for operator in (one for size in sizes for one in operators.get(size, [])):
            found = flatbuffer.constant(operator.inputs[1]).reshape(-1)
            if np.array_equal(found, np.broadcast_to(codes, found.shape)):
                _settle(flatbuffer, operator, grid)


def _grids(
    model: QuantizedModel, stored: Callable[[QuantizeWrapper, str], np.ndarray]
) -> Iterator[tuple[ProductGrid, np.ndarray]]:
    """What each layer has in the file, with the integers of its weights; one of those where all channels have it."""
    calls = graph.read(model)
    neighbours = Neighbours(calls)
    folded = [layer.norm for layer in calls.layers() if isinstance(layer, QuantizeWrapper)]
    for layer in calls.layers():
        inner = layer.layer if isinstance(layer, QuantizeWrapper) else layer
        if isinstance(inner, AFFINE) and not any(inner is norm for norm in folded):
            (quantizer,) = neighbours.before(layer)
            if quantizer is not None:
                grid = affine_grid(inner, quantizer)
                yield grid, np.int8(127 * np.sign(grid.factor.numpy())).reshape(-1)
        elif isinstance(layer, QuantizeWrapper) and layer.product_grid() is not None:
            yield layer.product_grid(), stored(layer, list(layer.weight_specs())[-1]).reshape(-1)


def _settle(flatbuffer: Flatbuffer, operator: Any, grid: ProductGrid) -> None:
    place, known = int(operator.inputs[1]), grid.is_known.numpy().reshape(-1)
    there = np.asarray(flatbuffer.tensor(place).quantization.scale, np.float32)
    ours = grid.weight_scale.numpy().reshape(-1)
    if ours.size > there.size:
        return
    # One scale of all channels is the file's even where some of them are folded away.
    scale = np.where(known if ours.size > 1 else known.any(), ours, there).astype(np.float32)
    if np.any(np.abs(scale / there - 1.0) > _SCALE_TOLERANCE):
        return  # another layer with the same integers
    biases = {"TRANSPOSE_CONV": 3}.get(flatbuffer.operator_name(operator), 2)
    if len(operator.inputs) > biases and operator.inputs[biases] >= 0:
        bias = int(operator.inputs[biases])
        before = flatbuffer.constant(bias)
        after = np.where(known, grid.bias().numpy().reshape(-1), before).astype(before.dtype)
        if np.any(np.abs(after.astype(np.int64) - before) > _BIAS_TOLERANCE):
            return
        flatbuffer.set_constant(bias, after)
        flatbuffer.tensor(bias).quantization.scale = grid.input_scale.numpy() * scale
    flatbuffer.tensor(place).quantization.scale = scale
