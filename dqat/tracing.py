"""Subclassed models, and layers that are made of others, as graphs of layer calls.

What `call` does with its inputs is recorded by calling it once on Keras' symbolic tensors: the layers that it calls,
wherever the model holds them, and TensorFlow's operations between them, which Keras records as layers of their own.
"""

import contextlib
import inspect
import traceback
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from dqat import graph
from dqat.keras_api import keras

#: Packages whose layers are known by their class, whatever they hold inside.
_KNOWN_PACKAGES = ("keras", "tf_keras", "tensorflow", "tensorflow_addons", "dqat")


def read(model: keras.Model) -> graph.Graph:
    """The calls of a model of any kind, down to the layers that are not made of others.

    The model's layers are those of the graph; nothing of it changes.

    Args:
        model: functional, Sequential or subclassed; the latter must have been called on a batch, or built.

    Raises:
        ValueError: where there is no input shape, where `call` can't be traced (names the line), where it does
            something else while training, or uses weights other than through layers (names them).
    """
    with _nodes_kept(model):
        traced = graph.as_functional(model) if _is_graph(model) else _of_model(model)
        source = graph.read(traced, opened)
    _require_all_weights(model, source)
    return source


def opened(layer: keras.layers.Layer, args: Any, kwargs: dict[str, Any]) -> keras.Model | None:
    """The functional model that a layer's `call` is, with the tensors of its arguments as inputs.

    Args:
        layer: that the arguments belong to.
        args: Keras tensors among them.
        kwargs: likewise.

    Returns:
        None for a layer that stays whole: Keras' own, and one with weights of its own.
    """
    if not _is_composite(layer):
        return None
    return _of_call(layer, args, kwargs)


def _is_graph(model: keras.Model) -> bool:
    return isinstance(model, keras.Sequential) or getattr(model, "_is_graph_network", False)


def _is_composite(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, keras.Model):
        return True
    if type(layer).__module__.split(".")[0] in _KNOWN_PACKAGES:
        return False
    parts = [part for part in layer._flatten_layers(include_self=False) if part is not layer]
    held = {id(weight) for part in parts for weight in part.weights}
    return all(id(weight) in held for weight in layer.weights)


def _of_model(model: keras.Model) -> keras.Model:
    specs = model.save_spec(dynamic_batch=True)
    if specs is None and getattr(model, "_build_input_shape", None) is not None:
        specs = [_specs_of_shape(model._build_input_shape)], {}
    if specs is None:
        raise ValueError(
            f"subclassed model {model.name!r} ({type(model).__name__}) has no input shape yet: call it once on a batch "
            "of samples, or model.build(shape), first"
        )
    args, kwargs = specs
    parameters = list(inspect.signature(model.call).parameters)
    named = dict(zip(parameters, args, strict=False)) | {
        key: value for key, value in kwargs.items() if any(map(_is_spec, tf.nest.flatten(value)))
    }
    entries = {key: _entries(key, value) for key, value in named.items()}
    positional = [entries.pop(name) for name in parameters[: len(args)]]
    return _of_call(model, positional, entries)


def _specs_of_shape(shape: Any) -> Any:
    if isinstance(shape, dict):
        return {key: tf.TensorSpec(one) for key, one in shape.items()}
    if isinstance(shape, (list, tuple)) and shape and isinstance(shape[0], (list, tuple, tf.TensorShape)):
        return [tf.TensorSpec(one) for one in shape]
    return tf.TensorSpec(shape)


def _is_spec(value: Any) -> bool:
    return isinstance(value, tf.TensorSpec)


def _entries(name: str, specs: Any) -> Any:
    """Keras inputs in the structure of the specs; one of a dictionary has its key as its name."""
    if isinstance(specs, dict):
        return {key: _entries(key, one) for key, one in specs.items()}
    if isinstance(specs, (list, tuple)):
        return type(specs)([_entries(f"{name}_{index}", one) for index, one in enumerate(specs)])
    return keras.Input(batch_input_shape=specs.shape, dtype=specs.dtype, name=name)


def _of_call(layer: keras.layers.Layer, args: Any, kwargs: dict[str, Any]) -> keras.Model:
    found, inputs = _traced(layer, args, kwargs)
    if getattr(layer, "_expects_training_arg", False) and kwargs.get("training") is None:
        other, _ = _traced(layer, args, {**kwargs, "training": True})
        one, two = _operations(found), _operations(other)
        if one != two:
            differing = next((pair for pair in zip(one, two, strict=False) if pair[0] != pair[1]), None)
            where = f"{differing[0]} against {differing[1]}" if differing else f"{len(one)} calls against {len(two)}"
            raise ValueError(
                f"the call of {layer.name!r} ({type(layer).__name__}) does something else while training: {where}. "
                "Put what differs into a layer whose call takes `training`, or into the data"
            )
    return keras.Model(inputs, found, name=layer.name)


def _is_symbolic(value: Any) -> bool:
    return hasattr(value, "node")


def _traced(layer: keras.layers.Layer, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """What `call` returns for symbolic inputs like those of its arguments, and these inputs."""

    def renewed(value: Any) -> Any:
        if not _is_symbolic(value):
            return value
        name = value.node.layer.name if value.node.is_input else None
        return keras.Input(batch_input_shape=value.shape, dtype=value.dtype, name=name)

    args, kwargs = tf.nest.map_structure(renewed, (args, kwargs))
    inputs = [value for value in tf.nest.flatten((args, kwargs)) if _is_symbolic(value)]
    if len(inputs) == len(tf.nest.flatten(args[0])):
        inputs = args[0]  # in its own structure
    if not getattr(layer, "_expects_training_arg", False):
        kwargs.pop("training", None)
    try:
        outputs = layer.call(*args, **kwargs)
    except Exception as error:
        line = _line_of_call(error)
        raise ValueError(
            f"the call of {layer.name!r} ({type(layer).__name__}) can't be traced: {error}\n"
            f"  at {line.filename}:{line.lineno}: {line.line}\n"
            "Python's control flow on values of tensors, and operations that need values while they are recorded, "
            "can't become an integer graph: put them outside of the model, or into a layer with a QuantizeConfig"
        ) from error
    for output in tf.nest.flatten(outputs):
        if not _is_symbolic(output):
            raise ValueError(
                f"the call of {layer.name!r} ({type(layer).__name__}) returns {type(output).__name__} {output!r}, "
                "which does not depend on its inputs"
            )
    return outputs, inputs


def _line_of_call(error: Exception) -> traceback.FrameSummary:
    """The innermost line of the model's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if "site-packages" not in one.filename and one.filename != __file__]
    return (own or frames)[-1]


def _operations(outputs: Any) -> list[str]:
    """What was called to make the outputs, in order."""
    found: dict[int, Any] = {}

    def visit(tensor: Any) -> None:
        node = tensor.node
        if id(node) not in found and not node.is_input:
            for before in tf.nest.flatten(node.keras_inputs):
                visit(before)
            found[id(node)] = node

    for output in tf.nest.flatten(outputs):
        visit(output)
    return [_description(node.layer) for node in found.values()]


def _description(layer: keras.layers.Layer) -> str:
    is_operation = type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda")
    return f"tf.{layer.get_config()['function']}" if is_operation else f"layer {layer.name!r}"


@contextlib.contextmanager
def _nodes_kept(model: keras.Model) -> Iterator[None]:
    """Afterwards the layers know of the calls that they knew of before."""
    layers = [layer for layer in model._flatten_layers() if hasattr(layer, "_inbound_nodes")]
    kept = [(layer, len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in layers]
    try:
        yield
    finally:
        for layer, inbound, outbound in kept:
            del layer._inbound_nodes[inbound:], layer._outbound_nodes[outbound:]


def _require_all_weights(model: keras.Model, source: graph.Graph) -> None:
    found = {id(weight) for layer in source.layers() for weight in layer.weights}
    missing = [weight.name for weight in model.weights if id(weight) not in found]
    if missing:
        raise ValueError(
            f"model {model.name!r} has weights that its call does not use through a layer called on the model's own "
            f"tensors: {', '.join(missing)}. As constants they would not be trained: hold them in a layer"
        )
