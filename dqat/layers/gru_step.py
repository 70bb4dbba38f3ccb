"""The timestep of the quantized GRU in training: one product, and one operation that stands for `GRUForm.step`.

It rounds as fake-quant does. Outside training `GRUForm.step` itself runs, and rounds as the file's kernels do.
"""

from typing import Any

import tensorflow as tf

from dqat import ops
from dqat.layers.cell_form import CellForm, State, activation_name, matrix_product
from dqat.layers.keras_cells import GRUForm
from dqat.layers.loop_records import records_extremes_alone
from dqat.layers.lstm_sequence import has_kernels
from dqat.observers import Range
from dqat.quantizers import Quantizer

#: The points of `GRUForm` with `reset_after`, in the order of the operation.
POINTS = (
    *("recurrent_product", "gates_sum", "gates", "reset_product", "candidate_sum", "candidate"),
    *("kept", "openness", "new", "hidden"),
)


def fits(x: tf.Tensor, form: CellForm, points: dict[str, Quantizer]) -> bool:
    """Whether the operation can do it: float32, Keras' default GRU, and observers that need nothing but extremes."""
    if type(form) is not GRUForm or not form.cell.reset_after or activation_name(form.cell.activation) != "tanh":
        return False
    specs = {(quantizer.spec.num_bits, quantizer.spec.narrow_range) for quantizer in points.values()}
    plain = tuple(points) == POINTS and all(map(records_extremes_alone, points.values())) and len(specs) == 1
    return plain and x.dtype == tf.float32 and has_kernels()


class GruStep:
    """`GRUForm.step` with the ranges known at a loop's start.

    Args:
        points: the quantizers in the loop; see `fits`.
        in_use: what each of them has in use.
    """

    def __init__(self, points: dict[str, Quantizer], in_use: dict[str, Range]) -> None:
        self._spec = points["hidden"].spec
        self._ranges = tuple(tf.stack([in_use[name][end] for name in POINTS]) for end in range(2))

    def __call__(self, projected: tf.Tensor, states: State, run: Any) -> tuple[tf.Tensor, State]:
        """One timestep; see `CellForm.step`. `run` has a `mask`, and takes the `records`."""
        (hidden,) = states
        product = matrix_product(
            run.dropped(hidden), run.weights["recurrent_kernel"], run.weights.get("recurrent_bias")
        )
        after, records = ops.gru_step(
            projected,
            product,
            hidden,
            self._ranges,
            mask=None if run.mask is None else run.mask[:, 0],
            num_bits=self._spec.num_bits,
            narrow_range=self._spec.narrow_range,
        )
        ends = (tf.unstack(part, num=len(POINTS)) for part in records)
        run.records = dict(zip(POINTS, zip(*ends, strict=True), strict=True))
        return after, (after,)
