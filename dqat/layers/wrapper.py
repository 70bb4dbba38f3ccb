"""Any layer with quantized weights and a quantized output."""

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from dqat import serving
from dqat.keras_api import deserialize, keras, register, serialize
from dqat.layers import xnnpack
from dqat.layers.affine import AFFINE, factor_and_shift
from dqat.layers.kept import FREE, groups_of, keep
from dqat.layers.points import Point, Quantizing
from dqat.layers.product_grid import ProductGrid, affine_grid
from dqat.layers.quantized_layer import QuantizedLayer, replaced
from dqat.layers.relu import apart, relu_of
from dqat.layers.volumes import REARRANGED
from dqat.observers import Range
from dqat.quantizers import Quantizer, quantize_weight, range_scale, weight_range
from dqat.specs import QuantizerSpec

_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose)


def _variables(layer: keras.layers.Layer, prefix: str = "") -> Iterator[tuple[str, tf.Variable]]:
    """A layer's variables and those of the layers in it, by path."""
    for name, value in vars(layer).items():
        if isinstance(value, tf.Variable):
            yield prefix + name, value
        elif isinstance(value, keras.layers.Layer):
            yield from _variables(value, f"{prefix}{name}.")


def as_shapes(shape: Any) -> Any:
    """A shape, or a list of them, as Keras' layers read it: a saved shape is a list, and so are several shapes."""
    if isinstance(shape, (list, tuple)) and shape and isinstance(shape[0], (list, tuple, tf.TensorShape)):
        return [tf.TensorShape(one) for one in shape]
    return tf.TensorShape(shape)


@register("dqat")
class QuantizeWrapper(QuantizedLayer):
    """Runs a layer with fake-quantized weights and fake-quantizes its output.

    A BatchNormalization that follows stays a layer of its own, with Keras' own training statistics, and export
    folds it. Per channel that changes no integer: the grid of a channel's weights times a factor is the grid of
    the folded weights. Per tensor (Dense) the weights are quantized on the grid of the folded ones, with the
    present moving variance.

    Args:
        layer: a built or unbuilt float layer.
        weights: quantizer per attribute of `layer` that holds a weight, such as {"kernel": QuantizerSpec()}; a path
            such as "inner.kernel" for a layer in it.
        output: the output's quantizer, or None where the output goes on unquantized (before an activation
            that TFLite fuses, or where the range is that of the input).
        norm: see `QuantizedLayer`.
        kept: what kernels (but depthwise ones) keep while they train, one of `dqat.specs.KEPT`; None for nothing.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        weights: dict[str, QuantizerSpec] | None = None,
        output: Quantizer | None = None,
        *,
        kept: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **kwargs)
        self.kept = kept
        self._groups: dict[str, tf.Variable] = {}
        self._weight_specs = dict(weights or {})
        self.output_quantizer = output
        self.supports_masking = layer.supports_masking
        self.connect_ends([None], None, reads_alone=False)

    def connect_ends(self, before: list[Quantizer | None], behind: Quantizer | None, reads_alone: bool) -> None:
        """Tells which quantizers the inputs come from and the output goes to; the model knows them.

        Args:
            before: one for each input; None for what is not quantized, or now by one and now by another.
            behind: likewise; may be that of an activation that the file fuses.
            reads_alone: no other layer reads the inputs.
        """
        object.__setattr__(self, "before", before)  # not tracked: other layers have them
        object.__setattr__(self, "behind", behind)
        self.reads_alone = reads_alone

    def build(self, input_shape: Any) -> None:
        """Builds the float layer and the quantizer."""
        input_shape = as_shapes(input_shape)
        if not self.layer.built:
            with tf.name_scope(self.layer.name):
                self.layer.build(input_shape)
            self.layer.built = True
        for role in self._weight_specs if self.kept else ():
            if role.endswith("kernel") and not role.startswith("depthwise"):
                shape = operator.attrgetter(role)(self.layer).shape
                initializer = keras.initializers.Constant(FREE)
                options = {"shape": shape, "dtype": tf.int32, "initializer": initializer, "trainable": False}
                self._groups[role] = self.add_weight(name=f"{role}_groups", **options)
        for quantizer in self.quantizers().values():
            if not quantizer.built:
                per_channel = quantizer.spec.axis is not None
                quantizer.build(self.layer.compute_output_shape(input_shape) if per_channel else None)
        super().build(input_shape)

    def find_kept(self) -> None:
        """Takes the structure that is kept from the present weights."""
        for role, groups in self._groups.items():
            weight = operator.attrgetter(role)(self.layer).numpy()
            groups.assign(groups_of(weight, self.kept, f"{self.name}/{role}"))

    def quantizers(self) -> dict[str, Quantizer]:
        """The output's quantizer."""
        return {} if self.output_quantizer is None else {"output": self.output_quantizer}

    def last_quantizer(self) -> Quantizer | None:
        """The output's."""
        return self.output_quantizer

    def weight_specs(self) -> dict[str, QuantizerSpec]:
        """As given, but for raised bits."""
        return self._in_use(self._weight_specs)

    def weight_values(self) -> dict[str, tf.Tensor]:
        """The float layer's variables; depthwise kernels with both channel axes as one."""
        values = {name: tf.convert_to_tensor(operator.attrgetter(name)(self.layer)) for name in self._weight_specs}
        values |= {name: keep(values[name], groups.read_value()) for name, groups in self._groups.items()}
        if "depthwise_kernel" in values:
            kernel = values["depthwise_kernel"]
            values["depthwise_kernel"] = tf.reshape(kernel, [*kernel.shape[:-2], kernel.shape[-2] * kernel.shape[-1]])
        return values

    def quantized_weights(self) -> dict[str, tf.Tensor]:
        """See `QuantizedLayer.quantized_weights`; where it is folded per tensor, on the folded weights' grid."""
        if not self._folds_per_tensor():
            return super().quantized_weights()
        factor = self.fold_factor()
        safe = tf.where(tf.equal(factor, 0.0), 1.0, factor)
        return {
            role: quantize_weight(self.weight_values()[role] * safe, spec, lambda role=role: self.weight_ranges()[role])
            / safe
            for role, spec in self._folded()
        }

    def weight_ranges(self) -> dict[str, Range]:
        """The range of each quantized weight; of the folded one, where it is folded per tensor."""
        if not self._folds_per_tensor():
            return super().weight_ranges()
        factor = self.fold_factor()
        safe = tf.where(tf.equal(factor, 0.0), 1.0, factor)
        return {role: weight_range(self.weight_values()[role] * safe, spec) for role, spec in self._folded()}

    def _folded(self) -> list[tuple[str, QuantizerSpec]]:
        return list(self.weight_specs().items())[-1:]

    def _folds_per_tensor(self) -> bool:
        return self.norm is not None and all(spec.axis is None for _, spec in self._folded())

    def fold_factor(self) -> tf.Tensor:
        """What folding multiplies each output channel with: gamma / sqrt(moving variance + epsilon)."""
        return factor_and_shift(self.norm)[0]

    def multiplied_quantizer(self) -> Quantizer | None:
        """The quantizer of what the last weight is multiplied with, to which the bias is added; None if not known."""
        return self.before[0]

    def product_grid(self) -> ProductGrid | None:
        """The integers of the file's products; None for a layer of others, or where it is not known what it gets."""
        role, inputs = next(reversed(self._weight_specs), ""), self.multiplied_quantizer()
        is_product = role.endswith("kernel") and "." not in role
        if not is_product or inputs is None or not inputs.has_range:
            return None
        weight_scale = range_scale(self.weight_ranges()[role], self.weight_specs()[role])
        bias = tf.stop_gradient(tf.cast(self.layer.bias, tf.float32)) if self.layer.use_bias else tf.constant(0.0)
        is_transposed = isinstance(self.layer, _TRANSPOSED)
        if self.norm is None:
            return ProductGrid(inputs.scale(), weight_scale, tf.constant(1.0), bias, is_transposed)
        factor, shift = factor_and_shift(self.norm)
        if not self._folds_per_tensor():
            weight_scale *= tf.abs(factor)
        return ProductGrid(inputs.scale(), weight_scale, factor, bias * factor + shift, is_transposed)

    def _file_bias(self, training: bool | tf.Tensor | None) -> dict[str, Any]:
        """The bias rounded as in the file, where no more of its integers can be followed; as it is in training."""
        layer = self.layer
        has_bias = self.norm is not None or getattr(layer, "use_bias", False)
        if xnnpack.is_training(training) or not has_bias or self.product_grid() is None:
            return {}
        rounding = tf.cast(serving.as_constant(lambda: self.product_grid().rounding()), self.compute_dtype)
        if tf.is_tensor(training):
            rounding = tf.where(tf.cast(training, tf.bool), tf.zeros_like(rounding), rounding)
        return {"bias": layer.bias + rounding if layer.use_bias else rounding, "use_bias": True}

    def _products(
        self, inputs: Any, arguments: dict[str, Any], weights: dict[str, Any], point: Point, grid: ProductGrid
    ) -> Any:
        """Runs the layer without its bias and activation, and gives what the file has, which has both."""
        layer, scale = self.layer, self.behind.scale()
        plain = {"use_bias": False, "activation": keras.activations.linear}
        with replaced(layer, weights | plain):
            sums = self._run(inputs, arguments, point)
        bias = layer.bias if layer.use_bias else 0.0
        known = grid.is_known & xnnpack.is_known(scale)
        as_in_file = grid.folded(sums, scale)
        if self.norm is not None:  # which comes yet, and makes that of it
            as_in_file = (as_in_file - grid.shift) / grid.factor + bias
        outputs, as_in_file = layer.activation(sums + bias), layer.activation(as_in_file)
        outputs = xnnpack.moved(outputs, as_in_file, known, point.training)
        return outputs if self.output_quantizer is None else point("output", outputs)

    def _in_layer_shape(self, values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {name: tf.reshape(value, operator.attrgetter(name)(self.layer).shape) for name, value in values.items()}

    def _call_layer(
        self,
        inputs: Any,
        arguments: dict[str, Any],
        weights: dict[str, Any],
        point: Point,
        *,
        is_followed: bool = False,
    ) -> Any:
        with replaced(self.layer, weights):
            outputs = self._run(inputs, arguments, point)
        if is_followed:
            outputs = self._as_in_file(inputs, outputs, point)
        if self.output_quantizer is None:
            return outputs
        if isinstance(outputs, tuple):  # further outputs come from points inside
            return (point("output", outputs[0]), *outputs[1:])
        return point("output", outputs)

    def _as_in_file(self, inputs: Any, outputs: Any, point: Point) -> Any:
        """The outputs moved to those of the kernel that the file has for the layer."""
        kernel = xnnpack.kernel_of(self.layer)
        if kernel is not None:
            scales = [one.scale() for one in self.before]
            operands = tf.nest.flatten(inputs)
            return xnnpack.followed(kernel, operands, outputs, scales, self.behind.scale(), point.training)
        if isinstance(self.layer, AFFINE):
            grid, scale = affine_grid(self.layer, self.before[0]), self.behind.scale()
            known = grid.is_known & xnnpack.is_known(scale)
            return xnnpack.moved(outputs, grid.folded(inputs, scale), known, point.training)
        return outputs

    def _run(self, inputs: Any, arguments: dict[str, Any], point: Point) -> Any:
        if point.is_export and type(self.layer) in REARRANGED:
            return REARRANGED[type(self.layer)](self.layer, inputs)
        if point.is_export and relu_of(self.layer) is not None and self.before[0] is not None and self.reads_alone:
            return apart(self.layer, inputs)
        return self.layer.call(inputs, **arguments)

    def call(self, inputs: Any, training: bool | tf.Tensor | None = None, **kwargs: Any) -> Any:
        """The layer's own `call`, on quantized weights."""
        relu = relu_of(self.layer)
        if relu is not None and self.output_quantizer is not None:
            return self.output_quantizer(inputs, training=training, activation=relu)
        if self.layer._expects_training_arg:
            kwargs["training"] = training
        if not self.layer._expects_mask_arg:  # Keras gives one to whatever takes further arguments, as this method does
            kwargs.pop("mask", None)
        weights = self._in_layer_shape(self.weights_in_use())
        points = Quantizing(self.quantizers(), training, self.before)
        if not xnnpack.is_followed(training, self.compute_dtype, *self.before, self.behind):
            return self._call_layer(inputs, kwargs, weights | self._file_bias(training), points)
        grid = self.product_grid()
        if grid is not None:
            return self._products(inputs, kwargs, weights, points, grid)
        return self._call_layer(inputs, kwargs, weights, points, is_followed=True)

    def inference(self, inputs: Any, point: Point, **kwargs: Any) -> Any:
        """What export writes: the same arithmetic with constant weights, BatchNormalization folded.

        Args:
            inputs: as of `call`.
            point: what marks a quantized tensor.
            **kwargs: as of `call`.
        """
        if self.layer._expects_training_arg:
            kwargs["training"] = False
        with tf.init_scope():  # variables are read here, even where a graph is built
            weights = self.inference_weights()
        return self._call_layer(inputs, kwargs, weights, point)

    def inference_weights(self) -> dict[str, Any]:
        """NumPy arrays of all weights: the quantized ones, folded, in the shapes of the layer, and the others."""
        weights = {path: variable.numpy() for path, variable in _variables(self.layer)}
        weights |= {name: value.numpy() for name, value in self._in_layer_shape(self.quantized_weights()).items()}
        if self.norm is not None:
            ((role, _),) = self._folded()
            factor = self.fold_factor().numpy()
            weights[role] = _times_channels(role, weights[role], factor, self.layer)
            shift = 0.0 if self.norm.beta is None else self.norm.beta.numpy()
            weights["bias"] = (weights.get("bias", 0.0) - self.norm.moving_mean.numpy()) * factor + shift
            weights["use_bias"] = True
        if isinstance(self.layer, _TRANSPOSED) and self._has_activation() and not np.any(weights.get("bias", 0.0)):
            # Without a bias the converter leaves a ReLU behind TRANSPOSE_CONV in float; this one is 0 in int32.
            weights |= {"bias": np.full(self.layer.filters, 1e-20, np.float32), "use_bias": True}
        return weights

    def _has_activation(self) -> bool:
        """Whether the operator computes one: the layer's, or that of the layer behind it."""
        return self.output_quantizer is None or self.layer.activation is not keras.activations.linear

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """That of the layer."""
        return self.layer.compute_mask(inputs, mask)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the layer."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The layer and its quantizers."""
        return {
            **super().get_config(),
            "weights": {name: serialize(spec) for name, spec in self._weight_specs.items()},
            "output": serialize(self.output_quantizer),
            "kept": self.kept,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizeWrapper":
        """The inverse of `get_config`."""
        config = dict(config)
        config["layer"] = deserialize(config["layer"])
        config["weights"] = {name: deserialize(spec) for name, spec in config["weights"].items()}
        config["output"] = deserialize(config["output"])
        return cls(**config)


def _times_channels(role: str, kernel: Any, factor: Any, layer: keras.layers.Layer) -> Any:
    """A kernel with each output channel times its factor."""
    if role == "depthwise_kernel":
        return kernel * factor.reshape(kernel.shape[-2:])
    if isinstance(layer, _TRANSPOSED):
        return kernel * factor[:, None]
    return kernel * factor
