"""Products of a kernel with all inputs."""

from dqat.keras_api import keras
from dqat.layers import QuantizeWrapper
from dqat.rules.activations import FUSED_ACTIVATIONS, activation_name
from dqat.rules.activations import activation as activation_rule
from dqat.rules.context import Context

layers = keras.layers


def _dense(layer: layers.Dense, context: Context) -> list[layers.Layer]:
    name = activation_name(layer.activation)
    weights = {"kernel": context.scheme.kernel}
    if name in FUSED_ACTIVATIONS:
        output = None if context.output_is_fused and name == "linear" else context.quantizer("output")
        return [QuantizeWrapper(layer, weights, output)]
    # TFLite runs the activation as an operation of its own, which reads quantized values.
    activation = layers.Activation(name, name=f"{layer.name}_{name}")
    after = activation_rule(activation, context)
    layer.activation = keras.activations.linear
    return [QuantizeWrapper(layer, weights, context.quantizer("output")), *after]


RULES = {layers.Dense: _dense}
