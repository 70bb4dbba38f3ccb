"""Attention layers."""

from dqat.keras_api import keras
from dqat.layers import QuantizedMultiHeadAttention, QuantizedSteps
from dqat.layers.attention import attention_points
from dqat.layers.cell_form import FIXED
from dqat.layers.multi_head_attention import PROJECTIONS
from dqat.quantizers import Quantizer
from dqat.rules.context import Context, Rule, refuse

layers = keras.layers
_FIXED = {"weights": FIXED["Sigmoid"], "tanh": FIXED["Tanh"]}
#: What stands second in a product of two tensors of MultiHeadAttention. XNNPACK, as TensorFlow 2.21 has it, computes
#: BATCH_MATMUL as if that tensor's zero point were 0, so it is.
_SECOND = ("key", "value")


def _points(layer: layers.Layer, context: Context) -> dict[str, Quantizer]:
    is_causal = {bool(call.kwargs.get("use_causal_mask")) for call in context.calls}
    if len(is_causal) > 1:
        raise refuse(layer, "it is called with use_causal_mask and without", "Use two layers")
    roles = attention_points(layer, is_causal.pop() or getattr(layer, "causal", False))
    return {role: context.quantizer(role, _FIXED.get(role), symmetric=role in _SECOND) for role in roles}


def _attention(layer: layers.Attention, context: Context) -> list[layers.Layer]:
    if getattr(layer, "score_mode", "dot") != "dot":
        raise refuse(layer, f"score_mode must be 'dot', got {layer.score_mode!r}", "Use layers.AdditiveAttention")
    is_additive = isinstance(layer, layers.AdditiveAttention)
    weights = {"scale": context.scheme.kernel} if is_additive and layer.use_scale else {}
    return [QuantizedSteps(layer, "attention", _points(layer, context), weights, context.output(layer))]


def _multi_head(layer: layers.MultiHeadAttention, context: Context) -> list[layers.Layer]:
    config = layer.get_config()
    ranks = {len(tensor.shape) for call in context.calls for tensor in call.inputs}
    if ranks != {3} or config["output_shape"] is not None:
        raise refuse(
            layer, "inputs must have the shape [batch, rows, features], and output_shape must be None", "Reshape"
        )
    if any(call.kwargs.get("attention_mask") is not None for call in context.calls):
        raise refuse(layer, "a mask that depends on the data can't be quantized", "use_causal_mask can")
    weights = {f"{name}.kernel": context.scheme.kernel for name in PROJECTIONS}
    points = _points(layer, context)
    return [QuantizedMultiHeadAttention(layer, "multi_head_attention", points, weights, context.output(layer))]


RULES: dict[type, Rule] = {
    layers.Attention: _attention,
    layers.AdditiveAttention: _attention,
    layers.MultiHeadAttention: _multi_head,
}
