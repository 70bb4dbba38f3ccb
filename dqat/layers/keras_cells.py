"""The forms of Keras' own cells."""

import tensorflow as tf

from dqat.layers.cell_form import (
    ACTIVATIONS,
    PREACTIVATION_LIMIT,
    CellForm,
    activated_sum,
    activation_name,
    activation_range,
    input_product,
    kernel_point,
    linear,
    product_point,
    recurrent_product,
)
from dqat.layers.xnnpack import added, multiplied


class SimpleRNNForm(CellForm):
    """`SimpleRNNCell`: h = activation(x·W + b + h·R)."""

    project = input_product

    def step(self, projected, states, run):
        """See `CellForm.step`."""
        terms = ("input_product", projected), ("recurrent_product", recurrent_product(run, states[0]))
        hidden = activated_sum(run, "hidden", self.cell.activation, *terms)
        return hidden, (hidden,)

    def output_range(self):
        """That of the activation."""
        return activation_range(self.cell)


class GRUForm(CellForm):
    """`GRUCell`, with the reset gate after the recurrent product or before it."""

    project = input_product

    def matrices(self):
        """Where the reset gate comes first, the candidate's recurrent matrix is an operator of its own."""
        found, units = super().matrices(), self.cell.units
        if not self.cell.reset_after:
            recurrent = found.pop("recurrent_kernel")
            found |= {
                "recurrent_kernel_gates": recurrent[:, : 2 * units],
                "recurrent_kernel_candidate": recurrent[:, 2 * units :],
            }
        return found

    def biases(self):
        """One bias, or two with `reset_after`."""
        found = super().biases()
        if found and self.cell.reset_after:
            found["bias"], found["recurrent_bias"] = tf.unstack(found["bias"])
        return found

    def bias_products(self):
        """The second bias is the recurrent product's."""
        return super().bias_products() | {"recurrent_bias": ("recurrent_kernel", "hidden")}

    def step(self, projected, states, run):
        """See `CellForm.step`."""
        h, units = states[0], self.cell.units
        input_gates, input_candidate = tf.split(projected, [2 * units, units], axis=-1)
        if self.cell.reset_after:
            gates, recurrent = tf.split(recurrent_product(run, h), [2 * units, units], axis=-1)
        else:
            gates = recurrent_product(run, h, "recurrent_kernel_gates")
        terms = ("input_product", input_gates), ("recurrent_product", gates)
        update, reset = tf.split(activated_sum(run, "gates", self.cell.recurrent_activation, *terms), 2, axis=-1)
        if self.cell.reset_after:
            terms = ("gates", reset), ("recurrent_product", recurrent)
            product = "reset_product", kernel_point(run, "reset_product", multiplied, *terms)
        else:
            terms = ("gates", reset), ("hidden", run.dropped(h))
            x, matrix = kernel_point(run, "reset_hidden", multiplied, *terms), run.weights["recurrent_kernel_candidate"]
            product = "candidate_product", product_point(run, "candidate_product", "reset_hidden", x, matrix)
        candidate = activated_sum(run, "candidate", self.cell.activation, ("input_product", input_candidate), product)
        kept = kernel_point(run, "kept", multiplied, ("gates", update), ("hidden", h))
        openness = run.point("openness", 1.0 - update, kind="complement")
        new = kernel_point(run, "new", multiplied, ("openness", openness), ("candidate", candidate))
        hidden = kernel_point(run, "hidden", added, ("kept", kept), ("new", new))
        return hidden, (hidden,)


class LSTMForm(CellForm):
    """`LSTMCell` out of int8 operators, for what TFLite's fused LSTM can't do; the cell state is int8 too."""

    #: The point of the cell state, and those that a gate's sum is of.
    _cell_point = "cell_state"
    _gate_points = ("input_product", "recurrent_product")

    project = input_product

    def _gates(self, projected, states, run):
        product = recurrent_product(run, states[0])
        return tf.split(projected, 4, axis=-1), tf.split(product, 4, axis=-1)

    def _peephole(self, name, cell, run):
        return None

    def _sum(self, name, gate, cell, run):
        """The point of a gate's sum."""
        peephole, terms = self._peephole(name, cell, run), zip(self._gate_points, gate, strict=True)
        if peephole is None:
            return kernel_point(run, f"{name}_sum", added, *terms, limit=PREACTIVATION_LIMIT)
        products = kernel_point(run, f"{name}_products", added, *terms)
        terms = (f"{name}_products", products), (f"{name}_peephole", peephole)
        return kernel_point(run, f"{name}_sum", added, *terms, limit=PREACTIVATION_LIMIT)

    def _normalised_cell(self, cell, run):
        return cell

    def step(self, projected, states, run):
        """See `CellForm.step`."""
        before = states[1]
        i, f, g, o = zip(*self._gates(projected, states, run), strict=True)
        i = run.point("input_gate", tf.sigmoid(self._sum("input_gate", i, before, run)))
        f = run.point("forget_gate", tf.sigmoid(self._sum("forget_gate", f, before, run)))
        g = activated_sum(run, "candidate", self.cell.activation, *zip(self._gate_points, g, strict=True))
        kept = kernel_point(run, "kept", multiplied, ("forget_gate", f), (self._cell_point, before))
        new = kernel_point(run, "new", multiplied, ("input_gate", i), ("candidate", g))
        cell = kernel_point(run, "cell_state", added, ("kept", kept), ("new", new))
        cell = self._normalised_cell(cell, run)
        o = run.point("output_gate", tf.sigmoid(self._sum("output_gate", o, cell, run)))
        function, limit = ACTIVATIONS[activation_name(self.cell.activation)]
        point = self._cell_point if limit is None and function is linear else "cell_activation"
        activated = cell if point == self._cell_point else run.point(point, function(cell))
        hidden = kernel_point(run, "hidden", multiplied, ("output_gate", o), (point, activated))
        return hidden, (hidden, cell)
