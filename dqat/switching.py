"""A quantized model with some of its tensors in float, for as long as one looks at it."""

import contextlib
from collections.abc import Callable, Container, Iterator
from typing import Any

import tensorflow as tf

from dqat.interception import methods_replaced
from dqat.layers import QuantizedBidirectional, QuantizedLayer, xnnpack
from dqat.model import QuantizedModel, named_quantizers, require_quantized
from dqat.observers import EMPTY
from dqat.quantizers import ACTIVATIONS, Quantizer, SharedQuantizer


@contextlib.contextmanager
def in_float(model: QuantizedModel, tensors: Container[str] | None = None) -> Iterator[None]:
    """While inside, a model that runs eagerly outside of training leaves some of its tensors unquantized.

    Args:
        model: what `quantize_model` returned, trained for at least one step.
        tensors: their paths, as in `dqat.ranges(model)`; None for all: the float model with the present weights.

    Raises:
        TypeError: for a model that is not quantized.
    """
    require_quantized(model)

    def is_off(path: str) -> bool:
        return tensors is None or path in tensors

    with xnnpack.plain(), methods_replaced(_replacements(model, is_off)):
        yield


def _replacements(model: QuantizedModel, is_off: Callable[[str], bool]) -> Iterator[tuple[Any, str, Callable]]:
    quantizers = dict(named_quantizers(model))
    in_use = {path: (quantizer.range(), quantizer.in_use()) for path, quantizer in quantizers.items()}
    for path, quantizer in quantizers.items():
        if is_off(path):
            yield from _switched_off(quantizer)
        elif isinstance(quantizer, SharedQuantizer):  # whose owner may be off
            yield from _on_its_own(quantizer, *in_use[path])
    for path, layer in _holders(model):
        roles = [role for role in layer.weight_specs() if is_off(f"{path}/{role}")]
        if roles:
            yield layer, "quantized_weights", lambda method, layer=layer, roles=roles: _weights(layer, method, roles)


def _holders(model: QuantizedModel) -> Iterator[tuple[str, QuantizedLayer]]:
    """The layers whose weights are quantized when they are called, with the first part of the weights' paths."""
    for layer in model.layers:
        if isinstance(layer, QuantizedBidirectional):
            yield from ((f"{layer.name}/{name}", direction) for name, direction in layer.directions().items())
        elif isinstance(layer, QuantizedLayer):
            yield layer.name, layer


def _switched_off(quantizer: Quantizer) -> Iterator[tuple[Any, str, Callable]]:
    def call(x: tf.Tensor, training: Any = None, activation: str = "linear", exact: Any = None) -> tf.Tensor:
        return ACTIVATIONS[activation](x)

    def quantize_and_track(
        x: tf.Tensor, in_use: Any, *, repeats: Any = 1, activation: str = "linear", exact: Any = None
    ) -> tuple[tf.Tensor, Any]:
        return ACTIVATIONS[activation](x), quantizer.empty_record()

    nothing = tuple(tf.fill(quantizer.range()[0].shape, end) for end in EMPTY)
    yield quantizer, "call", lambda method: call
    yield quantizer, "quantize_and_track", lambda method: quantize_and_track
    for name in ("range", "in_use"):  # recurrent operations pass values through without a range
        yield quantizer, name, lambda method: lambda: nothing


def _on_its_own(quantizer: SharedQuantizer, range_: Any, in_use: Any) -> Iterator[tuple[Any, str, Callable]]:
    def call(x: tf.Tensor, training: Any = None, activation: str = "linear", exact: Any = None) -> tf.Tensor:
        return quantizer.quantize(ACTIVATIONS[activation](x), range_) if exact is None else exact

    yield quantizer, "call", lambda method: call
    yield quantizer, "range", lambda method: lambda: range_
    yield quantizer, "in_use", lambda method: lambda: in_use


def _weights(layer: QuantizedLayer, method: Callable, roles: list[str]) -> Callable[[], dict[str, tf.Tensor]]:
    def weights() -> dict[str, tf.Tensor]:
        return method() | {role: layer.weight_values()[role] for role in roles}

    return weights
