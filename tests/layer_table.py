"""One table of layers: the tests of quantizing, training, saving, exporting and parity loop over it."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from dqat.keras_api import keras
from dqat.layers import QuantizePoint

layers = keras.layers


@dataclass(frozen=True)
class Row:
    """A small model around one layer.

    Attributes:
        make: gives layers to put one after the other, or a function from input tensors to the output or outputs.
        shapes: of the inputs, without the batch.
        least: share of values that must be within 1 LSB.
        largest: difference in LSBs that may not be exceeded.
        integers: inputs are integers below this number.
    """

    make: Callable
    shapes: tuple = ((6, 6, 3),)
    least: float = 0.99
    largest: int = 3
    integers: int | None = None

    def model(self) -> keras.Model:
        """The model, with weights that depend on nothing but the row."""
        keras.utils.set_random_seed(1)
        dtype = "float32" if self.integers is None else "int32"
        inputs = [keras.Input(shape, dtype=dtype) for shape in self.shapes]
        made = self.make
        outputs = made(*inputs)
        model = keras.Model(inputs, outputs)
        rng = np.random.default_rng(2)
        for layer in model.layers:
            if isinstance(layer, layers.BatchNormalization):
                # Some factors are negative: folding turns their weights' signs.
                size = layer.gamma.shape
                layer.gamma.assign(rng.uniform(0.5, 1.5, size) * rng.choice([-1.0, 1.0], size))
                layer.beta.assign(rng.normal(size=size))
        return model

    def samples(self, count: int) -> list[np.ndarray]:
        """Inputs of the model."""
        rng = np.random.default_rng(3)
        if self.integers is not None:
            return [rng.integers(0, self.integers, (count, *shape)).astype(np.int32) for shape in self.shapes]
        return [rng.normal(size=(count, *shape)).astype(np.float32) for shape in self.shapes]

    @staticmethod
    def targets(model: keras.Model, count: int) -> np.ndarray | list[np.ndarray]:
        """Zeros for each output of the model."""
        found = [np.zeros((count, *output.shape[1:]), np.float32) for output in model.outputs]
        return found if len(found) > 1 else found[0]


def _stack(*made: Callable[[], keras.layers.Layer]) -> Callable:
    def build(x: tf.Tensor) -> tf.Tensor:
        for make in made:
            x = make()(x)
        return x

    return build


def _shared(x: tf.Tensor) -> tf.Tensor:
    convolution = layers.Conv2D(3, 3, padding="same", activation="relu")
    return layers.Add()([convolution(x), convolution(convolution(x))])


def _nested(x: tf.Tensor) -> tf.Tensor:
    inside = keras.Input((6, 6, 3))
    model = keras.Model(inside, layers.BatchNormalization()(layers.Conv2D(4, 1)(inside)))
    return layers.GlobalAveragePooling2D()(model(x))


def _several_outputs(x: tf.Tensor, y: tf.Tensor) -> list[tf.Tensor]:
    both = layers.Add()([x, y])
    return [layers.Conv2D(3, 1)(both), layers.ReLU()(layers.Subtract()([both, y])), layers.Conv2D(3, 1)(x)]


def _layer_normalization(x: tf.Tensor) -> tf.Tensor:
    rng = np.random.default_rng(4)
    gamma, beta = (keras.initializers.Constant(rng.normal(mean, 0.3, 16)) for mean in (1.0, 0.0))
    return layers.LayerNormalization(gamma_initializer=gamma, beta_initializer=beta)(x)


def _time_distributed_model(x: tf.Tensor) -> tf.Tensor:
    inside = keras.Input((6, 6, 2))
    outputs = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3)(inside))))
    return layers.TimeDistributed(keras.Model(inside, outputs))(x)


def _several_activations(x: tf.Tensor) -> tf.Tensor:
    x = layers.Dense(8)(x)
    return layers.Add()([layers.Dense(4)(layers.ReLU()(x)), layers.Dense(4)(layers.Activation("relu")(x))])


def _activations_of_different_ranges(x: tf.Tensor) -> tf.Tensor:
    """One is on its successor's range, the other would have one of its own."""
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(x))
    joined = layers.Conv2D(4, 3, padding="same")(layers.ReLU()(x))
    return layers.Concatenate()([layers.MaxPooling2D(1)(layers.ReLU()(x)), joined])


def _normalization() -> keras.layers.Layer:
    return layers.Normalization(mean=[0.1, -0.2, 0.3], variance=[0.5, 1.0, 2.0])


L = layers
_SEQUENCE = ((8, 4),)
_VECTOR = ((12,),)
_ROWS = ((6, 16),)
_PAIR = ((6, 6, 3), (6, 6, 3))
_VOLUME = ((5, 6, 4, 3),)

ROWS: dict[str, Row] = {
    "Dense": Row(_stack(lambda: L.Dense(5)), _VECTOR),
    "Dense, BatchNormalization": Row(_stack(lambda: L.Dense(5), L.BatchNormalization, L.ReLU), _VECTOR),
    "Conv1D": Row(_stack(lambda: L.Conv1D(5, 3, padding="same", activation="relu")), _SEQUENCE),
    "Conv1D, BatchNormalization": Row(_stack(lambda: L.Conv1D(5, 3), L.BatchNormalization), _SEQUENCE),
    "Conv2D": Row(_stack(lambda: L.Conv2D(5, 3, strides=2, padding="same"))),
    "Conv2D, dilated": Row(_stack(lambda: L.Conv2D(5, 3, dilation_rate=2))),
    "Conv2D, BatchNormalization": Row(_stack(lambda: L.Conv2D(5, 3, use_bias=False), L.BatchNormalization)),
    "Conv2D, BatchNormalization, ReLU": Row(_stack(lambda: L.Conv2D(5, 3), L.BatchNormalization, L.ReLU)),
    "Conv1DTranspose": Row(_stack(lambda: L.Conv1DTranspose(5, 3, strides=2)), _SEQUENCE),
    "DepthwiseConv1D": Row(_stack(lambda: L.DepthwiseConv1D(3), L.BatchNormalization), _SEQUENCE),
    "SeparableConv1D": Row(_stack(lambda: L.SeparableConv1D(5, 3, padding="same")), _SEQUENCE),
    "Conv2DTranspose": Row(_stack(lambda: L.Conv2DTranspose(5, 3, strides=2, padding="same"))),
    "Conv2DTranspose, BatchNormalization": Row(_stack(lambda: L.Conv2DTranspose(5, 3), L.BatchNormalization)),
    "DepthwiseConv2D": Row(_stack(lambda: L.DepthwiseConv2D(3, padding="same"))),
    "DepthwiseConv2D, two outputs a channel": Row(
        _stack(lambda: L.DepthwiseConv2D(3, depth_multiplier=2), L.BatchNormalization)
    ),
    "SeparableConv2D": Row(_stack(lambda: L.SeparableConv2D(5, 3))),
    "SeparableConv2D, BatchNormalization": Row(_stack(lambda: L.SeparableConv2D(5, 3), L.BatchNormalization)),
    "SeparableConv1D, BatchNormalization": Row(
        _stack(lambda: L.SeparableConv1D(5, 3), L.BatchNormalization), _SEQUENCE
    ),
    "Conv1DTranspose, BatchNormalization": Row(
        _stack(lambda: L.Conv1DTranspose(5, 3), L.BatchNormalization), _SEQUENCE
    ),
    "Conv1D, ReLU": Row(_stack(lambda: L.Conv1D(5, 3), L.ReLU), _SEQUENCE),
    "Conv3D": Row(_stack(lambda: L.Conv3D(5, 3, padding="same", activation="relu")), _VOLUME),
    "Conv3D, strides": Row(_stack(lambda: L.Conv3D(5, (3, 2, 2), strides=2, padding="same")), _VOLUME),
    "Conv3D, dilated": Row(_stack(lambda: L.Conv3D(5, 2, dilation_rate=2)), _VOLUME),
    "Conv3D, BatchNormalization, ReLU": Row(_stack(lambda: L.Conv3D(5, 3), L.BatchNormalization, L.ReLU), _VOLUME),
    "Conv2D, elu": Row(_stack(lambda: L.Conv2D(5, 3, activation="elu"))),
    "Conv2D, hard_sigmoid": Row(_stack(lambda: L.Conv2D(5, 3, activation="hard_sigmoid"))),
    "BatchNormalization": Row(_stack(L.BatchNormalization)),
    "BatchNormalization, ReLU": Row(_stack(L.BatchNormalization, L.ReLU)),
    "BatchNormalization of vectors": Row(_stack(L.BatchNormalization), _VECTOR),
    "LayerNormalization": Row(_layer_normalization, ((8, 16),)),
    "LayerNormalization without weights": Row(
        _stack(lambda: L.LayerNormalization(center=False, scale=False)), ((8, 16),)
    ),
    "GroupNormalization": Row(_stack(lambda: L.GroupNormalization(2)), ((6, 6, 8),)),
    "UnitNormalization": Row(_stack(L.UnitNormalization), _VECTOR),
    "MultiHeadAttention": Row(lambda x: L.MultiHeadAttention(2, 8)(x, x), _ROWS),
    "MultiHeadAttention, causal": Row(lambda x: L.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True), _ROWS),
    "MultiHeadAttention of two sequences": Row(lambda x, y: L.MultiHeadAttention(2, 8)(x, y), ((6, 16), (9, 12))),
    "Attention": Row(lambda x, y: L.Attention(use_scale=True)([x, y]), ((6, 16), (9, 16))),
    "Attention, causal": Row(lambda x: L.Attention()([x, x], use_causal_mask=True), _ROWS),
    "AdditiveAttention": Row(lambda x, y: L.AdditiveAttention()([x, y]), ((6, 16), (9, 16))),
    "Rescaling": Row(_stack(lambda: L.Rescaling(0.5, 0.25))),
    "Normalization": Row(_stack(_normalization)),
    "ReLU": Row(_stack(L.ReLU)),
    "ReLU6": Row(_stack(lambda: L.ReLU(6.0))),
    "LeakyReLU": Row(_stack(L.LeakyReLU)),
    "ELU": Row(_stack(L.ELU)),
    "GELU": Row(_stack(lambda: L.Activation("gelu"))),
    "exponential": Row(_stack(lambda: L.Activation("exponential"))),
    "mish": Row(_stack(lambda: L.Activation("mish"))),
    "hard-swish": Row(lambda a: L.Multiply()([a, L.ReLU(6.0)(a + 3.0) * (1.0 / 6.0)])),
    "PReLU": Row(_stack(lambda: L.PReLU("random_normal"))),
    "hard_sigmoid": Row(_stack(lambda: L.Activation("hard_sigmoid"))),
    "swish": Row(_stack(lambda: L.Activation("swish"))),
    "Softmax": Row(_stack(L.Softmax), _VECTOR),
    "sigmoid": Row(_stack(lambda: L.Activation("sigmoid"))),
    "tanh": Row(_stack(lambda: L.Activation("tanh"))),
    "Add": Row(lambda a, b: L.Add()([a, b]), _PAIR),
    "Add, ReLU": Row(lambda a, b: L.ReLU()(L.Add()([a, b])), _PAIR),
    "Add of three": Row(lambda a, b: L.Add()([a, b, a]), _PAIR),
    "Multiply of three": Row(lambda a, b: L.Multiply()([a, b, a]), _PAIR),
    "Average": Row(lambda a, b: L.Average()([a, b]), _PAIR),
    "Average of three": Row(lambda a, b: L.Average()([a, b, a]), _PAIR),
    "Dot": Row(lambda a, b: L.Dot(axes=2)([a, b]), ((4, 5), (3, 5))),
    "Embedding": Row(_stack(lambda: L.Embedding(9, 6), lambda: L.Dense(3)), ((7,),), integers=9),
    "Subtract": Row(lambda a, b: L.Subtract()([a, b]), _PAIR),
    "Multiply": Row(lambda a, b: L.Multiply()([a, b]), _PAIR),
    "Maximum": Row(lambda a, b: L.Maximum()([a, b]), _PAIR),
    "Minimum": Row(lambda a, b: L.Minimum()([a, b]), _PAIR),
    "Concatenate": Row(lambda a, b: L.Concatenate()([a, b, a]), _PAIR),
    "Concatenate of five": Row(lambda a, b: L.Concatenate(axis=-2)([a, b, L.ReLU()(a), L.Conv2D(3, 1)(b), b]), _PAIR),
    "Concatenate on another axis": Row(lambda a, b: L.Concatenate(axis=1)([a, b]), _PAIR),
    "arithmetic": Row(lambda a: tf.nn.relu(3.0 - a * 2.0) + 1.0),
    "arithmetic with an array": Row(
        lambda a: a * np.linspace(0.3, 1.7, 3) + np.random.default_rng(5).normal(size=(6, 6, 3)).astype(np.float32)
    ),
    "arithmetic of tensors": Row(lambda a, b: (a + b) * a, _PAIR),
    "MaxPooling3D": Row(_stack(L.MaxPooling3D), _VOLUME),
    "MaxPooling3D, padded": Row(_stack(lambda: L.MaxPooling3D(3, 2, "same")), _VOLUME),
    "AveragePooling3D": Row(_stack(lambda: L.AveragePooling3D(3, 2, "same")), _VOLUME),
    "GlobalMaxPooling3D": Row(_stack(L.GlobalMaxPooling3D), _VOLUME),
    "GlobalAveragePooling3D": Row(_stack(L.GlobalAveragePooling3D), _VOLUME),
    "GlobalAveragePooling2D of one place": Row(_stack(L.GlobalAveragePooling2D, lambda: L.Dense(5)), ((1, 1, 12),)),
    "UpSampling3D": Row(_stack(L.UpSampling3D), _VOLUME),
    "MaxPooling1D": Row(_stack(L.MaxPooling1D), _SEQUENCE),
    "MaxPooling2D": Row(_stack(L.MaxPooling2D)),
    "AveragePooling1D": Row(_stack(L.AveragePooling1D), _SEQUENCE),
    "AveragePooling2D": Row(_stack(L.AveragePooling2D)),
    "GlobalMaxPooling1D": Row(_stack(L.GlobalMaxPooling1D), _SEQUENCE),
    "GlobalMaxPooling2D": Row(_stack(L.GlobalMaxPooling2D)),
    "GlobalAveragePooling1D": Row(_stack(L.GlobalAveragePooling1D), _SEQUENCE),
    "GlobalAveragePooling2D": Row(_stack(L.GlobalAveragePooling2D)),
    "GlobalAveragePooling2D of one pixel": Row(
        _stack(lambda: L.Conv2D(5, 6), lambda: L.GlobalAveragePooling2D(keepdims=True), lambda: L.Conv2D(4, 1))
    ),
    "GlobalMaxPooling2D, keepdims": Row(_stack(lambda: L.GlobalMaxPooling2D(keepdims=True))),
    "GlobalMaxPooling1D, keepdims": Row(_stack(lambda: L.GlobalMaxPooling1D(keepdims=True)), _SEQUENCE),
    "GlobalMaxPooling3D, keepdims": Row(_stack(lambda: L.GlobalMaxPooling3D(keepdims=True)), _VOLUME),
    "GlobalAveragePooling1D, keepdims": Row(_stack(lambda: L.GlobalAveragePooling1D(keepdims=True)), _SEQUENCE),
    "ZeroPadding1D": Row(_stack(L.ZeroPadding1D), _SEQUENCE),
    "ZeroPadding2D": Row(_stack(L.ZeroPadding2D)),
    "Cropping1D": Row(_stack(L.Cropping1D), _SEQUENCE),
    "Cropping2D": Row(_stack(L.Cropping2D)),
    "UpSampling1D": Row(_stack(L.UpSampling1D), _SEQUENCE),
    "UpSampling2D": Row(_stack(L.UpSampling2D)),
    "UpSampling2D, bilinear": Row(_stack(lambda: L.UpSampling2D(interpolation="bilinear"))),
    "ZeroPadding3D": Row(_stack(L.ZeroPadding3D), ((3, 4, 5, 2),)),
    "Cropping3D": Row(_stack(L.Cropping3D), ((4, 4, 5, 2),)),
    "Flatten": Row(_stack(L.Flatten)),
    "Reshape": Row(_stack(lambda: L.Reshape((9, 12)))),
    "Permute": Row(_stack(lambda: L.Permute((3, 1, 2)))),
    "RepeatVector": Row(_stack(lambda: L.RepeatVector(3)), _VECTOR),
    "Dropout": Row(_stack(lambda: L.Dropout(0.5), lambda: L.SpatialDropout2D(0.5))),
    "TimeDistributed": Row(_stack(lambda: L.TimeDistributed(L.Dense(5, activation="relu"))), _SEQUENCE),
    "TimeDistributed convolution": Row(
        _stack(lambda: L.TimeDistributed(L.Conv2D(4, 3, activation="relu"))), ((3, 6, 6, 2),)
    ),
    "TimeDistributed model": Row(_time_distributed_model, ((3, 6, 6, 2),)),
    "Dense read by several activations": Row(_several_activations, _VECTOR),
    "Conv2D read by activations of different ranges": Row(_activations_of_different_ranges),
    "Identity": Row(_stack(L.Identity, lambda: L.ActivityRegularization(1e-4), lambda: L.AlphaDropout(0.1))),
    "reshape and transpose": Row(lambda a: tf.transpose(tf.reshape(a, (-1, 9, 12)), (0, 2, 1))),
    "QuantizePoint": Row(lambda a, b: L.Concatenate()([QuantizePoint()(tf.sigmoid(a)), b]), _PAIR),
    "shared layer": Row(_shared),
    "nested model": Row(_nested),
    "several inputs and outputs": Row(_several_outputs, _PAIR),
}

if importlib.util.find_spec("tensorflow_addons"):  # which ends at TensorFlow 2.15
    import tensorflow_addons as tfa

    ROWS |= {
        "GroupNormalization of tensorflow-addons": Row(_stack(lambda: tfa.layers.GroupNormalization(2)), ((6, 6, 8),)),
        "InstanceNormalization of tensorflow-addons": Row(_stack(tfa.layers.InstanceNormalization)),
        "mish of tensorflow-addons": Row(_stack(lambda: L.Dense(4), lambda: L.Activation(tfa.activations.mish))),
    }

#: Rows of operators that round in other places than the simulation: least share of equal integers. All others are
#: those of the default kernels (XNNPACK) to the bit.
LEAST_EQUAL = {
    "UpSampling2D, bilinear": 0.97,
    "PReLU": 0.99,
    "shared layer": 0.99,  # reads two tensors, whose products have biases on two grids
}
