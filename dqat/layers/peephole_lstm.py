"""The LSTM whose gates see the cell state, as TFLite's integer operator computes it."""

import tensorflow as tf

from dqat.layers.lstm_form import FusedLSTMForm
from dqat.layers.lstm_sequence import CELL_CLIP, GATE_MAX, GATE_MIN, cell_tanh

#: The vectors of tensorflow-addons' `PeepholeLSTMCell`, in the order in which the operator has them.
PEEPHOLES = ("input_gate_peephole_weights", "forget_gate_peephole_weights", "output_gate_peephole_weights")
_BEFORE_CELL, _OUTPUT = (0, 1, 2), (3,)


class FusedPeepholeForm(FusedLSTMForm):
    """`PeepholeLSTMCell`: input and forget gate see the cell state before, the output gate the one after.

    The operator has the vectors in 16 bits, and rounds their products like those of the two matrices.
    """

    is_one_operation = False

    def matrices(self) -> dict[str, tf.Tensor]:
        """The kernels, and the vectors."""
        return super().matrices() | {role: tf.convert_to_tensor(getattr(self.cell, role)) for role in PEEPHOLES}

    def step(self, projected, states, run):
        """See `CellForm.step`."""
        (h, c), units = states, self.cell.units
        rounding = self.rounding(run)
        products = projected, self.recurrent_product(h, run)
        to_input, to_forget, to_output = (run.weights[role] for role in PEEPHOLES)

        def gates(which, peephole):
            ends = slice(which[0] * units, (which[-1] + 1) * units)
            shares = [*(product[:, ends] for product in products), peephole]
            sums = tf.clip_by_value(tf.add_n(shares), GATE_MIN, GATE_MAX)
            if rounding is not None:
                return rounding.gates(shares, sums, which), sums
            parts = tf.split(sums, len(which), axis=-1)
            return [tf.tanh(x) if gate == 2 else tf.sigmoid(x) for gate, x in zip(which, parts, strict=True)], sums

        (i, f, g), sums = gates(_BEFORE_CELL, tf.concat([to_input * c, to_forget * c, tf.zeros_like(c)], axis=-1))
        value = f * c + i * g if rounding is None else rounding.cell_sum(i, f, g, c, sums)
        c = run.point("cell_state", tf.clip_by_value(value, -CELL_CLIP, CELL_CLIP), kind="cell_state")
        (o,), sums = gates(_OUTPUT, to_output * c)
        h = run.point("hidden", o * cell_tanh(c, rounding) + sums * 0.0)  # a NaN stays one
        return h, (h, c)
