"""Layers of 16 bits amid layers of 8: which layers follow those that are named, and what stands at the borders."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import tensorflow as tf

from dqat.graph import Call, Graph, Tensor
from dqat.keras_api import keras
from dqat.layers import ChangeBits
from dqat.rules import absent
from dqat.rules.activations import activation_name
from dqat.rules.table import moves_only


def has_int16_operator(layer: keras.layers.Layer) -> bool:
    """Whether TFLite's operators for a layer, with its activation, take int16 activations."""
    activation = getattr(layer, "activation", None)
    is_int8_only = callable(activation) and activation_name(activation) in absent.INT8_ONLY_ACTIVATIONS
    return type(layer) not in absent.INT8_ONLY and not is_int8_only


def with_borders(
    graph: Graph, named: set[int], is_quantized: Callable[[keras.layers.Layer], bool]
) -> tuple[Graph, set[int]]:
    """The graph with a `ChangeBits` between layers of 16 bits and layers of 8, and the ids of layers of 16 bits.

    A layer that moves the values of one tensor has the bits of what it reads, named or not, and an input of the model
    those of all that read it.

    Args:
        graph: the float model's.
        named: ids of the layers that have 16 bits.
        is_quantized: whether a layer is; others count as layers of 8 bits, since that is what they read and give.
    """
    consumers, makers = graph.consumers(), {tensor: call for call in graph.calls for tensor in call.results}

    def follows(layer: keras.layers.Layer) -> bool:
        moves = moves_only(layer) and type(layer) not in absent.INT8_ONLY
        return moves and is_quantized(layer) and len(graph.calls_of(layer)) == 1

    def is_read_in_16(tensor: Tensor) -> bool:
        return all(
            one is not None and (is_read_in_16(one.results[0]) if follows(one.layer) else id(one.layer) in named)
            for one in consumers[tensor]
        )

    wide = {id(layer) for layer in graph.layers() if id(layer) in named and not follows(layer)}
    for call in graph.calls:
        if call.is_input:
            is_wide = bool(consumers[call.outputs]) and is_read_in_16(call.outputs)
        else:
            is_wide = follows(call.layer) and all(id(makers[tensor].layer) in wide for tensor in call.inputs)
        wide |= {id(call.layer)} if is_wide else set()

    calls: list[Call] = []
    changed: dict[tuple[Tensor, bool], Tensor] = {}

    def bordered(tensor: Any, is_wide: bool) -> Any:
        if not isinstance(tensor, Tensor) or (id(makers[tensor].layer) in wide) == is_wide:
            return tensor
        if (tensor, is_wide) not in changed:
            maker = makers[tensor]
            layer = ChangeBits(name=f"{maker.layer.name}_int{16 if is_wide else 8}")
            wide.update({id(layer)} if is_wide else ())
            result = changed[tensor, is_wide] = Tensor(tensor.shape)
            calls.append(Call(layer, (tensor,), {}, result))
        return changed[tensor, is_wide]

    for call in graph.calls:
        if not isinstance(call.layer, keras.layers.Embedding):  # which reads indices
            args, kwargs = tf.nest.map_structure(
                lambda leaf, call=call: bordered(leaf, id(call.layer) in wide), (call.args, call.kwargs)
            )
            call = replace(call, args=args, kwargs=kwargs)
        calls.append(call)
    return replace(graph, calls=tuple(calls)), wide
