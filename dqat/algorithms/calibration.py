"""Ranges without training: what post-training quantization begins with, and what other algorithms are compared on."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dqat import graph
from dqat.interception import methods_replaced
from dqat.keras_api import keras
from dqat.layers import QuantizedBidirectional, QuantizedRNN
from dqat.model import QuantizedModel, require_quantized

layers = keras.layers
_NOISE = (
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D, layers.AlphaDropout),
    *(layers.GaussianDropout, layers.GaussianNoise),
)


def calibrate(model: keras.Model, batches: Iterable[Any]) -> None:
    """Finds the ranges of a quantized model on data, in place, without changing a weight.

    The layers run as in inference: BatchNormalization with its moving statistics, no dropout. Each batch is a record
    for the observers, as a training step's is (see `dqat.observers`): the first one runs unquantized.

    Args:
        model: what `dqat.quantize_model` returned.
        batches: of inputs of the model, such as `tf.data.Dataset` without labels, or a list of one array.

    Raises:
        TypeError: for a model that is not quantized.
        ValueError: for no batch, or a model with dropout inside a recurrent layer, which can't be taken out.
    """
    require_quantized(model)
    _require_no_inner_dropout(model)
    count = 0
    with methods_replaced(_as_in_inference(model)):
        for batch in batches:
            model(batch, training=True)
            count += 1
    if not count:
        raise ValueError("batches is empty: the ranges of a model are found on one batch at least")


def _as_in_inference(model: QuantizedModel) -> Iterator[tuple[Any, str, Callable]]:
    for layer in graph.read(model).layers():
        if isinstance(layer, (layers.BatchNormalization, *_NOISE)):

            def quiet(method: Callable) -> Callable:
                return lambda inputs, *args, training=None, **kwargs: method(inputs, training=False)

            yield layer, "call", quiet


def _require_no_inner_dropout(model: QuantizedModel) -> None:
    for layer in model.layers:
        parts = layer.directions().values() if isinstance(layer, QuantizedBidirectional) else [layer]
        for part in parts:
            cell = part.layer.cell if isinstance(part, QuantizedRNN) else None
            if getattr(cell, "dropout", 0.0) or getattr(cell, "recurrent_dropout", 0.0):
                raise ValueError(
                    f"layer {layer.name!r} has dropout inside its recurrence, which would be at work: train the model "
                    "for a step, or make it without"
                )
