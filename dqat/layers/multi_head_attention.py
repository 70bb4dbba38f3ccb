"""Keras' MultiHeadAttention with quantized kernels and quantization points."""

from typing import Any

import tensorflow as tf

from dqat.keras_api import keras, register
from dqat.layers.attention import refuse_masks
from dqat.layers.points import Point, Quantizing
from dqat.layers.steps import QuantizedSteps

#: The layers inside a MultiHeadAttention, in the order of their products.
PROJECTIONS = ("_query_dense", "_key_dense", "_value_dense", "_output_dense")


@register("dqat")
class QuantizedMultiHeadAttention(QuantizedSteps):
    """A `MultiHeadAttention`, which is called with several tensors and builds its inner layers when it is called.

    Args:
        layer: see `QuantizedSteps`.
        steps: see `QuantizedSteps`.
        **kwargs: see `QuantizedSteps`.
    """

    def build(self, input_shape: Any) -> None:
        """The quantizers; the layer's own weights wait for its call."""
        for quantizer in self.quantizers().values():
            quantizer.build(None)
        keras.layers.Layer.build(self, input_shape)

    def _build_projections(self, query: tf.Tensor, value: tf.Tensor, key: tf.Tensor) -> None:
        if not self.layer._built_from_signature:  # one that was made from a config is, but not the layers in it
            self.layer._build_from_signature(query=query, value=value, key=key)
        if self.layer._output_dense.built:
            return
        width = self.layer._num_heads * self.layer._value_dim
        with tf.init_scope():
            for name, width_in in zip(
                PROJECTIONS, (query.shape[-1], key.shape[-1], value.shape[-1], width), strict=True
            ):
                dense = getattr(self.layer, name)
                shape = [None, None, width_in]
                if name == "_output_dense":
                    shape = [None, None, self.layer._num_heads, self.layer._value_dim]
                with tf.name_scope(f"{self.layer.name}/{dense.name}"):
                    dense.build(shape)
                dense.built = True

    def weight_values(self) -> dict[str, tf.Tensor]:
        """The kernels as matrices."""
        values = {
            path: tf.convert_to_tensor(getattr(self.layer, path.partition(".")[0]).kernel)
            for path in self._weight_specs
        }
        last = f"{PROJECTIONS[-1]}.kernel"
        return {
            path: tf.reshape(kernel, [-1, kernel.shape[-1]] if path == last else [kernel.shape[0], -1])
            for path, kernel in values.items()
        }

    def call(
        self,
        query: tf.Tensor,
        value: tf.Tensor,
        key: tf.Tensor | None = None,
        training: bool | tf.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As Keras' layer, without masks from the data."""
        key = value if key is None else key
        seen = [getattr(x, "_keras_mask", None) for x in (query, value, key)]
        refuse_masks(self.layer, [*seen, kwargs.pop("attention_mask", None), kwargs.pop("mask", None)])
        self._build_projections(query, value, key)
        weights = self._in_layer_shape(self.weights_in_use())
        points = Quantizing(self.quantizers(), training, self.before)
        return self._call_layer([query, value, key], {**kwargs, "training": training}, weights, points)

    def inference(
        self, query: tf.Tensor, value: tf.Tensor, key: tf.Tensor | None = None, *, point: Point, **kwargs: Any
    ) -> Any:
        """See `QuantizeWrapper.inference`."""
        return super().inference([query, value, value if key is None else key], point, **kwargs)

    def compute_output_shape(self, query_shape: Any, value_shape: Any = None, key_shape: Any = None) -> Any:
        """That of the layer."""
        return self.layer.compute_output_shape(query_shape, query_shape if value_shape is None else value_shape)
