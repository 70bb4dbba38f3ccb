"""An LSTM that trains on the quantization points of TFLite's integer UNIDIRECTIONAL_SEQUENCE_LSTM."""

from typing import Any

import tensorflow as tf

from dqat.keras_api import register
from dqat.layers.cell_form import CellForm, State
from dqat.layers.lstm_sequence import GATES, cell_values, lstm_sequence
from dqat.layers.recurrent import QuantizedRNN
from dqat.quantizers import Quantizer


class FusedLSTMForm(CellForm):
    """`LSTMCell` as TFLite's integer operator computes it, all gates in 16 bits."""

    is_one_operator = True

    def matrices(self) -> dict[str, tf.Tensor]:
        """Both kernels as [inputs, gates, units]."""
        found = super().matrices()
        return {role: tf.reshape(weight, [-1, GATES, self.cell.units]) for role, weight in found.items()}

    def _flat(self, weight: tf.Tensor) -> tf.Tensor:
        return tf.reshape(weight, [-1, GATES * self.cell.units])

    def project(self, x, run):
        """The inputs' share of the gates, not quantized: the operator sums it up in 16 bits."""
        projected = tf.matmul(x, self._flat(run.weights["kernel"]))
        return projected + run.weights["bias"] if "bias" in run.weights else projected

    def bias_products(self):
        """None: the operation that runs all timesteps adds the biases in float, and this is its second opinion."""
        return {}

    def step(self, projected, states, run):
        """See `CellForm.step`."""
        h, c = states
        sums = projected + tf.matmul(run.dropped(h), self._flat(run.weights["recurrent_kernel"]))
        c, gate = cell_values(sums, c)
        c = run.point("cell_state", c, kind="cell_state")
        h = run.point("hidden", gate * tf.tanh(c))
        return h, (h, c)


@register("dqat")
class QuantizedLSTM(QuantizedRNN):
    """Simulates TFLite's integer LSTM (int8 inputs, weights and hidden state, int16 cell state) in float32.

    Quantization points, as in `lite/kernels/lstm_eval.cc`, LstmEval8x8_16: each gate's two weight matrices
    symmetric int8 per tensor; gate pre-activations saturate at ±8; the cell state int16 with a power-of-two
    scale, clipped at ±10; the hidden state int8 with one range for all timesteps and the output. The input
    must be quantized by the layer before.

    Args:
        layer: a `keras.layers.LSTM` with tanh and sigmoid, which neither takes states nor returns them: the
            operator's cell state is its own.
        weight: quantizer of the kernels, seen as [inputs, gates, units].
        activation: quantizer of the hidden state.
        observer: how ranges are found.
        cell_state: quantizer of the cell state.
    """

    def _form(self) -> CellForm:
        return FusedLSTMForm(self.layer.cell)

    def _sequence(self, x: tf.Tensor, states: State, mask: tf.Tensor | None, training: Any) -> Any:
        if self.layer.cell.recurrent_dropout:
            return super()._sequence(x, states, mask, training)
        weights = (tf.reshape(weight, [-1, GATES * self.layer.units]) for weight in self.weights_in_use().values())
        outputs, states, records = lstm_sequence(
            x,
            tuple(weights),
            self.layer.cell.bias if self.layer.use_bias else None,
            self.hidden,
            self.cell_state,
            initial_state=states if self.layer.stateful else None,
            mask=mask,
            go_backwards=self.layer.go_backwards,
        )
        if training is not None and training is not False:
            for quantizer, record in zip((self.hidden, self.cell_state), records, strict=True):
                quantizer.submit(record, training)
        # The last output is the last hidden state, and stays it through masked steps.
        return outputs, states[0], states

    @property
    def hidden(self) -> Quantizer:
        """The quantizer of the hidden state, which is the output."""
        return self.points["hidden"]

    @property
    def cell_state(self) -> Quantizer:
        """The quantizer of the cell state."""
        return self.points["cell_state"]
