"""TensorFlow operations in functional models, such as `x * 2 + 1` or `tf.nn.relu(x)`, as the layers they equal."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from dqat import graph
from dqat.graph import Call, Tensor
from dqat.keras_api import keras
from dqat.layers import Arithmetic, MergeTime, SplitTime

layers = keras.layers

#: TensorFlow's symbols of arithmetic, as Keras records them, and the layer of two tensors where there is one.
_ARITHMETIC = {
    "__operators__.add": ("add", layers.Add),
    "math.add": ("add", layers.Add),
    "math.subtract": ("subtract", layers.Subtract),
    "math.multiply": ("multiply", layers.Multiply),
    "math.truediv": ("divide", None),
    "math.divide": ("divide", None),
    "math.maximum": ("maximum", layers.Maximum),
    "math.minimum": ("minimum", layers.Minimum),
}
_ACTIVATIONS = {
    "nn.relu": "relu",
    "nn.relu6": "relu6",
    "nn.sigmoid": "sigmoid",
    "math.sigmoid": "sigmoid",
    "nn.tanh": "tanh",
    "math.tanh": "tanh",
    "nn.silu": "swish",
    "nn.elu": "elu",
    "nn.softmax": "softmax",
}


#: Operations that move values without changing them.
MOVING = ("reshape", "transpose", "expand_dims", "squeeze", "compat.v1.squeeze", "compat.v1.transpose", "identity")
#: Layers that do the same at every step, whether they are told so or not.
_POINTWISE = (
    layers.Dense,
    layers.Activation,
    layers.ReLU,
    layers.ELU,
    layers.LeakyReLU,
    layers.Softmax,
    layers.BatchNormalization,
    layers.Rescaling,
)


def moves_values(layer: layers.Layer) -> bool:
    """Whether the layer stands for an operation that only moves values."""
    return type(layer).__name__ == "TFOpLambda" and layer.get_config()["function"] in MOVING


def as_layer(call: Call) -> Call | list[Call]:
    """Calls of layers that compute the same; the call itself where there is none, or where it is a layer's."""
    if type(call.layer) is layers.TimeDistributed:
        return _at_every_step(call)
    if type(call.layer).__name__ != "TFOpLambda":
        return call
    symbol = call.layer.get_config()["function"]
    name = call.layer.name
    if symbol in _ARITHMETIC:
        return _arithmetic(call, *_ARITHMETIC[symbol])
    (first, *rest), options = call.args or (None,), {k: v for k, v in call.kwargs.items() if v is not None}
    options.pop("name", None)
    if symbol in _ACTIVATIONS and isinstance(first, Tensor) and not rest and not options:
        return _called(call, layers.Activation(_ACTIVATIONS[symbol], name=_legal(name)), first)
    return call


def _at_every_step(call: Call) -> Call | list[Call]:
    inner, (inputs, *_) = call.layer.layer, call.inputs
    kwargs = {key: value for key, value in call.kwargs.items() if key == "training" and value is not None}
    if type(inner) in _POINTWISE:
        return replace(call, layer=inner, kwargs=kwargs)
    steps = inputs.shape[1]
    if isinstance(inner, (layers.RNN, layers.Bidirectional)) or steps is None:
        return call
    merged = Tensor(tf.TensorShape([None, *inputs.shape[2:]]))
    before = Call(MergeTime(name=f"{call.layer.name}_merge"), (inputs,), {}, merged)
    if isinstance(inner, keras.Sequential) or getattr(inner, "_is_graph_network", False):
        inside = graph.read(graph.as_functional(inner))
        ((entry,), (result,)) = graph.tensors_in(inside.inputs), graph.tensors_in(inside.outputs)
        renamed = {entry: merged}

        def through(structure: Any) -> Any:
            return tf.nest.map_structure(
                lambda leaf: renamed.get(leaf, leaf) if isinstance(leaf, Tensor) else leaf, structure
            )

        between = [
            replace(one, args=through(one.args), kwargs=through(one.kwargs)) for one in inside.calls if not one.is_input
        ]
        between = list(graph.Graph(tuple(between), merged, result).rewritten(as_layer).calls)
    else:
        result = Tensor(tf.TensorShape([None, *call.results[0].shape[2:]]))
        if not inner._expects_training_arg:
            kwargs = {}
        between = [Call(inner, (merged,), kwargs, result)]
    return [before, *between, Call(SplitTime(steps, name=f"{call.layer.name}_split"), (result,), {}, call.outputs)]


def _legal(name: str) -> str:
    """A name that Keras takes for a scope: TensorFlow's symbols have dots and underscores first."""
    return name.replace("__operators__", "operators")


def _called(call: Call, layer: layers.Layer, inputs: Any) -> Call:
    return replace(call, layer=layer, args=(inputs,), kwargs={})


def _arithmetic(call: Call, operation: str, of_two: Callable[..., layers.Layer] | None) -> Call:
    operands = [*call.args, *(call.kwargs[key] for key in ("x", "y") if key in call.kwargs)]
    if len(operands) != 2:
        return call
    name = _legal(call.layer.name)
    are_tensors = [isinstance(operand, Tensor) for operand in operands]
    if all(are_tensors):
        return call if of_two is None else _called(call, of_two(name=name), operands)
    constant = operands[are_tensors.index(False)]
    tensor = operands[are_tensors.index(True)]
    values = np.asarray(tf.keras.backend.get_value(constant) if tf.is_tensor(constant) else constant)
    if operation in ("add", "multiply") and not are_tensors[0]:
        return _called(call, Arithmetic(operation, values, name=name), tensor)
    return _called(call, Arithmetic(operation, values, not are_tensors[0], name=name), tensor)
