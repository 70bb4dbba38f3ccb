"""Cross-layer equalisation: channels of neighbouring layers brought to like ranges, with the same float outputs.

After Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (2019), section 4.1.
"""

from dataclasses import dataclass

import numpy as np

from dqat import graph
from dqat.keras_api import keras, require_keras_2

layers = keras.layers

_KERNELS = {layers.Dense: "kernel", layers.Conv2D: "kernel", layers.DepthwiseConv2D: "depthwise_kernel"}
#: Layers through which a positive factor of a channel goes unchanged.
_HOMOGENEOUS = (
    layers.MaxPooling2D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
    layers.ZeroPadding2D,
    layers.Dropout,
)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two layers with nothing between them that would notice a factor of a channel.

    Attributes:
        first: whose output channels are divided by the factors.
        norm: the BatchNormalization right after it, which is divided instead where there is one.
        second: whose input channels are multiplied with them.
    """

    first: layers.Layer
    norm: layers.BatchNormalization | None
    second: layers.Layer


def equalize(model: keras.Model, *, rounds: int = 10) -> keras.Model:
    """A copy of a float model whose channels have like ranges, so that one range per tensor loses less.

    With r1 and r2 the largest absolute weights of a channel in the layer that gives it and in the one that takes it,
    the first is divided by s = sqrt(r1 / r2), and the second multiplied with it. Only what is known to let a
    positive factor through may stand between: ReLU without a bound, pooling, padding, dropout.

    Args:
        model: functional or Sequential, trained; stays as it is.
        rounds: over all pairs, since a layer may belong to two.

    Returns:
        The copy: the same outputs but for float32 rounding; not compiled. Where no layers qualify, it has the
        model's weights.

    Raises:
        TypeError: where `model` is no Keras 2 model.
        ValueError: for a Sequential model without input shape, or fewer than one round.
    """
    require_keras_2(model)
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    pairs = find_pairs(graph.read(graph.as_functional(copy)))
    for _ in range(rounds):
        for pair in pairs:
            _equalize(pair)
    return copy


def find_pairs(source: graph.Graph) -> list[Pair]:
    """The pairs of a graph, in its order."""
    consumers = source.consumers()

    def only_consumer(call: graph.Call) -> graph.Call | None:
        found = consumers[call.results[0]] if len(call.results) == 1 else []
        return found[0] if len(found) == 1 and found[0] is not None and _is_called_once(found[0], source) else None

    pairs = []
    for call in source.calls:
        if type(call.layer) not in _KERNELS or not _is_called_once(call, source):
            continue
        if not _lets_through(call.layer.activation):
            continue
        after, norm = only_consumer(call), None
        if after is not None and type(after.layer) is layers.BatchNormalization:
            norm = after.layer
            if norm.gamma is None or norm.beta is None or call.layer.activation is not keras.activations.linear:
                continue
            after = only_consumer(after)
        while after is not None and _is_homogeneous(after.layer):
            after = only_consumer(after)
        if after is not None and type(after.layer) in _KERNELS:
            pairs.append(Pair(call.layer, norm, after.layer))
    return pairs


def _is_called_once(call: graph.Call, source: graph.Graph) -> bool:
    return len(source.calls_of(call.layer)) == 1


def _lets_through(activation: object) -> bool:
    return activation in (keras.activations.linear, keras.activations.relu)


def _is_homogeneous(layer: layers.Layer) -> bool:
    if type(layer) is layers.Activation:
        return _lets_through(layer.activation)
    if type(layer) is layers.ReLU:
        return layer.max_value is None and layer.threshold == 0
    return type(layer) in _HOMOGENEOUS


def _equalize(pair: Pair) -> None:
    first, second = _kernel(pair.first), _kernel(pair.second)
    given = _per_output(pair.first, np.abs(first))
    if pair.norm is not None:
        norm = pair.norm
        given = given * np.abs(norm.gamma.numpy()) / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    taken = _per_input(np.abs(second))
    useful = (given > 0) & (taken > 0)
    factor = np.sqrt(np.where(useful, given, 1) / np.where(useful, taken, 1)).astype(np.float32)
    if pair.norm is not None:
        pair.norm.gamma.assign(pair.norm.gamma / factor)
        pair.norm.beta.assign(pair.norm.beta / factor)
    else:
        shape = first.shape[-2:] if _is_depthwise(pair.first) else [-1]
        _assign_kernel(pair.first, first / factor.reshape(shape))
        if pair.first.use_bias:
            pair.first.bias.assign(pair.first.bias / factor)
    _assign_kernel(pair.second, second * factor[:, None])


def _is_depthwise(layer: layers.Layer) -> bool:
    return isinstance(layer, layers.DepthwiseConv2D)


def _kernel(layer: layers.Layer) -> np.ndarray:
    return getattr(layer, _KERNELS[type(layer)]).numpy()


def _assign_kernel(layer: layers.Layer, values: np.ndarray) -> None:
    getattr(layer, _KERNELS[type(layer)]).assign(values)


def _per_output(layer: layers.Layer, magnitudes: np.ndarray) -> np.ndarray:
    """The largest value by output channel: the last axis, or the last two of a depthwise kernel."""
    channels = magnitudes.shape[-2] * magnitudes.shape[-1] if _is_depthwise(layer) else magnitudes.shape[-1]
    return magnitudes.reshape(-1, channels).max(axis=0)


def _per_input(magnitudes: np.ndarray) -> np.ndarray:
    """The largest value by input channel: the last axis but one."""
    return np.moveaxis(magnitudes, -2, 0).reshape(magnitudes.shape[-2], -1).max(axis=1)
