"""Walking a functional Keras model layer call by layer call, and making another model on the way."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from dqat.keras_api import keras

#: Takes a layer and the tensors it is called with; gives the tensors that stand for its outputs.
Convert = Callable[[keras.layers.Layer, Any], Any]


def as_functional(model: keras.Model) -> keras.Model:
    """The model as a graph of layer calls; a Sequential model's own layers and weights are kept.

    Raises:
        ValueError: for a Sequential model without input shape, and for a subclassed model.
    """
    if isinstance(model, keras.Sequential):
        if not model.built or not model.inputs:
            raise ValueError(
                f"Sequential model {model.name!r} has no input shape yet: give it a keras.Input or call "
                "model.build(shape) with the full shape first"
            )
        return keras.Model(model.inputs, model.outputs, name=model.name)
    if not getattr(model, "_is_graph_network", False):
        raise ValueError(
            f"model {model.name!r} is a subclassed {type(model).__name__}; functional and Sequential models are "
            "supported. Build the same layers with keras.Model(inputs, outputs)"
        )
    return model


def _nodes(model: keras.Model) -> list[Any]:
    """The layer calls in an order in which every call comes after those it needs."""
    return [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]


def consumers(model: keras.Model) -> dict[str, list[keras.layers.Layer]]:
    """By layer name, the layers that take its outputs; None stands for an output of the model."""
    found: dict[str, list[Any]] = {layer.name: [] for layer in model.layers}
    for node in _nodes(model):
        for tensor in node.keras_inputs:
            found[tensor.node.layer.name].append(node.layer)
    for tensor in model.outputs:
        found[tensor.node.layer.name].append(None)
    return found


def layers_called_twice(model: keras.Model) -> list[str]:
    """Names of the layers that are shared between several calls."""
    calls = Counter(node.layer.name for node in _nodes(model))
    return [name for name, count in calls.items() if count > 1]


def rebuild(model: keras.Model, convert: Convert) -> tuple[list[Any], list[Any]]:
    """Runs `convert` over every layer call in order and returns the new inputs and outputs.

    For an input layer `convert` gets None as tensors, and returns the new input, or a pair of the new input
    and the tensor that goes on from it.
    """
    tensors: dict[int, Any] = {}
    inputs: dict[str, Any] = {}
    for node in _nodes(model):
        layer = node.layer
        if isinstance(layer, keras.layers.InputLayer):
            converted = convert(layer, None)
            entry, converted = converted if isinstance(converted, tuple) else (converted, converted)
            inputs[layer.name] = entry
        else:
            arguments = tf.nest.map_structure(
                lambda value: tensors.get(id(value), value) if hasattr(value, "node") else value,
                node.call_args,
            )
            converted = convert(layer, arguments[0] if len(arguments) == 1 else arguments)
        for old, new in zip(tf.nest.flatten(node.outputs), tf.nest.flatten(converted), strict=True):
            tensors[id(old)] = new
    entries = [inputs[tensor.node.layer.name] for tensor in model.inputs]
    return entries, [tensors[id(tensor)] for tensor in model.outputs]
