"""Layers that TFLite runs as several integer operations: each has a quantized result."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from dqat.keras_api import deserialize, keras, register, serialize
from dqat.layers.wrapper import Point, QuantizeWrapper
from dqat.quantizers import Quantizer
from dqat.specs import QuantizerSpec

#: Takes the float layer (weights replaced by quantized ones), the inputs and `point`; gives the output before
#: its own quantizer. Other arguments of the call come as keywords.
Steps = Callable[..., Any]


@register("dqat")
class QuantizedSteps(QuantizeWrapper):
    """Runs a layer step by step, with a quantizer after each.

    Args:
        layer: a built or unbuilt float layer.
        steps: name of the steps, a key of `STEPS`.
        points: quantizer of each intermediate result, by role.
        weights: see `QuantizeWrapper`.
        output: see `QuantizeWrapper`.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        steps: str,
        points: dict[str, Quantizer] | None = None,
        weights: dict[str, QuantizerSpec] | None = None,
        output: Quantizer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, weights, output, **kwargs)
        self.steps = steps
        self.points = dict(points or {})

    def quantizers(self) -> dict[str, Quantizer]:
        """Those of the steps, then the output's."""
        return {**self.points, **super().quantizers()}

    def _run(self, inputs: Any, arguments: dict[str, Any], point: Point) -> Any:
        return STEPS[self.steps](self.layer, inputs, point, **arguments)

    def get_config(self) -> dict[str, Any]:
        """Also the steps."""
        points = {role: serialize(quantizer) for role, quantizer in self.points.items()}
        return {**super().get_config(), "steps": self.steps, "points": points}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedSteps":
        """The inverse of `get_config`."""
        points = {role: deserialize(quantizer) for role, quantizer in config["points"].items()}
        return super().from_config({**config, "points": points})


def _separable(layer: keras.layers.SeparableConv2D, inputs: tf.Tensor, point: Point) -> tf.Tensor:
    stride_height, stride_width = layer.strides
    depthwise = tf.nn.depthwise_conv2d(
        inputs,
        layer.depthwise_kernel,
        strides=[1, stride_height, stride_width, 1],
        padding=layer.padding.upper(),
        dilations=layer.dilation_rate,
    )
    outputs = tf.nn.conv2d(point("depthwise", depthwise), layer.pointwise_kernel, 1, "VALID")
    if layer.use_bias:
        outputs = tf.nn.bias_add(outputs, layer.bias)
    return layer.activation(outputs)


def _swish(layer: keras.layers.Layer, inputs: tf.Tensor, point: Point) -> tf.Tensor:
    return inputs * point("sigmoid", tf.sigmoid(inputs))


STEPS: dict[str, Steps] = {"separable": _separable, "swish": _swish}
