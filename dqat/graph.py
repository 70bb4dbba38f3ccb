"""A functional Keras model as a list of layer calls, and making another model from it.

Nested models are opened: their layers' calls stand in the list as if the model had been written flat.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import tensorflow as tf

from dqat.keras_api import keras


class Tensor:
    """A tensor between two layer calls: known by identity alone.

    Attributes:
        shape: of the Keras tensor.
    """

    def __init__(self, shape: tf.TensorShape) -> None:
        self.shape = shape


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer.

    Attributes:
        layer: the layer.
        args: its positional arguments; where Keras had tensors, there are `Tensor`s.
        kwargs: its keyword arguments, likewise.
        outputs: a `Tensor` or a structure of them.
    """

    layer: keras.layers.Layer
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    outputs: Any = None

    @property
    def inputs(self) -> list[Tensor]:
        """All tensors that the call takes, in order."""
        return tensors_in((self.args, self.kwargs))

    @property
    def results(self) -> list[Tensor]:
        """All tensors that the call gives, in order."""
        return tensors_in(self.outputs)

    @property
    def is_input(self) -> bool:
        """Whether the layer is an input of the model."""
        return isinstance(self.layer, keras.layers.InputLayer)


@dataclass(frozen=True, eq=False)
class Graph:
    """The calls of a model, each after those that it needs.

    Attributes:
        calls: in order.
        inputs: the model's inputs, in its own structure.
        outputs: the model's outputs, in its own structure.
    """

    calls: tuple[Call, ...]
    inputs: Any
    outputs: Any

    def layers(self) -> list[keras.layers.Layer]:
        """All layers, each once, in the order of their first calls."""
        return list({id(call.layer): call.layer for call in self.calls}.values())

    def calls_of(self, layer: keras.layers.Layer) -> list[Call]:
        """All calls of a layer."""
        return [call for call in self.calls if call.layer is layer]

    def consumers(self) -> dict[Tensor, list[Call | None]]:
        """By tensor, the calls that take it; None stands for the end of the model."""
        found: dict[Tensor, list[Call | None]] = {tensor: [] for call in self.calls for tensor in call.results}
        for call in self.calls:
            for tensor in call.inputs:
                found[tensor].append(call)
        for tensor in tensors_in(self.outputs):
            found[tensor].append(None)
        return found

    def rewritten(self, rewrite: "Callable[[Call], Call | list[Call]]") -> "Graph":
        """The graph with every call replaced by what `rewrite` makes of it; results stay the same tensors."""
        made = [rewrite(call) for call in self.calls]
        return replace(self, calls=tuple(new for one in made for new in (one if isinstance(one, list) else [one])))


def tensors_in(structure: Any) -> list[Tensor]:
    """The tensors of a structure, in order."""
    return [leaf for leaf in tf.nest.flatten(structure) if isinstance(leaf, Tensor)]


def as_functional(model: keras.Model) -> keras.Model:
    """The model as a graph of layer calls; a Sequential model's own layers and weights are kept.

    Args:
        model: Sequential or functional.

    Raises:
        ValueError: for a Sequential model without input shape.
    """
    if isinstance(model, keras.Sequential):
        if not model.built or not model.inputs:
            raise ValueError(
                f"Sequential model {model.name!r} has no input shape yet: give it a keras.Input or call "
                "model.build(shape) with the full shape first"
            )
        return keras.Model(model.inputs, model.outputs, name=model.name)
    return model


def _is_functional(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.Model) and getattr(layer, "_is_graph_network", False)


def _nodes(model: keras.Model) -> Iterator[Any]:
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from model._nodes_by_depth[depth]


#: Takes a layer and the arguments of a call, and gives the functional model that the call is, or None for a layer
#: that stays whole.
Opened = Callable[[keras.layers.Layer, Any, dict[str, Any]], keras.Model | None]


def read(model: keras.Model, opened: Opened = lambda layer, args, kwargs: None) -> Graph:
    """The calls of a functional model, those of nested models included.

    A nested model that is called with a fixed `training` hands it on to its layers, as Keras does.

    Args:
        model: functional.
        opened: tells which layers are models too.
    """
    calls: list[Call] = []
    known: dict[int, Tensor] = {}
    _read(model, calls, known, {}, opened)
    inputs, outputs = (
        tf.nest.map_structure(lambda tensor: known[id(tensor)], structure)
        for structure in (model._nested_inputs, model._nested_outputs)
    )
    return Graph(tuple(calls), inputs, outputs)


def _read(
    model: keras.Model, calls: list[Call], known: dict[int, Tensor], inherited: dict[str, Any], opened: Opened
) -> None:
    for node in _nodes(model):
        layer = node.layer
        if isinstance(layer, keras.layers.InputLayer):
            if id(node.outputs) not in known:
                known[id(node.outputs)] = tensor = Tensor(node.outputs.shape)
                calls.append(Call(layer, outputs=tensor))
            continue
        args, kwargs = tf.nest.map_structure(
            lambda value: known.get(id(value), value) if hasattr(value, "node") else value,
            (tuple(node.call_args), dict(node.call_kwargs)),
        )
        if inherited and getattr(layer, "_expects_training_arg", False) and kwargs.get("training") is None:
            kwargs |= inherited
        is_model = _is_functional(layer)
        inner = layer if is_model else opened(layer, tuple(node.call_args), dict(node.call_kwargs))
        if inner is not None:
            inside = dict(known)
            given = tensors_in(args if is_model else (args, kwargs))
            inside.update({id(old): new for old, new in zip(tf.nest.flatten(inner.inputs), given, strict=True)})
            fixed = kwargs.get("training")
            _read(inner, calls, inside, {} if fixed is None else {"training": fixed}, opened)
            results = [inside[id(tensor)] for tensor in tf.nest.flatten(inner.outputs)]
        else:
            outputs = tf.nest.map_structure(lambda tensor: Tensor(tensor.shape), node.outputs)
            calls.append(Call(layer, args, kwargs, outputs))
            results = tf.nest.flatten(outputs)
        known.update({id(old): new for old, new in zip(tf.nest.flatten(node.outputs), results, strict=True)})


def unique_names(graph: Graph) -> dict[int, str]:
    """A name for every layer, by its id: its own, or with a number where nested models use one name twice."""
    taken: Counter[str] = Counter()
    names = {}
    for layer in graph.layers():
        name = layer.name
        while name in taken:
            taken[layer.name] += 1
            name = f"{layer.name}_{taken[layer.name]}"
        taken[name] = 0
        names[id(layer)] = name
    return names


#: Takes a call with the new model's tensors in its arguments, and gives the tensors that stand for its outputs.
Convert = Callable[[Call, tuple[Any, ...], dict[str, Any]], Any]


def rebuild(graph: Graph, convert: Convert) -> tuple[Any, Any]:
    """Runs `convert` over every call in order and returns the new inputs and outputs, in the graph's structures.

    For an input layer `convert` returns a pair of the new input and the tensor that goes on from it.
    """
    tensors: dict[Tensor, Any] = {}
    entries: dict[Tensor, Any] = {}

    def renewed(structure: Any) -> Any:
        return tf.nest.map_structure(lambda leaf: tensors[leaf] if isinstance(leaf, Tensor) else leaf, structure)

    for call in graph.calls:
        converted = convert(call, *renewed((call.args, call.kwargs)))
        if call.is_input:
            entries[call.outputs], converted = converted
        tensors.update(zip(call.results, tf.nest.flatten(converted), strict=True))
    return tf.nest.map_structure(entries.__getitem__, graph.inputs), renewed(graph.outputs)


def run(graph: Graph, inputs: Any, step: Callable[[Call, tuple[Any, ...], dict[str, Any]], Any]) -> Any:
    """Runs a model call by call, eagerly; what no later call reads is forgotten on the way.

    Args:
        graph: of a model.
        inputs: of the model, in its structure.
        step: takes a call with values for tensors in its arguments, and gives its outputs' values.

    Returns:
        The model's outputs, in its structure.
    """
    values: dict[Tensor, Any] = dict(zip(tensors_in(graph.inputs), tf.nest.flatten(inputs), strict=True))
    readers = {tensor: len(calls) for tensor, calls in graph.consumers().items()}

    def valued(structure: Any) -> Any:
        return tf.nest.map_structure(lambda leaf: values[leaf] if isinstance(leaf, Tensor) else leaf, structure)

    for call in graph.calls:
        if call.is_input:
            continue
        outputs = step(call, *valued((call.args, call.kwargs)))
        values.update(zip(call.results, tf.nest.flatten(outputs), strict=True))
        for tensor in call.inputs:
            readers[tensor] -= 1
            if not readers[tensor]:
                del values[tensor]
    return valued(graph.outputs)
