"""Attention: products, softmax and products again, each of them an operation of TFLite's."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from dqat.keras_api import keras
from dqat.layers.points import Point, scale_of

layers = keras.layers

#: Scores lower than the highest of the batch by more than this weigh nothing in an int8 softmax.
_HIDDEN_BELOW = 12.0


def _hide(scores: tf.Tensor, point: Point) -> tf.Tensor:
    """Scores [..., queries, keys] of what comes after a query pushed down to where softmax gives 0."""
    queries, keys = scores.shape[-2:]
    comes_after = np.triu(np.ones((queries, keys), np.float32), 1)
    scores = point("scores", scores)
    lowest = tf.minimum(tf.reduce_min(scores), tf.reduce_max(scores) - _HIDDEN_BELOW)
    # An addition: its result saturates at the lower end of its range. The constant is wide enough for any scores.
    hidden = scores - comes_after * 1024.0
    return point("visible_scores", hidden, between=(tf.stop_gradient(lowest), np.inf))


def _attend(
    scores: tf.Tensor, values: tf.Tensor, point: Point, is_causal: bool, dropout: Callable, of: tuple[str | int, str]
) -> tuple:
    """Context and weights; `of` tells what has quantized the values, and what will quantize the context."""
    scores = _hide(scores, point) if is_causal else point("scores", scores)
    weights = point("weights", tf.nn.softmax(scores))
    quantized_by, result = of
    return point.product(result, dropout(weights), values, ("weights", quantized_by)), weights


def attention_points(layer: layers.Layer, is_causal: bool) -> list[str]:
    """Roles of the intermediate results, in order."""
    visible = ["visible_scores"] if is_causal else []
    if isinstance(layer, layers.MultiHeadAttention):
        return ["query", "key", "value", "scores", *visible, "weights", "context"]
    before = ["products"] if layer.use_scale else []
    before = ["sum", "tanh"] if isinstance(layer, layers.AdditiveAttention) else before
    return [*before, "scores", *visible, "weights"]


def attention(
    layer: layers.Attention | layers.AdditiveAttention,
    inputs: list[tf.Tensor],
    point: Point,
    *,
    use_causal_mask: bool = False,
    return_attention_scores: bool = False,
    training: Any = None,
    mask: Any = None,
) -> Any:
    """Keras' dot-product and additive attention on [query, value] or [query, value, key]."""
    refuse_masks(layer, mask)
    query, value, *rest = inputs
    key = rest[0] if rest else value
    if isinstance(layer, layers.AdditiveAttention):
        both = point("sum", tf.expand_dims(query, -2) + tf.expand_dims(key, -3))
        scale = layer.scale if layer.use_scale else np.ones(query.shape[-1], np.float32)
        rows = tf.reshape(point("tanh", tf.tanh(both)), [-1, query.shape[-1]])
        sums = tf.matmul(rows, tf.reshape(scale, [-1, 1]))
        scores = tf.reshape(point.dense("scores", sums, scale_of(scale), None, "tanh"), [-1, *both.shape[1:3]])
    else:
        role = "products" if layer.use_scale else "scores"
        scores = point.product(role, query, key, (0, len(inputs) - 1), transpose_b=True)
        scores = point("products", scores) * layer.scale if layer.use_scale else scores
    is_causal = layer.causal or use_causal_mask
    of = (1, "output")
    outputs = _attend(scores, value, point, is_causal, lambda weights: _dropped(weights, layer.dropout, training), of)
    return outputs if return_attention_scores else outputs[0]


def _dropped(weights: tf.Tensor, rate: float, training: Any) -> tf.Tensor:
    if not rate or training is None or training is False:
        return weights
    dropped = tf.nn.dropout(weights, rate)
    return dropped if isinstance(training, (bool, int)) else tf.where(tf.cast(training, tf.bool), dropped, weights)


def refuse_masks(layer: layers.Layer, masks: Any) -> None:
    """Raises ValueError where there is a mask."""
    if any(mask is not None for mask in tf.nest.flatten(masks)):
        raise ValueError(
            f"layer {layer.name!r} ({type(layer).__name__}): a mask that depends on the data can't be quantized; "
            "use_causal_mask can. Pad with rows that the model learns to ignore, without mask_zero, Masking or "
            "attention_mask"
        )


def _projected(
    x: tf.Tensor, dense: layers.Layer, point: Point, role: str, of: str | int, factor: float = 1.0
) -> tf.Tensor:
    """x [..., features] times a kernel [features, heads, depth]: [batch, rows, heads, depth]; one product."""
    kernel = tf.reshape(dense.kernel * factor, [x.shape[-1], -1])
    bias = None if dense.bias is None else tf.reshape(dense.bias * factor, [-1])
    outputs = point.dense(role, tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), kernel), scale_of(kernel), bias, of)
    return tf.reshape(outputs, [-1, x.shape[1], *dense.kernel.shape[1:]])


def multi_head_attention(
    layer: layers.MultiHeadAttention,
    inputs: list[tf.Tensor],
    point: Point,
    *,
    use_causal_mask: bool = False,
    return_attention_scores: bool = False,
    training: Any = None,
) -> Any:
    """Keras' MultiHeadAttention on [query, value, key] of shape [batch, rows, features]."""
    query, value, key = inputs
    by_head = [0, 2, 1, 3]
    heads = [
        tf.transpose(point(role, _projected(x, dense, point, role, of, factor)), by_head)
        for role, x, dense, of, factor in (
            # A factor of the kernel changes none of its integers.
            ("query", query, layer._query_dense, 0, 1.0 / math.sqrt(layer._key_dim)),
            ("key", key, layer._key_dense, -1, 1.0),
            ("value", value, layer._value_dense, 1, 1.0),
        )
    ]
    scores = point.product("scores", heads[0], heads[1], ("query", "key"), transpose_b=True)
    context, weights = _attend(
        scores,
        heads[2],
        point,
        use_causal_mask,
        lambda x: layer._dropout_layer(x, training=training),
        ("value", "context"),
    )
    rows = tf.transpose(point("context", context), by_head)
    rows = tf.reshape(rows, [-1, rows.shape[2] * rows.shape[3]])
    dense = layer._output_dense
    kernel = tf.reshape(dense.kernel, [rows.shape[-1], -1])
    outputs = point.dense("output", tf.matmul(rows, kernel), scale_of(kernel), dense.bias, "context")
    outputs = tf.reshape(outputs, [-1, query.shape[1], outputs.shape[-1]])
    return (outputs, weights) if return_attention_scores else outputs
