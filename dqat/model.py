"""The model that `quantize_model` returns: a functional Keras model whose ranges stay in step."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dqat import graph, serving
from dqat.batch_statistics import synchronize
from dqat.keras_api import in_float32, keras, register
from dqat.layers import QuantizedBidirectional, QuantizedLayer, QuantizedRNN, QuantizeWrapper
from dqat.layers.product_grid import follow_file
from dqat.layers.quantized_layer import one_pass
from dqat.levels import run_in_levels
from dqat.neighbours import Neighbours
from dqat.quantizers import PER_REPLICA, Quantizer, SharedQuantizer
from dqat.range_sync import RangeSync
from dqat.schedule import Schedule


@register("dqat")
class QuantizedModel(keras.Model):
    """A functional model of quantizing layers.

    A call with `training=True` ends with the range sync of the step, so that `fit` and custom loops need
    nothing else. Called otherwise, it is the simulation: ranges stay as they are.

    Args:
        inputs: as `keras.Model`.
        outputs: as `keras.Model`.
        name: as `keras.Model`.
        trainable: as `keras.Model`.
        range_sync: "delayed", "exact" or "off"; see `dqat.range_sync.RangeSync`.
        on_nonfinite: "raise" or "skip"; see there.
        float_layers: names of the float model's layers that the caller left unquantized.
    """

    # Keras saves and revives a functional subclass as such where these are its positional arguments.
    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        name: str | None = None,
        trainable: bool = True,
        *,
        range_sync: str = "delayed",
        on_nonfinite: str = "raise",
        float_layers: Sequence[str] = (),
    ) -> None:
        super().__init__(inputs=inputs, outputs=outputs, name=name, trainable=trainable)
        self._float_layers = list(float_layers)
        self._schedule_state = self.add_weight(
            name="range_schedule",
            shape=[len(Schedule.INITIAL)],
            dtype=tf.int64,
            initializer=lambda shape, dtype, **_: tf.constant(Schedule.INITIAL, dtype),
            **PER_REPLICA,
        )
        self._connect(RangeSync(range_sync, on_nonfinite))

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Names of the layers that the caller left unquantized."""
        return tuple(self._float_layers)

    def _connect(self, range_sync: RangeSync) -> None:
        self.range_sync = range_sync
        range_sync.schedule = Schedule(self._schedule_state)
        range_sync.quantizers = []
        found = dict(named_quantizers(self))
        for path, quantizer in found.items():
            quantizer.path = path
            quantizer.range_sync = range_sync
            if not isinstance(quantizer, SharedQuantizer):
                range_sync.quantizers.append(quantizer)
        for quantizer in found.values():
            if isinstance(quantizer, SharedQuantizer):
                if quantizer.owner is None:
                    quantizer.connect(found[quantizer.owner_path])
                quantizer.owner.is_shared = True
        if range_sync.all_reduce_total is not None:
            for layer in self._flatten_layers(include_self=False):
                if isinstance(layer, keras.layers.BatchNormalization) and layer.synchronized:
                    synchronize(layer, range_sync.total)
        for layer in self.layers:
            if isinstance(layer, QuantizedLayer) and layer.norm_name is not None:
                layer.connect(self.get_layer(layer.norm_name))
        folded = [layer.norm for layer in self.layers if isinstance(layer, QuantizedLayer)]
        calls = graph.read(self)
        neighbours = Neighbours(calls)
        for layer in calls.layers():
            if isinstance(layer, QuantizeWrapper):
                layer.connect_ends(neighbours.before(layer), neighbours.behind(layer), neighbours.reads_alone(layer))
            elif isinstance(layer, (QuantizedRNN, QuantizedBidirectional)):
                layer.connect_input(neighbours.before(layer)[0])
            elif isinstance(layer, keras.layers.BatchNormalization) and layer not in folded:
                (quantizer,) = neighbours.before(layer)
                if quantizer is not None:
                    follow_file(layer, quantizer, neighbours.behind(layer))

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """The forward pass, and the range sync where `training`."""
        with self.range_sync.step(training), one_pass():
            if self.range_sync.orders_levels(training):
                return run_in_levels(self, inputs, mask, self.range_sync)
            return super().call(inputs, training=training, mask=mask)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Keras' own step, but for the weights' update, which a NaN or an Inf on any replica holds back."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred, sample_weight)
        self._validate_target_and_loss(y, loss)
        compute = getattr(self.optimizer, "compute_gradients", None) or self.optimizer._compute_gradients
        if self.trainable_variables:
            gradients, variables = zip(*compute(loss, self.trainable_variables, tape=tape), strict=True)
            self.optimizer.apply_gradients(zip(self.range_sync.hold_back(gradients), variables, strict=True))
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def _trackable_children(self, *arguments: Any, **options: Any) -> Any:
        # Keras writes a SavedModel from here, each layer's call, for training too, in a function of its own.
        # Records could not leave those functions, and a server knows no collective: so ranges stand still.
        with self.range_sync.freeze(), serving.saving():
            return super()._trackable_children(*arguments, **options)

    def get_config(self) -> dict[str, Any]:
        """The layers and the sync's options."""
        sync = self.range_sync
        return {
            **super().get_config(),
            "range_sync": sync.mode,
            "on_nonfinite": sync.on_nonfinite,
            "float_layers": list(self._float_layers),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "QuantizedModel":
        """The inverse of `get_config`."""
        config = dict(config)
        range_sync = RangeSync(config.pop("range_sync"), config.pop("on_nonfinite"))
        float_layers = config.pop("float_layers", [])
        model = super().from_config(config, custom_objects)
        model._float_layers = list(float_layers)
        model._connect(range_sync)
        return model


def named_quantizers(model: keras.Model) -> Iterator[tuple[str, Quantizer]]:
    """All quantizers of activations and states, with their paths "layer/role", in the model's order."""
    for layer in model.layers:
        if isinstance(layer, Quantizer):
            yield layer.name, layer
        elif isinstance(layer, QuantizedLayer):
            for role, quantizer in layer.quantizers().items():
                yield f"{layer.name}/{role}", quantizer


def ranges(model: keras.Model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The ranges in use now, of activations, states and weights.

    Args:
        model: a model that `quantize_model` returned.

    Returns:
        By "layer/role", float32 (min, max), scalar or [channels]; fitted but not nudged. (+inf, -inf) stands
        for a quantizer that has seen nothing.

    Raises:
        TypeError: for a model that is not quantized.
    """
    require_quantized(model)
    found = {path: quantizer.range() for path, quantizer in named_quantizers(model)}
    for layer in model.layers:
        if isinstance(layer, QuantizedLayer):
            found |= {f"{layer.name}/{role}": range_ for role, range_ in layer.weight_ranges().items()}
    return {path: (low.numpy(), high.numpy()) for path, (low, high) in found.items()}


def float32_model(model: QuantizedModel) -> QuantizedModel:
    """The model itself, or a copy in float32 of one that computes in mixed precision: what integers stand for."""
    config = model.get_config()
    exact = in_float32(config)
    if exact == config:
        return model
    copy = type(model).from_config(exact)
    copy.set_weights(model.get_weights())
    return copy


def require_quantized(model: Any) -> None:
    """Raises TypeError for a model that `quantize_model` did not return."""
    if not isinstance(model, QuantizedModel):
        raise TypeError(
            f"{type(model).__name__} {getattr(model, 'name', '')!r} is not quantized: "
            "call dqat.quantize_model(model) and train what it returns"
        )
