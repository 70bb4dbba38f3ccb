"""Bias correction: what quantization shifts a layer's outputs by on average, taken off its bias.

After Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (2019, arXiv:1906.04721),
section 4.2, in the form of its appendix D that measures the shift on data.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from dqat import graph
from dqat.keras_api import keras
from dqat.layers import QuantizeWrapper
from dqat.layers.quantized_layer import replaced
from dqat.model import QuantizedModel, require_quantized
from dqat.switching import in_float

layers = keras.layers

_WITH_CHANNELS = (
    *(layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Conv1DTranspose, layers.Conv2DTranspose),
    *(layers.DepthwiseConv1D, layers.DepthwiseConv2D, layers.SeparableConv1D, layers.SeparableConv2D),
)


@dataclass(frozen=True)
class _Place:
    """A bias, and where the sums that it is added to come out.

    Attributes:
        wrapper: the quantized layer.
        bias: of the layer, or of the BatchNormalization that export folds into it: a float32 variable [channels].
    """

    wrapper: QuantizeWrapper
    bias: tf.Variable


def correct_biases(model: keras.Model, samples: Any) -> keras.Model:
    """A copy of a quantized model whose layers give, on average, what they would give unquantized.

    Rounding errors of a kernel don't cancel over inputs that are positive throughout, such as those behind a ReLU:
    they shift an output channel by a constant. Layer by layer, in the order of computation, with all before it
    quantized and corrected, the mean shift of each channel on `samples` is taken off the bias, or off the beta of the
    BatchNormalization that follows. Unquantized means: the same model, its own weights, no fake-quantization.

    It is most useful without training, for models of few bits, or before it. Dense layers, convolutions and
    separable and transposed ones are corrected; a layer without a bias or a BatchNormalization with beta behind it,
    one that is called several times, and recurrent layers stay as they are.

    Args:
        model: what `dqat.quantize_model` returned, with ranges: trained, or called once with `training=True`.
        samples: a few hundred inputs of the model (not of the test set); they are held in memory with the outputs of
            the layers that are still to be read. The same ones on all processes.

    Returns:
        The copy; not compiled.

    Raises:
        TypeError: for a model that is not quantized.
        ValueError: where a quantizer has no range yet; names it.
    """
    require_quantized(model)
    require_ranges(model)
    corrected = type(model).from_config(model.get_config())
    corrected.set_weights(model.get_weights())
    with in_float(corrected):
        expected = _means(corrected, samples)

    def correct(place: _Place, mean: np.ndarray) -> None:
        place.bias.assign_add(tf.cast(expected[place.wrapper.name] - mean, place.bias.dtype))

    _means(corrected, samples, correct)
    return corrected


def mean_shifts(model: keras.Model, samples: Any, *, reference: keras.Model | None = None) -> dict[str, np.ndarray]:
    """What quantization shifts each output channel by on average, all that has gathered before the layer included.

    Args:
        model: see `correct_biases`.
        samples: inputs of the model.
        reference: a quantized model with the same layers, such as the one that `correct_biases` was given; None for
            `model` itself, whose biases are then on both sides.

    Returns:
        By name of the layers that `correct_biases` corrects, float32 [channels]: quantized minus unquantized
        reference, before the activation.

    Raises:
        TypeError: for a model that is not quantized.
        ValueError: where a quantizer has no range yet.
    """
    reference = model if reference is None else reference
    for one in (model, reference):
        require_quantized(one)
        require_ranges(one)
    with in_float(reference):
        expected = _means(reference, samples)
    return {name: mean - expected[name] for name, mean in _means(model, samples).items()}


def require_ranges(model: QuantizedModel) -> None:
    """Raises ValueError where a quantizer has no range yet."""
    empty = [quantizer.path for quantizer in model.range_sync.quantizers if (quantizer.scale().numpy() <= 0).any()]
    if empty:
        raise ValueError(
            f"no range recorded yet for {', '.join(empty)}: train the model for at least one step, or call it with "
            "training=True"
        )


def _places(source: graph.Graph) -> dict[str, _Place]:
    """By name of the layer whose output has the bias in it: the layer itself, or its BatchNormalization."""
    found = {}
    for layer in source.layers():
        is_known = isinstance(layer, QuantizeWrapper) and type(layer.layer) in _WITH_CHANNELS
        if not is_known or len(source.calls_of(layer)) != 1:
            continue
        if layer.norm is not None:
            if layer.norm.beta is not None:
                found[layer.norm.name] = _Place(layer, layer.norm.beta)
        elif layer.layer.use_bias:
            found[layer.name] = _Place(layer, layer.layer.bias)
    return found


def _means(model: QuantizedModel, samples: Any, correct: Any = None) -> dict[str, np.ndarray]:
    """The mean of each channel before the activation, by layer; `correct` is told each and may change the bias."""
    source = graph.read(model)
    places = _places(source)
    found = {}

    def step(call: graph.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if call.layer._expects_training_arg:
            kwargs["training"] = False
        place = places.get(call.layer.name)
        if place is None:
            return call.layer(*args, **kwargs)
        sums = call.layer(*args, **kwargs) if place.wrapper.norm else _before_activation(place.wrapper, args, kwargs)
        mean = tf.reduce_mean(sums, list(range(sums.shape.rank - 1))).numpy()
        found[place.wrapper.name] = mean
        if correct is not None:
            correct(place, mean)
        return call.layer(*args, **kwargs)

    graph.run(source, tf.nest.map_structure(tf.convert_to_tensor, samples), step)
    return found


def _before_activation(wrapper: QuantizeWrapper, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tf.Tensor:
    with (
        replaced(wrapper, {"output_quantizer": None}),
        replaced(wrapper, {"layer.activation": keras.activations.linear}),
    ):
        return wrapper(*args, **kwargs)
