"""The graph that the TFLite converter reads: plain Keras layers, weights on their grids.

Activation ranges become TensorFlow fake-quant ops, which the converter carries over exactly. There are none
inside an LSTM, which must stay the converter's own pattern to become the fused op: its state ranges go into
the flatbuffer afterwards.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from dqat import graph
from dqat.configured_layer import ConfiguredLayer
from dqat.export.recurrent import Run, StreamStates, fake_quant, recurrent_graph, require_framewise
from dqat.keras_api import keras
from dqat.layers import QuantizedBidirectional, QuantizedLayer, QuantizedRNN, QuantizeWrapper
from dqat.layers.affine import AFFINE, affine, factor_and_shift
from dqat.layers.volumes import REARRANGED
from dqat.model import QuantizedModel
from dqat.quantizers import Quantizer


def _plain_copy(layer: keras.layers.Layer) -> keras.layers.Layer:
    return type(layer).from_config(layer.get_config())


def _affine(layer: keras.layers.Layer) -> Callable[[tf.Tensor], tf.Tensor]:
    """A layer of `AFFINE` with its present values as constants."""
    with tf.init_scope():  # variables are read here, even where a graph is built
        factor, shift = (part.numpy() for part in factor_and_shift(layer))
    return lambda x: affine(x, factor, shift)


#: Layers that are nothing at inference.
_ABSENT = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Masking,
)
_GLOBAL_AVERAGES = (
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
)


class _Points:
    """The points of a layer as fake-quants with constant ranges."""

    is_export = True

    def __init__(self, quantizers: dict[str, Quantizer]) -> None:
        self._quantizers = quantizers

    def __call__(self, role: str, value: tf.Tensor, *, between: object = None) -> tf.Tensor:
        return fake_quant(value, self._quantizers[role])  # whose range saturates

    def mean(self, role: str, value: tf.Tensor, count: int) -> tf.Tensor:
        return value

    def product(self, role: str, a: tf.Tensor, b: tf.Tensor, of: object, **options: Any) -> tf.Tensor:
        return tf.matmul(a, b, **options)

    def followed(self, role: str, value: tf.Tensor, *rest: object) -> tf.Tensor:
        return value

    def dense(self, role: str, sums: tf.Tensor, weight_scale: Any, bias: tf.Tensor | None, of: object) -> tf.Tensor:
        return sums if bias is None else tf.nn.bias_add(sums, bias)


def _inference(layer: QuantizeWrapper | ConfiguredLayer) -> Callable[..., Any]:
    quantizers = layer.quantizers()
    if isinstance(layer.layer, AFFINE):
        after = [quantizers["output"]] if "output" in quantizers else []
        return lambda x: functools.reduce(lambda y, one: fake_quant(y, one), after, _affine(layer.layer)(x))
    return functools.partial(layer.inference, point=_Points(quantizers))


def inference_graph(model: QuantizedModel, streaming: bool = False, batch_size: int | None = 1) -> keras.Model:
    """A float model that computes what `model` simulates, but for the states inside LSTMs.

    Args:
        model: trained.
        streaming: for one frame a call, with the states of unrolled cells as further inputs and outputs.
        batch_size: samples a call; None for any number.
    """
    states = StreamStates() if streaming else None
    source = graph.read(model)
    folded = {layer.norm_name for layer in source.layers() if isinstance(layer, QuantizedLayer)}

    calls: Counter[str] = Counter()
    zeros = itertools.count()
    copies: dict[str, keras.layers.Layer] = {}

    def constant(name, function):
        calls[name] += 1  # a layer that is called several times
        return Run(function, name=name if calls[name] == 1 else f"{name}_call_{calls[name]}")

    def plain(layer, args, kwargs):
        if layer.name in copies:
            return copies[layer.name](*args, **kwargs)
        copy = copies[layer.name] = _plain_copy(layer)
        outputs = copy(*args, **kwargs)
        if layer.weights:
            copy.set_weights(layer.get_weights())
        return outputs

    def convert(call, args, kwargs):
        layer = call.layer
        kwargs.pop("training", None)
        if layer.name in model.float_layers:  # the converter folds and fuses what follows one another
            return plain(layer, args, kwargs)
        if call.is_input:
            shape = [batch_size, *layer.input_shape[0][1:]]
            if streaming and len(shape) > 2:
                shape[1] = 1
            return 2 * (keras.Input(batch_input_shape=shape, dtype=layer.dtype, name=layer.name),)
        if isinstance(layer, Quantizer):
            return constant(layer.name, lambda x: fake_quant(x, layer))(*args)
        if isinstance(layer, _ABSENT) or layer.name in folded:
            return args[0]
        if isinstance(layer, keras.layers.BatchNormalization):
            return constant(layer.name, _affine(layer))(*args)
        if isinstance(layer, (QuantizedRNN, QuantizedBidirectional)):
            return recurrent_graph(layer, *args, states, zeros)
        if streaming:
            require_framewise(layer, args)
        if isinstance(layer, _GLOBAL_AVERAGES):  # of one place: others are wrapped
            shape = args[0].shape if layer.keepdims else [1, args[0].shape[-1]]
            return constant(layer.name, lambda x: tf.reshape(x, shape))(*args)
        if type(layer) in REARRANGED:
            return constant(layer.name, functools.partial(REARRANGED[type(layer)], layer))(*args)
        if isinstance(layer, (QuantizeWrapper, ConfiguredLayer)):
            return constant(layer.name, _inference(layer))(*args, **kwargs)
        return plain(layer, args, kwargs)

    inputs, outputs = graph.rebuild(source, convert)
    if streaming:
        inputs, outputs = [*tf.nest.flatten(inputs), *states.inputs], [*tf.nest.flatten(outputs), *states.outputs]
    return keras.Model(tf.nest.flatten(inputs), tf.nest.flatten(outputs), name=model.name)
