"""The LSTM's form as TFLite's integer operator computes it."""

from typing import Any

import tensorflow as tf

from dqat.layers.cell_form import CellForm, Numerics
from dqat.layers.lstm_rounding import LstmRounding
from dqat.layers.lstm_sequence import GATES, cell_tanh, cell_values, product

#: Beside the weights: the scales of what each gate's products multiply, see `dqat.ops.quantized_lstm`.
OPERAND_SCALES = "operand_scales"
_ROUNDING, _RECURRENT_CODES = "rounding", "recurrent_codes"


class FusedLSTMForm(CellForm):
    """`LSTMCell` as TFLite's integer operator computes it, all gates in 16 bits.

    Attributes:
        is_one_operation: the time loop can be `dqat.ops.quantized_lstm`.
    """

    is_one_operator = True
    is_one_operation = True

    def matrices(self) -> dict[str, tf.Tensor]:
        """Both kernels as [inputs, gates, units]."""
        found = super().matrices()
        return {role: tf.reshape(weight, [-1, GATES, self.cell.units]) for role, weight in found.items()}

    def _flat(self, weight: tf.Tensor) -> tf.Tensor:
        return tf.reshape(weight, [-1, GATES * self.cell.units])

    def project(self, x, run):
        """The inputs' share of the gates, not quantized: the operator sums it up in 16 bits."""
        projected = product(x, self._flat(run.weights["kernel"]), self.rounding(run), 0)
        return projected + run.weights["bias"] if "bias" in run.weights else projected

    def recurrent_product(self, hidden: tf.Tensor, run: Numerics) -> tf.Tensor:
        """The hidden state's share."""
        rounding, codes = self.rounding(run), run.weights.get(_RECURRENT_CODES)
        if rounding is not None and codes is not None:
            return rounding.product(hidden, codes, run.dropped)
        return product(hidden, self._flat(run.weights["recurrent_kernel"]), rounding, 1, run.dropped)

    def prepared(self, run: Numerics) -> dict[str, Any]:
        """The roundings and the recurrent weights' whole numbers, where the scales are given."""
        rounding = self.rounding(run)
        if rounding is None:
            return {}
        codes = rounding.encoded(self._flat(run.weights["recurrent_kernel"]), 1)
        return {_ROUNDING: rounding, _RECURRENT_CODES: codes}

    def rounding(self, run: Numerics) -> LstmRounding | None:
        """The integer kernel's; None where the scales are not given."""
        scales = run.weights.get(OPERAND_SCALES)
        if scales is None or _ROUNDING in run.weights:
            return run.weights.get(_ROUNDING)
        return LstmRounding.of(scales, run.levels("hidden").scale, run.levels("cell_state").scale)

    def step(self, projected, states, run):
        """See `CellForm.step`."""
        h, c = states
        rounding = self.rounding(run)
        c, gate = cell_values(projected, self.recurrent_product(h, run), c, rounding)
        c = run.point("cell_state", c, kind="cell_state")
        h = run.point("hidden", gate * cell_tanh(c, rounding))
        return h, (h, c)
