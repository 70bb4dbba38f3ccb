"""The time loop of the quantized LSTM: one fused operation, and the composition of plain ones that it stands for."""

from collections.abc import Callable

import tensorflow as tf

from dqat import native, ops
from dqat.layers.loop_records import records_extremes_alone
from dqat.layers.lstm_rounding import LstmRounding
from dqat.observers import Record, merge_records
from dqat.quantizers import Quantizer

# Gate pre-activations are Q3.12: 16 bits with 12 of fraction, saturating.
GATE_MIN, GATE_MAX = -8.0, 8.0 - 2.0**-12
# The fused op that the converter makes of a Keras LSTM carries this clip.
CELL_CLIP = 10.0
GATES = 4  # in Keras' order: input, forget, cell, output

State = tuple[tf.Tensor, tf.Tensor]
#: Outputs, the last (hidden, cell), and the records of both.
Sequence = tuple[tf.Tensor, State, tuple[Record, Record]]


def product(
    x: tf.Tensor,
    matrix: tf.Tensor,
    rounding: LstmRounding | None,
    share: int,
    dropped: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
) -> tf.Tensor:
    """A share of the gates' sums: x [..., depth] times a matrix [depth, 4 * units]; see `LstmRounding.product`."""
    if rounding is None:
        return tf.tensordot(dropped(x), matrix, 1)
    return rounding.product(x, rounding.encoded(matrix, share), dropped)


def cell_values(
    projected: tf.Tensor, recurrent: tf.Tensor, cell_before: tf.Tensor, rounding: LstmRounding | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """One timestep between the products and the states' quantization, as TFLite's integer LSTM computes it.

    Args:
        projected: float32 [batch, 4 * units]: the inputs' share of the gates before their activations.
        recurrent: float32 [batch, 4 * units]: the hidden state's.
        cell_before: float32 [batch, units], quantized.
        rounding: of the integer kernel; None for none.

    Returns:
        The new cell state, clipped, and the output gate: float32 [batch, units]. The hidden state is the gate times
        the tanh of the cell state (`cell_tanh`), once that is quantized.
    """
    sums = tf.clip_by_value(projected + recurrent, GATE_MIN, GATE_MAX)
    if rounding is None:
        i, f, g, o = tf.split(sums, GATES, axis=-1)
        i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
        cell = f * cell_before + i * g
    else:
        i, f, g, o = rounding.gates((projected, recurrent), sums)
        cell = rounding.cell_sum(i, f, g, cell_before, sums)
    return tf.clip_by_value(cell, -CELL_CLIP, CELL_CLIP), o


def cell_tanh(cell: tf.Tensor, rounding: LstmRounding | None = None) -> tf.Tensor:
    """The tanh of a quantized cell state, as the integer kernel computes it where `rounding` is given."""
    return tf.tanh(cell) if rounding is None else rounding.tanh(cell)


def has_kernels() -> bool:
    """Whether the library has kernels for all devices that TensorFlow has here."""
    return native.module.build_info()["cuda"] or not tf.config.list_logical_devices("GPU")


def fits_fused(x: tf.Tensor, hidden: Quantizer, cell_state: Quantizer) -> bool:
    """Whether the fused operation can do it: float32, and observers that need nothing but extremes."""
    plain = records_extremes_alone(hidden) and records_extremes_alone(cell_state)
    return plain and x.dtype == tf.float32 and has_kernels()


def lstm_sequence(
    x: tf.Tensor,
    weights: tuple[tf.Tensor, tf.Tensor],
    bias: tf.Tensor | None,
    hidden: Quantizer,
    cell_state: Quantizer,
    *,
    initial_state: State | None = None,
    mask: tf.Tensor | None = None,
    operand_scales: tf.Tensor | None = None,
    go_backwards: bool = False,
) -> Sequence:
    """Runs a sequence with the ranges in use at its start, on the quantization points of TFLite's integer LSTM.

    Args:
        x: float32 [batch, time, features], quantized.
        weights: kernel [features, 4 * units] and recurrent kernel [units, 4 * units], quantized.
        bias: float32 [4 * units], or None.
        hidden: quantizer of the hidden state.
        cell_state: quantizer of the cell state.
        initial_state: float32 [batch, units] each, hidden and cell; None for zeros.
        mask: bool [batch, time]; where it is false, states and output stay, and nothing is recorded.
        operand_scales: float32 [3, 4], see `dqat.ops.quantized_lstm`; None for gates in float32.
        go_backwards: runs from the last timestep to the first; outputs are in the order of computation.

    Returns:
        Outputs, float32 [batch, time, units]; the last hidden and cell state, [batch, units]; and what the
        hidden and the cell quantizer are to be given as records.
    """
    run = fused if fits_fused(x, hidden, cell_state) else composed
    outputs, states, records = run(
        x,
        weights,
        bias,
        hidden,
        cell_state,
        initial_state=initial_state,
        mask=mask,
        operand_scales=operand_scales,
        go_backwards=go_backwards,
    )
    outputs.set_shape([x.shape[0], x.shape[1], weights[1].shape[0]])
    return outputs, states, records


def fused(
    x: tf.Tensor,
    weights: tuple[tf.Tensor, tf.Tensor],
    bias: tf.Tensor | None,
    hidden: Quantizer,
    cell_state: Quantizer,
    *,
    initial_state: State | None = None,
    mask: tf.Tensor | None = None,
    operand_scales: tf.Tensor | None = None,
    go_backwards: bool = False,
) -> Sequence:
    """`lstm_sequence` by `dqat.ops.quantized_lstm`."""
    results = ops.quantized_lstm(
        x,
        *weights,
        bias,
        hidden.in_use(),
        cell_state.in_use(),
        initial_state=initial_state,
        mask=mask,
        operand_scales=operand_scales,
        go_backwards=go_backwards,
        hidden_bits=hidden.spec.num_bits,
        hidden_narrow_range=hidden.spec.narrow_range,
        cell_bits=cell_state.spec.num_bits,
        cell_narrow_range=cell_state.spec.narrow_range,
    )
    return results.outputs, (results.hidden, results.cell), (results.hidden_record, results.cell_record)


def composed(
    x: tf.Tensor,
    weights: tuple[tf.Tensor, tf.Tensor],
    bias: tf.Tensor | None,
    hidden: Quantizer,
    cell_state: Quantizer,
    *,
    initial_state: State | None = None,
    mask: tf.Tensor | None = None,
    operand_scales: tf.Tensor | None = None,
    go_backwards: bool = False,
) -> Sequence:
    """`lstm_sequence` by a loop of plain operations: for every device and observer, and the tests' second opinion."""
    kernel, recurrent = weights
    units = recurrent.shape[0]
    # The input's share of all timesteps is one product; time comes first for the loop.
    x = tf.transpose(x, [1, 0, 2])
    if go_backwards:
        x = tf.reverse(x, [0])
    if mask is not None:
        mask = tf.transpose(mask)[..., tf.newaxis]
        mask = tf.reverse(mask, [0]) if go_backwards else mask
    rounding = None
    if operand_scales is not None:
        rounding = LstmRounding.of(operand_scales, hidden.scale(), cell_state.scale())
    projected = product(x, kernel, rounding, 0)
    if bias is not None:
        projected += bias
    # Of the same weights at all timesteps.
    codes = None if rounding is None else rounding.encoded(recurrent, 1)
    hidden_in_use, cell_in_use = hidden.in_use(), cell_state.in_use()
    time, batch = tf.shape(x)[0], tf.shape(x)[1]

    def tracked(quantizer, value, in_use, t):
        quantized, record = quantizer.quantize_and_track(value, in_use, repeats=time)
        if mask is not None:
            record = quantizer.record(tf.boolean_mask(value, mask[t][:, 0]))
        return quantized, record

    def timestep(t, h, c, output, outputs, hidden_record, cell_record):
        sums = tf.tensordot(h, recurrent, 1) if rounding is None else rounding.product(h, codes)
        new_c, gate = cell_values(projected[t], sums, c, rounding)
        new_c, c_record = tracked(cell_state, new_c, cell_in_use, t)
        new_h, h_record = tracked(hidden, gate * cell_tanh(new_c, rounding), hidden_in_use, t)
        output = new_h if mask is None else tf.where(mask[t], new_h, output)
        if mask is not None:
            new_h, new_c = tf.where(mask[t], new_h, h), tf.where(mask[t], new_c, c)
        return (
            t + 1,
            new_h,
            new_c,
            output,
            outputs.write(t, output),
            merge_records(hidden_record, h_record),
            merge_records(cell_record, c_record),
        )

    zeros = tf.zeros([batch, units], x.dtype)
    zeros.set_shape([x.shape[1], units])
    h, c = (zeros, zeros) if initial_state is None else initial_state
    outputs = tf.TensorArray(x.dtype, size=time, element_shape=[x.shape[1], units])
    _, h, c, _, outputs, *records = tf.while_loop(
        lambda t, *_: t < time,
        timestep,
        (0, h, c, zeros, outputs, hidden.empty_record(), cell_state.empty_record()),
        maximum_iterations=time,
    )
    return tf.transpose(outputs.stack(), [1, 0, 2]), (h, c), tuple(records)
