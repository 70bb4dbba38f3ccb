"""An LSTM that trains on the quantization points of TFLite's integer UNIDIRECTIONAL_SEQUENCE_LSTM."""

from typing import Any

import tensorflow as tf

from dqat.keras_api import deserialize, keras, register, serialize
from dqat.layers.lstm_sequence import lstm_sequence
from dqat.layers.wrapper import QuantizedLayer
from dqat.quantizers import Quantizer
from dqat.specs import QuantizerSpec

_GATES = 4  # in Keras' order: input, forget, cell, output


@register("dqat")
class QuantizedLSTM(QuantizedLayer):
    """Simulates TFLite's integer LSTM (int8 inputs, weights and hidden state, int16 cell state) in float32.

    Quantization points, as in `lite/kernels/lstm_eval.cc`, LstmEval8x8_16: each gate's two weight matrices
    symmetric int8 per tensor; gate pre-activations saturate at ±8; the cell state int16 with a power-of-two
    scale, clipped at ±10; the hidden state int8 with one range for all timesteps and the output. The input
    must be quantized by the layer before.

    States are quantized with the ranges known at the start of the step, in every sync mode: a range that
    changed inside the recurrence would have no counterpart in the integer kernel.

    Args:
        layer: a `keras.layers.LSTM` with tanh and sigmoid, without state output, reversal or dropout.
        gate_kernel: quantizer of the kernels, seen as [inputs, gates, units].
        hidden: quantizer of the hidden state.
        cell_state: quantizer of the cell state.
    """

    def __init__(
        self,
        layer: keras.layers.LSTM,
        gate_kernel: QuantizerSpec,
        hidden: Quantizer,
        cell_state: Quantizer,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **kwargs)
        self.gate_kernel = gate_kernel
        self.hidden = hidden
        self.cell_state = cell_state

    def build(self, input_shape: Any) -> None:
        """Builds the float LSTM and the quantizers."""
        if not self.layer.built:
            with tf.name_scope(self.layer.name):
                # Keras' RNN takes a list for the shapes of several inputs, and a saved shape is a list.
                self.layer.build(tf.TensorShape(input_shape))
            self.layer.built = True
        for quantizer in (self.hidden, self.cell_state):
            quantizer.build([None, self.layer.units])
        super().build(input_shape)

    def quantizers(self) -> dict[str, Quantizer]:
        """Those of the hidden state (also the output) and of the cell state."""
        return {"hidden": self.hidden, "cell_state": self.cell_state}

    def weight_specs(self) -> dict[str, QuantizerSpec]:
        """Both kernels, per gate."""
        return {"kernel": self.gate_kernel, "recurrent_kernel": self.gate_kernel}

    def weight_values(self) -> dict[str, tf.Tensor]:
        """Both kernels as [inputs, gates, units]."""
        cell = self.layer.cell
        return {
            role: tf.reshape(weight, [-1, _GATES, self.layer.units])
            for role, weight in (("kernel", cell.kernel), ("recurrent_kernel", cell.recurrent_kernel))
        }

    def call(self, inputs: tf.Tensor, training: bool | tf.Tensor | None = None) -> tf.Tensor:
        """Runs the sequence.

        Args:
            inputs: float32 [batch, time, features], quantized.
            training: records ranges where true.

        Returns:
            float32 [batch, time, units], or [batch, units] without `return_sequences`.
        """
        weights = (tf.reshape(w, [-1, _GATES * self.layer.units]) for w in self.quantized_weights().values())
        outputs, (last, _), (hidden_record, cell_record) = lstm_sequence(
            inputs,
            tuple(weights),
            self.layer.cell.bias if self.layer.use_bias else None,
            self.hidden,
            self.cell_state,
        )
        if training is not None and training is not False:
            self.hidden.submit(hidden_record, training)
            self.cell_state.submit(cell_record, training)
        return outputs if self.layer.return_sequences else last

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the LSTM."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The LSTM and its quantizers."""
        return {
            **super().get_config(),
            "gate_kernel": serialize(self.gate_kernel),
            "hidden": serialize(self.hidden),
            "cell_state": serialize(self.cell_state),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedLSTM":
        """The inverse of `get_config`."""
        names = ("layer", "gate_kernel", "hidden", "cell_state")
        return cls(**{**config, **{name: deserialize(config[name]) for name in names}})
