"""An LSTM that trains on the quantization points of TFLite's integer UNIDIRECTIONAL_SEQUENCE_LSTM."""

import dataclasses
from typing import Any

import tensorflow as tf

from dqat.keras_api import register
from dqat.layers.cell_form import CellForm, State
from dqat.layers.lstm_form import OPERAND_SCALES, FusedLSTMForm
from dqat.layers.lstm_sequence import GATES, lstm_sequence
from dqat.layers.peephole_lstm import PEEPHOLES, FusedPeepholeForm
from dqat.layers.recurrent import QuantizedRNN, dropout_gain
from dqat.quantizers import Quantizer, range_scale
from dqat.specs import QuantizerSpec

_FORMS = {"LSTMCell": FusedLSTMForm, "PeepholeLSTMCell": FusedPeepholeForm}


@register("dqat")
class QuantizedLSTM(QuantizedRNN):
    """Simulates TFLite's integer LSTM (int8 inputs, weights and hidden state, int16 cell state).

    Once the ranges of input and states are known, sums, gates and cell state are those of the integer kernel, but for
    float32 sums on the edge of a rounding; before that, and for other numbers of bits, gates are float32.

    Quantization points, as in `lite/kernels/lstm_eval.cc`, LstmEval8x8_16: each gate's two weight matrices
    symmetric int8 per tensor; gate pre-activations saturate at ±8; the cell state int16 with a power-of-two
    scale, clipped at ±10; the hidden state int8 with one range for all timesteps and the output; peephole vectors
    symmetric int16. The input must be quantized by the layer before.

    Args:
        layer: a `keras.layers.LSTM`, or an RNN over tensorflow-addons' `PeepholeLSTMCell`, with tanh and sigmoid, which
            neither takes states nor returns them: the operator's cell state is its own.
        weight: quantizer of the kernels, seen as [inputs, gates, units].
        activation: quantizer of the hidden state.
        observer: how ranges are found.
        cell_state: quantizer of the cell state.
    """

    def _form(self) -> CellForm:
        return _FORMS[type(self.layer.cell).__name__](self.layer.cell)

    def weight_specs(self) -> dict[str, QuantizerSpec]:
        """The kernels as `weight` says, peephole vectors in TFLite's 16 bits."""
        vector = dataclasses.replace(self.weight, num_bits=16, axis=None)
        return super().weight_specs() | {role: vector for role in PEEPHOLES if role in self.form.matrices()}

    def _sequence(self, x: tf.Tensor, states: State, mask: tf.Tensor | None, training: Any) -> Any:
        if self.layer.cell.recurrent_dropout or not self.form.is_one_operation:
            return super()._sequence(x, states, mask, training)
        weights = (tf.reshape(weight, [-1, GATES * self.layer.cell.units]) for weight in self.weights_in_use().values())
        others = self._biases(training)
        outputs, states, records = lstm_sequence(
            x,
            tuple(weights),
            others.get("bias"),
            self.hidden,
            self.cell_state,
            initial_state=states if self.layer.stateful else None,
            mask=mask,
            operand_scales=others.get(OPERAND_SCALES),
            go_backwards=self.layer.go_backwards,
        )
        if training is not None and training is not False:
            for quantizer, record in zip((self.hidden, self.cell_state), records, strict=True):
                quantizer.submit(record, training)
        # The last output is the last hidden state, and stays it through masked steps.
        return outputs, states[0], states

    def _biases(self, training: Any) -> dict[str, tf.Tensor]:
        found, specs = super()._biases(training), (self.hidden.spec, self.cell_state.spec)
        source, float32 = self.input_quantizer, self.compute_dtype == "float32"
        if source is None or not float32 or [spec.num_bits for spec in specs] != [8, 16]:
            return found
        ranges, weights = self.weight_ranges(), self.weight_specs()
        scales = {role: range_scale(ranges[role], spec) for role, spec in weights.items()}
        x_scale = source.scale() * dropout_gain(self.layer.cell.dropout, training)
        rows = [x_scale, scales["kernel"], scales["recurrent_kernel"]]
        if PEEPHOLES[0] in scales:
            to_input, to_forget, to_output = (scales[role] for role in PEEPHOLES)
            rows.append(tf.stack([to_input, to_forget, 1.0, to_output]))
        return found | {OPERAND_SCALES: tf.stack([tf.broadcast_to(row, [GATES]) for row in rows])}

    @property
    def hidden(self) -> Quantizer:
        """The quantizer of the hidden state, which is the output."""
        return self.points["hidden"]

    @property
    def cell_state(self) -> Quantizer:
        """The quantizer of the cell state."""
        return self.points["cell_state"]
