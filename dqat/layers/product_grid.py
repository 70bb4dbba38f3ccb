"""The integers that TFLite has for products of weights: sums and biases are int32 on the product of both scales.

A step of that grid is a hundredth of an output's LSB or so. Rounding to it moves one output in some hundreds to the
next level, and fifty layers amplify that to a third of the values of a network.
"""

import functools
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from dqat import serving
from dqat.keras_api import keras
from dqat.layers import xnnpack
from dqat.layers.affine import factor_and_shift
from dqat.layers.fixed_point import rescaled
from dqat.quantizers import Quantizer


def bias_rounding(bias: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """What rounding to whole steps adds to a bias, float32, without a gradient; 0 where the step is not known yet.

    Args:
        bias: any shape.
        step: float32, scalar or like `bias`: scale of the inputs times scale of the weights.
    """
    known = xnnpack.is_known(step)
    exact = tf.cast(bias, tf.float32)  # from mixed precision
    rounded = tf.round(exact / tf.where(known, step, 1.0)) * step
    return tf.stop_gradient(tf.where(known, rounded - exact, 0.0))


@dataclass(frozen=True)
class ProductGrid:
    """What the file has for a layer of products, with what is folded into it. All float32, scalars or [channels].

    Attributes:
        input_scale: of what the weights are multiplied with.
        weight_scale: of the folded weights.
        factor: what folding multiplies the layer's sums with.
        shift: what is added then.
        in_fixed_point: whether the operator rounds as TFLite's own kernels do: XNNPACK leaves TRANSPOSE_CONV to them.
    """

    input_scale: tf.Tensor
    weight_scale: tf.Tensor
    factor: tf.Tensor
    shift: tf.Tensor
    in_fixed_point: bool = False

    @property
    def step(self) -> tf.Tensor:
        """The value of 1 in sums and bias."""
        return self.input_scale * self.weight_scale

    @property
    def is_known(self) -> tf.Tensor:
        """Of which channels there are integers."""
        return xnnpack.is_known(self.step) & xnnpack.is_known(tf.abs(self.factor))

    def bias(self) -> tf.Tensor:
        """The shift in whole steps, halves to the even one."""
        return tf.round(self.shift / tf.where(self.is_known, self.step, 1.0))

    def rounding(self) -> tf.Tensor:
        """What that rounding adds to the layer's own sums."""
        return tf.where(self.is_known, (self.bias() * self.step - self.shift) / self.factor, 0.0)

    def folded(self, sums: tf.Tensor, output_scale: tf.Tensor) -> tf.Tensor:
        """The quantized outputs of the file, before they saturate.

        Args:
            sums: products [..., channels] of quantized values, without bias.
            output_scale: of the output's quantizer.
        """
        levels = tf.round(sums * (self.factor / self.step)) + self.bias()
        if self.in_fixed_point:
            scales = (tf.cast(scale, tf.float64) for scale in (self.input_scale, self.weight_scale, output_scale))
            inputs, weights, outputs = scales
            ratio = tf.where(self.is_known & xnnpack.is_known(output_scale), inputs * weights / outputs, 1.0)
            return rescaled(levels, ratio) * output_scale
        return xnnpack.requantized(levels, self.input_scale * self.weight_scale / output_scale) * output_scale


def affine_grid(layer: keras.layers.Layer, inputs: Quantizer) -> ProductGrid:
    """Of a layer of `dqat.layers.affine.AFFINE`, whose weights are 127 or -127 and whose sums are its inputs."""
    factor, shift = factor_and_shift(layer)
    return ProductGrid(inputs.scale(), tf.abs(factor) / 127.0, factor, shift)


def follow_file(norm: keras.layers.BatchNormalization, inputs: Quantizer, outputs: Quantizer | None) -> None:
    """Lets a layer that no other takes in give the file's outputs, outside training.

    Args:
        norm: over the last axis.
        inputs: quantizes what goes into it.
        outputs: quantizes what comes from it; None where it is not one and the same.
    """
    call = functools.partial(type(norm).call, norm)

    def shift_rounding() -> tf.Tensor:
        grid = affine_grid(norm, inputs)
        return grid.rounding() * grid.factor

    def followed(x: tf.Tensor, training: Any = None, mask: Any = None) -> tf.Tensor:
        y = call(x, training=training, mask=mask)
        training = norm._get_training_value(training)
        if xnnpack.is_training(training):
            return y
        if not xnnpack.is_followed(training, y.dtype, inputs, outputs):
            return y + tf.cast(serving.as_constant(shift_rounding), y.dtype)
        grid, scale = affine_grid(norm, inputs), outputs.scale()
        return xnnpack.moved(y, grid.folded(x, scale), grid.is_known & xnnpack.is_known(scale), training)

    object.__setattr__(norm, "call", followed)  # not tracked, and not part of what is saved
