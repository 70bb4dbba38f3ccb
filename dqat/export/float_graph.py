"""The graph that the TFLite converter reads: plain Keras layers, weights on their grids, batch size 1.

Activation ranges become TensorFlow fake-quant ops, which the converter carries over exactly. There are none
inside an LSTM, which must stay the converter's own pattern to become the fused op: its state ranges go into
the flatbuffer afterwards.
"""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from dqat import graph
from dqat.keras_api import keras
from dqat.layers import QuantizedLayer, QuantizedLSTM, QuantizeWrapper
from dqat.model import QuantizedModel
from dqat.quantizers import Quantizer


def _fake_quant(quantizer: Quantizer, x: tf.Tensor) -> tf.Tensor:
    """TensorFlow's own fake-quant, with a constant range."""
    with tf.init_scope():
        low, high = (float(part.numpy()) for part in quantizer.range())
    return tf.quantization.fake_quant_with_min_max_args(
        x, low, high, num_bits=quantizer.spec.num_bits, narrow_range=quantizer.spec.narrow_range
    )


class _Constant(keras.layers.Layer):
    """Runs a function that has no variables."""

    def __init__(self, function: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._function = tf.autograph.experimental.do_not_convert(function)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("training", None)
        return self._function(*args, **kwargs)


def _plain_copy(layer: keras.layers.Layer) -> keras.layers.Layer:
    config = layer.get_config()
    if isinstance(layer, keras.layers.LSTM):
        # Without a bias the converter makes a WHILE loop instead of the fused op; unrolled, a long graph.
        config = {
            **config,
            "use_bias": True,
            "bias_initializer": "zeros",
            "unit_forget_bias": False,
            "unroll": False,
        }
    return type(layer).from_config(config)


def gate_weights(layer: QuantizedLSTM) -> dict[str, np.ndarray]:
    """The fake-quantized kernels of an LSTM as Keras shapes them, [inputs, 4 * units]."""
    return {role: weight.numpy().reshape(weight.shape[0], -1) for role, weight in layer.quantized_weights().items()}


def _lstm(layer: QuantizedLSTM, tensors: Any) -> Any:
    copy = _plain_copy(layer.layer)
    tensors = copy(tensors)
    for role, value in gate_weights(layer).items():
        getattr(copy.cell, role).assign(value)
    if layer.layer.use_bias:
        copy.cell.bias.assign(layer.layer.cell.bias)
    return _Constant(functools.partial(_fake_quant, layer.hidden), name=f"{layer.name}_output")(tensors)


def affine(x: tf.Tensor, factor: np.ndarray, shift: np.ndarray) -> tf.Tensor:
    """x * factor + shift per channel, as TFLite computes it exactly: a depthwise convolution of 1x1.

    Args:
        x: float32 [1, ..., channels].
        factor: float32, [channels] or scalar.
        shift: like `factor`.
    """
    channels, shape = x.shape[-1], x.shape.as_list()
    factor, shift = (np.broadcast_to(np.float32(part).reshape(-1), [channels]) for part in (factor, shift))
    x = x if len(shape) == 4 else tf.reshape(x, [1, -1, 1, channels])
    x = tf.nn.depthwise_conv2d(x, factor.reshape(1, 1, channels, 1), [1, 1, 1, 1], "VALID")
    x = tf.nn.bias_add(x, shift)
    return x if len(shape) == 4 else tf.reshape(x, shape)


def _factor_and_shift(layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """What a layer multiplies each channel with, and adds to it."""
    if isinstance(layer, keras.layers.Rescaling):
        return layer.scale, layer.offset
    if isinstance(layer, keras.layers.Normalization):
        factor = 1.0 / np.maximum(np.sqrt(np.array(layer.variance)), keras.backend.epsilon())
        return factor, -np.array(layer.mean) * factor
    factor = 1.0 / np.sqrt(layer.moving_variance.numpy() + layer.epsilon)
    factor = factor if layer.gamma is None else factor * layer.gamma.numpy()
    return factor, (0.0 if layer.beta is None else layer.beta.numpy()) - layer.moving_mean.numpy() * factor


#: Layers that are nothing at inference.
_ABSENT = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)
_AFFINE = (keras.layers.BatchNormalization, keras.layers.Rescaling, keras.layers.Normalization)


def _inference(layer: QuantizeWrapper) -> Callable[..., Any]:
    quantizers = layer.quantizers()
    if isinstance(layer.layer, _AFFINE):
        factor_and_shift = _factor_and_shift(layer.layer)
        after = [quantizers["output"]] if "output" in quantizers else []
        return lambda x: functools.reduce(lambda y, one: _fake_quant(one, y), after, affine(x, *factor_and_shift))
    return functools.partial(layer.inference, point=lambda role, x: _fake_quant(quantizers[role], x))


def inference_graph(model: QuantizedModel) -> keras.Model:
    """A float model that computes what `model` simulates, but for the states inside LSTMs."""
    source = graph.read(model)
    folded = {layer.norm_name for layer in source.layers() if isinstance(layer, QuantizedLayer)}

    calls: Counter[str] = Counter()
    copies: dict[str, keras.layers.Layer] = {}

    def constant(name, function):
        calls[name] += 1  # a layer that is called several times
        return _Constant(function, name=name if calls[name] == 1 else f"{name}_call_{calls[name]}")

    def convert(call, args, kwargs):
        layer = call.layer
        kwargs.pop("training", None)
        if call.is_input:
            shape = (1, *layer.input_shape[0][1:])
            return 2 * (keras.Input(batch_input_shape=shape, dtype=layer.dtype, name=layer.name),)
        if isinstance(layer, Quantizer):
            return constant(layer.name, functools.partial(_fake_quant, layer))(*args)
        if isinstance(layer, _ABSENT) or layer.name in folded:
            return args[0]
        if isinstance(layer, keras.layers.BatchNormalization):
            factor_and_shift = _factor_and_shift(layer)
            return constant(layer.name, lambda x: affine(x, *factor_and_shift))(*args)
        if isinstance(layer, QuantizedLSTM):
            return _lstm(layer, *args)
        if isinstance(layer, QuantizeWrapper):
            return constant(layer.name, _inference(layer))(*args, **kwargs)
        if layer.name not in copies:
            copies[layer.name] = _plain_copy(layer)
        return copies[layer.name](*args, **kwargs)

    inputs, outputs = graph.rebuild(source, convert)
    return keras.Model(tf.nest.flatten(inputs), tf.nest.flatten(outputs), name=model.name)
