"""An LSTM that trains on the quantization points of TFLite's integer UNIDIRECTIONAL_SEQUENCE_LSTM."""

from typing import Any

import tensorflow as tf

from dqat.keras_api import deserialize, keras, register, serialize
from dqat.layers.wrapper import QuantizedLayer
from dqat.observers import merge_records
from dqat.quantizers import Quantizer
from dqat.specs import QuantizerSpec

# Gate pre-activations are Q3.12: 16 bits with 12 of fraction, saturating.
_GATE_MIN, _GATE_MAX = -8.0, 8.0 - 2.0**-12
# The fused op that the converter makes of a Keras LSTM carries this clip.
_CELL_CLIP = 10.0
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
        units = self.layer.units
        weights = {role: tf.reshape(weight, [-1, _GATES * units]) for role, weight in self.quantized_weights().items()}
        # The input's share of all timesteps is one product; time comes first for the loop.
        projected = tf.tensordot(tf.transpose(inputs, [1, 0, 2]), weights["kernel"], 1)
        if self.layer.use_bias:
            projected += self.layer.cell.bias
        hidden_in_use, cell_in_use = self.hidden.in_use(), self.cell_state.in_use()
        batch, time = tf.shape(inputs)[0], tf.shape(inputs)[1]

        def timestep(t, h, c, outputs, hidden_record, cell_record):
            gates = projected[t] + tf.matmul(h, weights["recurrent_kernel"])
            i, f, g, o = tf.split(tf.clip_by_value(gates, _GATE_MIN, _GATE_MAX), _GATES, axis=-1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            c = tf.clip_by_value(c, -_CELL_CLIP, _CELL_CLIP)
            c, c_record = self.cell_state.quantize_and_track(c, cell_in_use, repeats=time)
            h, h_record = self.hidden.quantize_and_track(tf.sigmoid(o) * tf.tanh(c), hidden_in_use, repeats=time)
            return (
                t + 1,
                h,
                c,
                outputs.write(t, h),
                merge_records(hidden_record, h_record),
                merge_records(cell_record, c_record),
            )

        zeros = tf.zeros([batch, units], inputs.dtype)
        zeros.set_shape([inputs.shape[0], units])
        outputs = tf.TensorArray(inputs.dtype, size=time, element_shape=[inputs.shape[0], units])
        _, h, _, outputs, hidden_record, cell_record = tf.while_loop(
            lambda t, *_: t < time,
            timestep,
            (0, zeros, zeros, outputs, self.hidden.empty_record(), self.cell_state.empty_record()),
            maximum_iterations=time,
        )
        if training is not None and training is not False:
            self.hidden.submit(hidden_record, training)
            self.cell_state.submit(cell_record, training)
        if not self.layer.return_sequences:
            return h
        sequence = tf.transpose(outputs.stack(), [1, 0, 2])
        sequence.set_shape([inputs.shape[0], inputs.shape[1], units])
        return sequence

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
