"""An LSTM that trains on the quantization points of TFLite's integer UNIDIRECTIONAL_SEQUENCE_LSTM."""

from typing import Any

import tensorflow as tf

from dqat.keras_api import register
from dqat.layers.cell_form import CellForm, State
from dqat.layers.lstm_rounding import LstmRounding
from dqat.layers.lstm_sequence import GATES, cell_tanh, cell_values, lstm_sequence
from dqat.layers.recurrent import QuantizedRNN
from dqat.quantizers import Quantizer, range_scale

#: Beside the weights: what each gate's products are rescaled by, see `dqat.ops.quantized_lstm`.
PRODUCT_SCALES = "product_scales"


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

    def step(self, projected, states, run):
        """See `CellForm.step`."""
        h, c = states
        scales = run.weights.get(PRODUCT_SCALES)
        rounding = None if scales is None else LstmRounding.of(scales, run.levels("cell_state").scale)
        recurrent = tf.matmul(run.dropped(h), self._flat(run.weights["recurrent_kernel"]))
        c, gate = cell_values(projected, recurrent, c, rounding)
        c = run.point("cell_state", c, kind="cell_state")
        h = run.point("hidden", gate * cell_tanh(c, rounding))
        return h, (h, c)


@register("dqat")
class QuantizedLSTM(QuantizedRNN):
    """Simulates TFLite's integer LSTM (int8 inputs, weights and hidden state, int16 cell state).

    Once the ranges of input and states are known, sums, gates and cell state are those of the integer kernel, but for
    float32 sums on the edge of a rounding; before that, and for other numbers of bits, gates are float32.

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
        others = self._biases()
        outputs, states, records = lstm_sequence(
            x,
            tuple(weights),
            others.get("bias"),
            self.hidden,
            self.cell_state,
            initial_state=states if self.layer.stateful else None,
            mask=mask,
            product_scales=others.get(PRODUCT_SCALES),
            go_backwards=self.layer.go_backwards,
        )
        if training is not None and training is not False:
            for quantizer, record in zip((self.hidden, self.cell_state), records, strict=True):
                quantizer.submit(record, training)
        # The last output is the last hidden state, and stays it through masked steps.
        return outputs, states[0], states

    def _biases(self) -> dict[str, tf.Tensor]:
        found, specs = super()._biases(), (self.hidden.spec, self.cell_state.spec)
        source, float32 = self.input_quantizer, self.compute_dtype == "float32"
        if source is None or not float32 or [spec.num_bits for spec in specs] != [8, 16]:
            return found
        ranges, weights = self.weight_ranges(), self.weight_specs()
        sources = {"kernel": source, "recurrent_kernel": self.hidden}
        scales = [quantizer.scale() * range_scale(ranges[role], weights[role]) for role, quantizer in sources.items()]
        return found | {PRODUCT_SCALES: tf.stack([tf.broadcast_to(scale, [GATES]) for scale in scales])}

    @property
    def hidden(self) -> Quantizer:
        """The quantizer of the hidden state, which is the output."""
        return self.points["hidden"]

    @property
    def cell_state(self) -> Quantizer:
        """The quantizer of the cell state."""
        return self.points["cell_state"]
