"""A recurrent layer and its mirror image, each quantized as it would be alone."""

from typing import Any

import tensorflow as tf

from dqat.keras_api import deserialize, keras, register, serialize
from dqat.layers import xnnpack
from dqat.layers.lstm import QuantizedLSTM
from dqat.layers.quantized_layer import QuantizedLayer
from dqat.layers.recurrent import QuantizedRNN
from dqat.observers import Observer
from dqat.quantizers import Quantizer
from dqat.specs import QuantizerSpec

_MERGES = {
    "sum": lambda forward, backward: forward + backward,
    "mul": lambda forward, backward: forward * backward,
    "ave": lambda forward, backward: (forward + backward) * 0.5,
}
#: What the file computes; a mean is the sum on twice the scale.
_KERNELS: dict[str, xnnpack.Kernel] = {
    "sum": xnnpack.added,
    "mul": xnnpack.multiplied,
    "ave": lambda inputs, scales, output_scale: xnnpack.added(inputs, scales, 2.0 * output_scale),
}


@register("dqat")
class QuantizedBidirectional(QuantizedLayer):
    """Simulates `keras.layers.Bidirectional` in integers.

    Both directions share one output range, as TFLite's CONCATENATION wants them, here or behind the layer; a
    merged output has a range of its own.

    Args:
        layer: a `keras.layers.Bidirectional`.
        is_fused: both directions are TFLite's LSTM operator.
        weight: as `QuantizedRNN`.
        activation: as `QuantizedRNN`.
        observer: as `QuantizedRNN`.
        cell_state: as `QuantizedRNN`.
        output: quantizer of the output.
    """

    def __init__(
        self,
        layer: keras.layers.Bidirectional,
        is_fused: bool,
        weight: QuantizerSpec,
        activation: QuantizerSpec,
        observer: Observer,
        cell_state: QuantizerSpec | None = None,
        output: Quantizer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **kwargs)
        self.supports_masking = True
        self.is_fused, self.output_quantizer = is_fused, output
        shared = output if layer.merge_mode in ("concat", None) else None
        self._how = (weight, activation, observer, cell_state)
        kind = QuantizedLSTM if is_fused else QuantizedRNN
        self.forward, self.backward = (
            kind(direction, *self._how, shared) for direction in (layer.forward_layer, layer.backward_layer)
        )

    def build(self, input_shape: Any) -> None:
        """Builds both directions."""
        for direction in self.directions().values():
            if not direction.built:
                with tf.name_scope(direction.name):
                    direction.build(input_shape)
                direction.built = True
        self.layer.built = True
        if self.output_quantizer is not None and not self.output_quantizer.built:
            self.output_quantizer.build([None, 1])
        super().build(input_shape)

    def connect_input(self, quantizer: Quantizer | None) -> None:
        """Tells which quantizer the input comes from."""
        for direction in self.directions().values():
            direction.connect_input(quantizer)

    def directions(self) -> dict[str, QuantizedRNN]:
        """Both, by name."""
        return {"forward": self.forward, "backward": self.backward}

    def quantizers(self) -> dict[str, Quantizer]:
        """Those of both directions, "forward/…" and "backward/…", and that of the output."""
        output = self.output_quantizer
        found = {
            f"{name}/{role}": quantizer
            for name, direction in self.directions().items()
            for role, quantizer in direction.quantizers().items()
            if quantizer is not output
        }
        return found if output is None else {**found, "output": output}

    def set_least_weight_bits(self, least: int) -> None:
        """See `QuantizedLayer.set_least_weight_bits`: of both directions."""
        for direction in self.directions().values():
            direction.set_least_weight_bits(least)

    def weight_specs(self) -> dict[str, QuantizerSpec]:
        """Those of both directions."""
        return self._of_both(lambda direction: direction.weight_specs())

    def weight_values(self) -> dict[str, tf.Tensor]:
        """Those of both directions."""
        return self._of_both(lambda direction: direction.weight_values())

    def _of_both(self, method: Any) -> dict[str, Any]:
        return {
            f"{name}/{role}": value
            for name, direction in self.directions().items()
            for role, value in method(direction).items()
        }

    def call(
        self, inputs: Any, mask: Any = None, training: Any = None, initial_state: Any = None, constants: None = None
    ) -> Any:
        """Runs both directions; arguments as `QuantizedRNN.call`, half of the states for each direction."""
        x, *states = tf.nest.flatten(inputs)
        states = states or tf.nest.flatten([] if initial_state is None else initial_state)
        half = len(states) // 2
        forward = self.forward([x, *states[:half]], mask=mask, training=training)
        backward = self.backward([x, *states[half:]], mask=mask, training=training)
        merge = lambda *pair: self._merge(*pair, training)  # noqa: E731
        return merge_directions(self.layer, forward, backward, merge)

    def _merge(self, forward: tf.Tensor, backward: tf.Tensor, training: Any) -> tf.Tensor:
        mode, result = self.layer.merge_mode, self.output_quantizer
        merged = _MERGES[mode](forward, backward)
        found = [direction.points[direction.output_point] for direction in self.directions().values()]
        if xnnpack.is_followed(training, merged.dtype, *found, result):
            scales = [quantizer.scale() for quantizer in found]
            pair = [forward, backward]
            merged = xnnpack.followed(_KERNELS[mode], pair, merged, scales, result.scale(), training)
        return result(merged, training=training)

    @property
    def stateful(self) -> bool:
        """Whether states go on from batch to batch."""
        return self.layer.stateful

    @stateful.setter
    def stateful(self, value: bool) -> None:
        pass  # it is the float layer's

    def reset_states(self) -> None:
        """Sets the states of stateful directions to zero."""
        self.layer.reset_states()

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """That of the float layer."""
        return self.layer.compute_mask(inputs, mask)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the float layer."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The float layer, and how it is quantized."""
        names = ("weight", "activation", "observer", "cell_state")
        parts = {**dict(zip(names, self._how, strict=True)), "output": self.output_quantizer}
        return {
            **super().get_config(),
            "is_fused": self.is_fused,
            **{name: serialize(part) for name, part in parts.items()},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedBidirectional":
        """The inverse of `get_config`."""
        names = ("layer", "weight", "activation", "observer", "cell_state", "output")
        return cls(**{**config, **{name: deserialize(config[name]) for name in names}})


def merge_directions(
    layer: keras.layers.Bidirectional, forward: Any, backward: Any, merge: Any, *, is_in_order: bool = False
) -> Any:
    """What `layer` gives of the results of its directions.

    Args:
        layer: tells how.
        forward: the output, or a list of the output and the states.
        backward: likewise, in its own order of time.
        merge: computes a merge mode other than concat and None.
        is_in_order: the backward output has the forward one's order of time.
    """
    states = []
    if layer.return_state:
        states = [*forward[1:], *backward[1:]]
        forward, backward = forward[0], backward[0]
    if layer.return_sequences and not is_in_order:
        backward = tf.reverse(backward, [0 if getattr(layer.forward_layer, "time_major", False) else 1])
    if layer.merge_mode is None:
        outputs = [forward, backward]
    elif layer.merge_mode == "concat":
        outputs = [tf.concat([forward, backward], axis=-1)]
    else:
        outputs = [merge(forward, backward)]
    found = [*outputs, *states]
    return found[0] if len(found) == 1 else found
