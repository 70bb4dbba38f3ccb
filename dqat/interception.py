"""Listening to what a model's quantizers get and give, in a forward pass that runs eagerly."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from dqat.layers import QuantizedBidirectional, QuantizedLSTM, QuantizedRNN, gru_step
from dqat.model import QuantizedModel, named_quantizers
from dqat.quantizers import ACTIVATIONS

#: Takes a quantizer's path, what it quantizes and what it gives; gives what goes on.
Listener = Callable[[str, tf.Tensor, tf.Tensor], tf.Tensor]


def recurrent_layers(model: QuantizedModel) -> Iterator[QuantizedRNN]:
    """All recurrent layers, both directions of bidirectional ones."""
    for layer in model.layers:
        if isinstance(layer, QuantizedRNN):
            yield layer
        elif isinstance(layer, QuantizedBidirectional):
            yield from layer.directions().values()


@contextlib.contextmanager
def methods_replaced(replacements: Iterator[tuple[Any, str, Callable[[Any], Any]]]) -> Iterator[None]:
    """While inside, each (object, method, make) has `make(method)` in the method's place."""
    done: list[tuple[Any, str]] = []
    try:
        for owner, name, make in replacements:
            object.__setattr__(owner, name, make(getattr(owner, name)))  # Keras must not track it
            done.append((owner, name))
        yield
    finally:
        for owner, name in done:
            del owner.__dict__[name]


@contextlib.contextmanager
def listening(model: QuantizedModel, listener: Listener) -> Iterator[None]:
    """While inside, every quantizer tells the listener, and gives what it says.

    Those inside TFLite's fused LSTM are left out: its states stay in one operation.
    """
    fused = [layer for layer in recurrent_layers(model) if isinstance(layer, QuantizedLSTM)]
    inside = {id(point) for layer in fused for point in layer.points.values()}
    depth = [0]  # a quantizer that shares a range calls the one that has it

    def call(path: str, method: Any) -> Any:
        def quantize(x: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
            depth[0] += 1
            try:
                value = method(x, *args, **kwargs)
            finally:
                depth[0] -= 1
            return value if depth[0] else listener(path, _quantized_there(x, kwargs), value)

        return quantize

    def track(path: str, method: Any) -> Any:
        def quantize_and_track(x: tf.Tensor, *args: Any, **kwargs: Any) -> Any:
            value, record = method(x, *args, **kwargs)
            return listener(path, _quantized_there(x, kwargs), value), record

        return quantize_and_track

    def replacements() -> Iterator[tuple[Any, str, Any]]:
        for path, quantizer in named_quantizers(model):
            if id(quantizer) not in inside:
                yield quantizer, "call", lambda method, path=path: call(path, method)
                yield quantizer, "quantize_and_track", lambda method, path=path: track(path, method)

    with methods_replaced(replacements()), _point_by_point():
        yield


def _quantized_there(x: tf.Tensor, options: dict[str, Any]) -> tf.Tensor:
    """What a quantizer quantizes, which may be an activation of what it gets."""
    return ACTIVATIONS[options.get("activation", "linear")](x)


@contextlib.contextmanager
def _point_by_point() -> Iterator[None]:
    """While inside, a GRU's timestep is not one operation: its points are called one by one."""
    fits = gru_step.fits
    gru_step.fits = lambda *_: False
    try:
        yield
    finally:
        gru_step.fits = fits
