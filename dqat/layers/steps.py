"""Layers that TFLite runs as several integer operations: each has a quantized result."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from dqat.keras_api import deserialize, keras, register, serialize
from dqat.layers import xnnpack
from dqat.layers.attention import attention, multi_head_attention
from dqat.layers.normalizing import group_normalization, layer_normalization
from dqat.layers.points import Point
from dqat.layers.volumes import average
from dqat.layers.wrapper import QuantizeWrapper
from dqat.quantizers import Quantizer, range_scale, weight_range
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

    def multiplied_quantizer(self) -> Quantizer | None:
        """See `QuantizeWrapper.multiplied_quantizer`: a separable convolution's is inside."""
        return self.points.get("depthwise", self.before[0])

    def _run(self, inputs: Any, arguments: dict[str, Any], point: Point) -> Any:
        if self.steps == "separable" and not point.is_export and not xnnpack.is_training(point.training):
            arguments = arguments | {"depthwise_scale": self._weight_scale("depthwise_kernel")}
        return STEPS[self.steps](self.layer, inputs, point, **arguments)

    def _weight_scale(self, role: str) -> tf.Tensor:
        spec = self.weight_specs()[role]
        return range_scale(weight_range(self.weight_values()[role], spec), spec)

    def _as_in_file(self, inputs: Any, outputs: Any, point: Point) -> Any:
        """Of those steps whose last operation rounds otherwise than float."""
        if self.steps == "swish":
            role, value, kernel, operand = (
                "sigmoid",
                tf.sigmoid(inputs),
                xnnpack.multiplied,
                (inputs, self.before[0].scale()),
            )
        elif self.steps == "hard_sigmoid":
            role, value, kernel, operand = (
                "scaled",
                inputs * 0.2,
                xnnpack.added,
                (tf.constant(0.5), tf.constant(0.5 / 255.0)),
            )
        else:
            return outputs
        quantizer = self.points[role]
        operands, scales = zip(operand, (quantizer(value), quantizer.scale()), strict=True)
        return xnnpack.followed(kernel, list(operands), outputs, list(scales), self.behind.scale(), point.training)

    def get_config(self) -> dict[str, Any]:
        """Also the steps."""
        points = {role: serialize(quantizer) for role, quantizer in self.points.items()}
        return {**super().get_config(), "steps": self.steps, "points": points}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedSteps":
        """The inverse of `get_config`."""
        points = {role: deserialize(quantizer) for role, quantizer in config["points"].items()}
        return super().from_config({**config, "points": points})


def _separable(
    layer: keras.layers.Layer, inputs: tf.Tensor, point: Point, *, depthwise_scale: tf.Tensor | None = None
) -> tf.Tensor:
    """A depthwise convolution, then a product over the channels; in one dimension with a height of 1."""
    flat = layer.rank == 1
    if flat:
        inputs = tf.expand_dims(inputs, 1)
    strides, dilations = ((*([1] if flat else []), *option) for option in (layer.strides, layer.dilation_rate))
    if flat:  # the depthwise operation has equal strides only
        strides = 2 * strides[1:]
    kernels = [tf.expand_dims(k, 0) if flat else k for k in (layer.depthwise_kernel, layer.pointwise_kernel)]
    padding = "VALID" if layer.padding == "causal" else layer.padding.upper()
    if layer.padding == "causal":
        before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        inputs = tf.pad(inputs, [[0, 0], [0, 0], [before, 0], [0, 0]])
    depthwise = tf.nn.depthwise_conv2d(inputs, kernels[0], [1, *strides, 1], padding, dilations=dilations)
    if depthwise_scale is not None:
        depthwise = point.dense("depthwise", depthwise, tf.reshape(depthwise_scale, [-1]), None, 0)
    outputs = tf.nn.conv2d(point("depthwise", depthwise), kernels[1], 1, "VALID")
    if layer.use_bias:
        outputs = tf.nn.bias_add(outputs, layer.bias)
    return layer.activation(tf.squeeze(outputs, 1) if flat else outputs)


def _swish(layer: keras.layers.Layer, inputs: tf.Tensor, point: Point) -> tf.Tensor:
    return inputs * point("sigmoid", tf.sigmoid(inputs))


def _hard_sigmoid(layer: keras.layers.Layer, inputs: tf.Tensor, point: Point) -> tf.Tensor:
    # The output's range, 0 to 1, does the clipping.
    return point("scaled", inputs * 0.2) + 0.5


def _mish(layer: keras.layers.Layer, inputs: tf.Tensor, point: Point) -> tf.Tensor:
    """x * tanh(softplus(x)), where softplus(x) is -log(1 - sigmoid(x))."""
    complement = point("complement", 1.0 - point("sigmoid", tf.sigmoid(inputs)))
    # The operator gives the lower end of its range for the logarithm of 0.
    logarithm = point("logarithm", tf.math.log(complement if point.is_export else tf.maximum(complement, 1e-12)))
    return 0.0 - point("product", inputs * point("tanh", tf.tanh(logarithm)))


def _chain(layer: keras.layers.Layer, inputs: list[tf.Tensor], point: Point) -> tf.Tensor:
    """Sums and products of several tensors, two at a time."""
    two = tf.multiply if isinstance(layer, keras.layers.Multiply) else tf.add
    result = inputs[0]
    for index, other in enumerate(inputs[1:], start=1):
        result = two(result, other)
        if f"partial_{index}" in layer_points(layer, len(inputs)):
            result = point(f"partial_{index}", result)
    return result / len(inputs) if isinstance(layer, keras.layers.Average) else result


def layer_points(layer: keras.layers.Layer, inputs: int) -> list[str]:
    """Roles of the intermediate results of a chain; an average has its sum among them."""
    last = inputs if isinstance(layer, keras.layers.Average) else inputs - 1
    return [f"partial_{index}" for index in range(1, last)]


def _embedding(layer: keras.layers.Embedding, inputs: tf.Tensor, point: Point) -> tf.Tensor:
    indices = tf.cast(inputs, tf.int32)
    if point.is_export:  # the converter would compute a quantized constant itself, in 8 bits
        return point("table", tf.gather(layer.embeddings, indices))
    return tf.gather(point("table", layer.embeddings), indices)


STEPS: dict[str, Steps] = {
    "separable": _separable,
    "swish": _swish,
    "hard_sigmoid": _hard_sigmoid,
    "chain": _chain,
    "embedding": _embedding,
    "mish": _mish,
    "layer_normalization": layer_normalization,
    "group_normalization": group_normalization,
    "attention": attention,
    "multi_head_attention": multi_head_attention,
    "average_3d": average,
}
