"""The graph that the TFLite converter reads: plain Keras layers, weights on their grids, batch size 1.

Activation ranges become TensorFlow fake-quant ops, which the converter carries over exactly. There are none
inside an LSTM, which must stay the converter's own pattern to become the fused op: its state ranges go into
the flatbuffer afterwards.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from dqat import graph
from dqat.keras_api import keras
from dqat.layers import QuantizedLSTM, QuantizeWrapper
from dqat.model import QuantizedModel
from dqat.quantizers import Quantizer


class _FakeQuant(keras.layers.Layer):
    """TensorFlow's own fake-quant, with a constant range."""

    def __init__(self, quantizer: Quantizer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._range = tuple(float(part.numpy()) for part in quantizer.range())
        self._spec = quantizer.spec

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return tf.quantization.fake_quant_with_min_max_args(
            x, *self._range, num_bits=self._spec.num_bits, narrow_range=self._spec.narrow_range
        )


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


def _set_quantized_weights(copy: keras.layers.Layer, layer: QuantizeWrapper | QuantizedLSTM) -> None:
    if isinstance(layer, QuantizedLSTM):
        for role, value in gate_weights(layer).items():
            getattr(copy.cell, role).assign(value)
        if layer.layer.use_bias:
            copy.cell.bias.assign(layer.layer.cell.bias)
        return
    copy.set_weights(layer.layer.get_weights())
    for role, value in layer.quantized_weights().items():
        getattr(copy, role).assign(value)


def inference_graph(model: QuantizedModel) -> keras.Model:
    """A float model that computes what `model` simulates, but for the states inside LSTMs."""

    def convert(layer, tensors):
        if isinstance(layer, keras.layers.InputLayer):
            shape = (1, *layer.input_shape[0][1:])
            return keras.Input(batch_input_shape=shape, dtype=layer.dtype, name=layer.name)
        if isinstance(layer, Quantizer):
            return _FakeQuant(layer, name=layer.name)(tensors)
        if isinstance(layer, keras.layers.Dropout):
            return tensors
        if not isinstance(layer, (QuantizeWrapper, QuantizedLSTM)):
            return _plain_copy(layer)(tensors)
        copy = _plain_copy(layer.layer)
        tensors = copy(tensors)
        _set_quantized_weights(copy, layer)
        output = layer.hidden if isinstance(layer, QuantizedLSTM) else layer.output_quantizer
        return tensors if output is None else _FakeQuant(output, name=f"{layer.name}_output")(tensors)

    inputs, outputs = graph.rebuild(model, convert)
    return keras.Model(inputs, outputs, name=model.name)
