"""The operations as Python functions, and their gradients."""

from typing import Any, NamedTuple

import tensorflow as tf

from dqat import native

_ops = native.ops

TensorLike = Any
Range = tuple[tf.Tensor, tf.Tensor]

#: Length of `counts`: 1,280 bins a sign and one of tiny values.
HISTOGRAM_BINS: int = native.module.HISTOGRAM_BINS


def _attributes(axis: int | None, group_size: int) -> dict[str, Any]:
    if axis is None:
        if group_size != 1:
            raise ValueError(f"group_size {group_size} needs a channel axis, and axis is None")
        return {"per_channel": False}
    return {"per_channel": True, "axis": axis, "group_size": group_size}


def fake_quant(
    x: TensorLike,
    min: TensorLike,
    max: TensorLike,
    *,
    num_bits: int = 8,
    narrow_range: bool = False,
    axis: int | None = None,
    group_size: int = 1,
) -> tf.Tensor:
    """Rounds `x` to the levels of the nudged range [min, max].

    With the same range, output and gradient to `x` are bit for bit those of
    `tf.quantization.fake_quant_with_min_max_vars` (`..._per_channel` with an axis), after Jacob et al. 2017,
    section 3. The gradient to `min` (`max`) is the sum of the incoming gradient where `x` lies below (above)
    the nudged range.

    Args:
        x: float32, float16 or bfloat16, any shape; arithmetic is in float32.
        min: float32, scalar, or [channels / group_size] with an axis. (+inf, -inf) stands for "no range
            yet": the values pass through.
        max: like `min`; finite with min < max, or both 0.
        num_bits: 2 to 16.
        narrow_range: uses the levels 1 to 2^num_bits - 1.
        axis: channel axis of `x`, negative from the end; None for one range per tensor.
        group_size: so many consecutive channels share a range.

    Returns:
        Like `x`.

    Raises:
        tf.errors.InvalidArgumentError: for a range of wrong shape or value (ValueError where the shapes are
            known when a graph is built).
    """
    return _ops.dqat_fake_quant(
        x, min, max, num_bits=num_bits, narrow_range=narrow_range, **_attributes(axis, group_size)
    )


def fake_quant_track(
    x: TensorLike,
    min: TensorLike,
    max: TensorLike,
    *,
    num_bits: int = 8,
    narrow_range: bool = False,
    axis: int | None = None,
    group_size: int = 1,
    activation: str = "linear",
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`fake_quant` that also records the smallest and largest value of `x`, in the same memory pass.

    Without an axis, a gradient keeps two bits of each value of `x` and not `x` itself; a graph then writes the result
    over `x` where nothing else reads it.

    Args:
        x: see `fake_quant`; so are the other arguments.
        min: see `fake_quant`.
        max: see `fake_quant`.
        num_bits: see `fake_quant`.
        narrow_range: see `fake_quant`.
        axis: see `fake_quant`.
        group_size: see `fake_quant`.
        activation: "linear", "relu" or "relu6": its result is what is quantized and recorded, again in the same
            pass, and the same bits as those of `tf.nn.relu` (`tf.nn.relu6`) before, gradient included. Without an
            axis only.

    Returns:
        y, like `x`, and batch_min and batch_max, like `min`: of the values before quantization
        (after the activation). Where `x`
        (or a channel of it) is empty they are (+inf, -inf); where it has a NaN or an Inf, (-inf, +inf). No
        gradient flows through them.

    Raises:
        tf.errors.InvalidArgumentError: as `fake_quant`, and for another activation than linear with an axis.
        ValueError: for an unknown activation.
    """
    y, batch_min, batch_max, _reach = _ops.dqat_fake_quant_track(
        x,
        min,
        max,
        num_bits=num_bits,
        narrow_range=narrow_range,
        activation=activation,
        **_attributes(axis, group_size),
    )
    return y, batch_min, batch_max


def min_max(x: TensorLike, *, axis: int | None = None, group_size: int = 1) -> Range:
    """The record of `x` alone, as `fake_quant_track` gives it.

    Args:
        x: float32, float16 or bfloat16, any shape.
        axis: channel axis, or None for one record per tensor.
        group_size: so many consecutive channels share a record.

    Returns:
        batch_min and batch_max, float32, scalar or [channels / group_size].

    Raises:
        tf.errors.InvalidArgumentError: where `axis` is not an axis of `x`.
    """
    return _ops.dqat_min_max(x, **_attributes(axis, group_size))


def fit_range(
    min: TensorLike,
    max: TensorLike,
    *,
    num_bits: int = 8,
    narrow_range: bool = False,
    symmetric: bool = False,
    power_of_two: bool = False,
) -> Range:
    """The range to quantize with, from a recorded one: contains 0, symmetric or a power of two on request.

    Args:
        min: float32, any shape; an empty range (+inf, -inf) stays empty.
        max: like `min`.
        num_bits: 2 to 16.
        narrow_range: as in `fake_quant`.
        symmetric: 0 stands on the middle level.
        power_of_two: the scale is a power of two and the range within 1 to 64, which is what TFLite's int16
            tanh reads.

    Returns:
        The fitted (min, max); not nudged.
    """
    return _ops.dqat_fit_range(
        min, max, num_bits=num_bits, narrow_range=narrow_range, symmetric=symmetric, power_of_two=power_of_two
    )


def histogram(x: TensorLike) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The record of `x` and its histogram, as `fake_quant_histogram` gives them.

    Args:
        x: float32, float16 or bfloat16, any shape.

    Returns:
        batch_min and batch_max, float32 scalars, and counts, int64 [HISTOGRAM_BINS].
    """
    return _ops.dqat_histogram(x)


def fake_quant_histogram(
    x: TensorLike, min: TensorLike, max: TensorLike, *, num_bits: int = 8, narrow_range: bool = False
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """`fake_quant_track`, per tensor, that also counts the values of `x` in the same memory pass.

    A bin is the sign, the exponent (2^-24 to 2^15) and the upper 5 bits of the mantissa of a float32: 2% to 3%
    wide, and the same for every tensor. So the counts of the parts of a tensor, on threads or replicas, add up
    exactly to those of the whole.

    Args:
        x: float32, float16 or bfloat16, any shape; arithmetic is in float32.
        min: float32 scalar; see `fake_quant`.
        max: like `min`.
        num_bits: 2 to 16.
        narrow_range: see `fake_quant`.

    Returns:
        y, batch_min and batch_max as of `fake_quant_track`, and counts, int64 [HISTOGRAM_BINS] in the order of
        the values: the middle bin holds what is smaller than 2^-24 in magnitude, the outermost ones also what
        is larger than 2^16. A NaN or an Inf is in no bin. No gradient flows through the last three.

    Raises:
        tf.errors.InvalidArgumentError: as `fake_quant`.
    """
    return _ops.dqat_fake_quant_histogram(x, min, max, num_bits=num_bits, narrow_range=narrow_range)


def percentile_range(
    counts: TensorLike, min: TensorLike, max: TensorLike, *, lower: float = 0.01, upper: float = 99.99
) -> Range:
    """The range between two percentiles of a histogram.

    Args:
        counts: int64 [HISTOGRAM_BINS], in any unit.
        min: float32 scalar, the exact smallest value; 0 where none is negative. An empty range stays empty.
        max: like `min`.
        lower: percent; at most so many of the values lie below the range. 0 to less than 50.
        upper: percent; at most 100 - `upper` lie above the range. More than 50, to 100.

    Returns:
        (min, max), bin edges, but never wider than the given ones; not fitted.

    Raises:
        tf.errors.InvalidArgumentError: for negative counts, or percentiles out of bounds.
    """
    lower, upper = (tf.constant(value, tf.float64) for value in (lower, upper))
    return _ops.dqat_percentile_range(counts, min, max, lower, upper)


def minimum_error_range(
    counts: TensorLike,
    min: TensorLike,
    max: TensorLike,
    *,
    num_bits: int = 8,
    narrow_range: bool = False,
    symmetric: bool = False,
    power_of_two: bool = False,
) -> Range:
    """The range with the smallest expected squared quantization error of a histogram.

    The criterion is that of Sung, Shin and Hwang, "Resiliency of Deep Neural Networks under Quantization",
    2015 (arXiv:1511.06488). The ends of the range are searched among the exact extremes and the bin edges of
    eight octaves inside; values are taken to lie evenly in their bins. An asymmetric quantizer's two ends are
    searched in turns, which may end beside the best pair.

    Args:
        counts: as in `percentile_range`.
        min: as in `percentile_range`.
        max: like `min`.
        num_bits: of the quantizer, 2 to 16; so are the other arguments, see `fit_range`.
        narrow_range: see `fit_range`.
        symmetric: see `fit_range`.
        power_of_two: see `fit_range`.

    Returns:
        (min, max) to give to `fit_range` with the same options; never wider than the given ones.

    Raises:
        tf.errors.InvalidArgumentError: for negative counts.
    """
    return _ops.dqat_minimum_error_range(
        counts,
        min,
        max,
        num_bits=num_bits,
        narrow_range=narrow_range,
        symmetric=symmetric,
        power_of_two=power_of_two,
    )


def learned_levels(num_bits: int, signed: TensorLike, narrow_range: bool) -> Range:
    """The lowest and highest level of a learned step, (-Qn, Qp), as float32 scalars.

    Args:
        num_bits: 2 to 16.
        signed: bool; -2^(num_bits - 1) to 2^(num_bits - 1) - 1, else 0 to 2^num_bits - 1.
        narrow_range: one level less, at the negative end of signed ones, else at the positive one.
    """
    half, less = 2.0 ** (num_bits - 1), float(narrow_range)
    return tf.where(signed, less - half, 0.0), tf.where(signed, half, 2 * half - less) - 1.0


def fake_quant_learned(
    x: TensorLike,
    step: TensorLike,
    *,
    num_bits: int = 8,
    signed: bool | tf.Tensor = True,
    narrow_range: bool = False,
    elements: int | tf.Tensor | None = None,
    axis: int | None = None,
    group_size: int = 1,
) -> tf.Tensor:
    """Rounds `x` to the multiples of a step that is trained: LSQ.

    After Esser et al., "Learned Step Size Quantization", ICLR 2020. Output and input are those of `fake_quant`
    with the range (step * lowest level, step * highest level). With v = x / step, the gradient to `x` passes
    where lowest < v < highest, and that to `step` is the sum of the incoming gradient times round(v) - v there,
    times the outermost level elsewhere, times 1 / sqrt(elements * highest level).

    Args:
        x: float32, float16 or bfloat16, any shape; arithmetic is in float32.
        step: float32, scalar, or [channels / group_size] with an axis; positive. 0 (or below 2^-120) stands for
            "not known yet": the values pass through, and the gradient to the step is 0.
        num_bits: 2 to 16.
        signed: a bool for all steps, or a bool tensor like `step`; levels -2^(num_bits - 1) to
            2^(num_bits - 1) - 1, else 0 to 2^num_bits - 1.
        narrow_range: one level less, at the negative end of signed levels, else at the positive one.
        elements: N of the gradient's scale: the weights of a layer, or the features of *one sample*. None takes
            all elements of `x` that share a step, which is right for weights.
        axis: channel axis of `x`, negative from the end; None for one step per tensor.
        group_size: so many consecutive channels share a step.

    Returns:
        Like `x`.

    Raises:
        tf.errors.InvalidArgumentError: for a step that is negative, not finite or of wrong shape (ValueError where the
            shapes are known when a graph is built).
    """
    return fake_quant_learned_track(
        x,
        step,
        num_bits=num_bits,
        signed=signed,
        narrow_range=narrow_range,
        elements=elements,
        axis=axis,
        group_size=group_size,
    )[0]


def fake_quant_learned_track(
    x: TensorLike,
    step: TensorLike,
    *,
    num_bits: int = 8,
    signed: bool | tf.Tensor = True,
    narrow_range: bool = False,
    elements: int | tf.Tensor | None = None,
    axis: int | None = None,
    group_size: int = 1,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`fake_quant_learned` that also records the smallest and largest value of `x`, in the same memory pass.

    Args:
        x: see `fake_quant_learned`; so are the other arguments.
        step: see `fake_quant_learned`.
        num_bits: see `fake_quant_learned`.
        signed: see `fake_quant_learned`.
        narrow_range: see `fake_quant_learned`.
        elements: see `fake_quant_learned`.
        axis: see `fake_quant_learned`.
        group_size: see `fake_quant_learned`.

    Returns:
        y, like `x`, and batch_min and batch_max, like `step`, as of `fake_quant_track`.

    Raises:
        tf.errors.InvalidArgumentError: as `fake_quant_learned`.
    """
    step = tf.convert_to_tensor(step, tf.float32)
    if elements is None:
        elements = tf.size(x, tf.int64) // tf.maximum(tf.size(step, tf.int64), 1)
    signed = tf.convert_to_tensor(signed, tf.bool)
    if signed.shape.rank == 0:
        signed = tf.fill(tf.shape(step), signed)
    return _ops.dqat_fake_quant_learned(
        x,
        step,
        signed,
        tf.cast(elements, tf.int64),
        num_bits=num_bits,
        narrow_range=narrow_range,
        **_attributes(axis, group_size),
    )


def _options(op: tf.Operation) -> dict[str, Any]:
    return {name: op.get_attr(name) for name in ("num_bits", "narrow_range", "per_channel", "axis", "group_size")}


def matmul(a: TensorLike, b: TensorLike, *, transpose_a: bool = False, transpose_b: bool = False) -> tf.Tensor:
    """The product of two matrices; a row of it is a function of that row of `a`, and of `b`, to the bit.

    In `tf.matmul` a row's bits may change with the number of rows and threads: a range found from such a product
    would not be exact when a batch is split over replicas.

    Args:
        a: float32 [rows, depth].
        b: float32 [depth, columns].
        transpose_a: `a` is [depth, rows].
        transpose_b: `b` is [columns, depth].

    Returns:
        float32 [rows, columns].

    Raises:
        tf.errors.InvalidArgumentError: for shapes that don't fit (ValueError where they are known when a graph is
            built).
    """
    return _ops.dqat_mat_mul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)


class LstmOutputs(NamedTuple):
    """What `quantized_lstm` returns.

    Attributes:
        outputs: float32 [batch, time, units], in the order of computation.
        hidden: float32 [batch, units], after the last timestep.
        cell: like `hidden`.
        hidden_record: float32 scalars (min, max), of the hidden state before quantization; no gradient flows
            through it. (-inf, +inf) where there was a NaN or an Inf.
        cell_record: the same of the cell state, clipped at ±10.
    """

    outputs: tf.Tensor
    hidden: tf.Tensor
    cell: tf.Tensor
    hidden_record: Range
    cell_record: Range


def quantized_lstm(
    x: TensorLike,
    kernel: TensorLike,
    recurrent_kernel: TensorLike,
    bias: TensorLike | None,
    hidden_range: Range,
    cell_range: Range,
    *,
    initial_state: tuple[TensorLike, TensorLike] | None = None,
    mask: TensorLike | None = None,
    operand_scales: TensorLike | None = None,
    go_backwards: bool = False,
    time_major: bool = False,
    hidden_bits: int = 8,
    hidden_narrow_range: bool = False,
    cell_bits: int = 16,
    cell_narrow_range: bool = False,
) -> LstmOutputs:
    """An LSTM on the quantization points of TFLite's integer LSTM, over a whole sequence.

    Gate pre-activations saturate at ±8 (Q3.12). The cell state is clipped at ±10 and fake-quantized, the hidden
    state, which is the output, fake-quantized; both with the given ranges throughout. Gradients go straight
    through the roundings and stop where a value was clipped; the ranges get none. A row's results are a function
    of that row and of the weights, to the bit, on any number of threads; so is what a row adds to the records.

    Args:
        x: float32 [batch, time, features], quantized.
        kernel: float32 [features, 4 * units], quantized; gates in Keras' order: input, forget, cell, output.
        recurrent_kernel: float32 [units, 4 * units], quantized.
        bias: float32 [4 * units], or None.
        hidden_range: float32 scalars (min, max); (+inf, -inf) stands for "no range yet": values pass through.
        cell_range: like `hidden_range`.
        initial_state: float32 [batch, units] each, hidden and cell; None for zeros.
        mask: bool [batch, time]; where it is false, states and output stay what they were, and nothing is
            recorded. The output before the first timestep is 0, as in Keras.
        operand_scales: float32 [3, 4], for each gate the scales of `x`, of its kernel and of its recurrent kernel, all
            of which are whole multiples of their scales. With them, once both ranges are known, products are exact sums
            of integers, and sums, gates and cell state are rounded as TFLite's integer kernel rounds them, with its
            fixed-point logistic and tanh; the cell state's scale must be a power of two from 2^-15 to 2^-9, else they
            count for nothing. An initial hidden state goes to the nearest multiple of its scale.
        go_backwards: runs from the last timestep to the first.
        time_major: `x`, `mask` and the outputs are [time, batch, ...].
        hidden_bits: 2 to 16.
        hidden_narrow_range: see `fake_quant`.
        cell_bits: 2 to 16.
        cell_narrow_range: see `fake_quant`.

    Raises:
        tf.errors.InvalidArgumentError: for a wrong shape or range (ValueError where the shapes are known when a
            graph is built).
    """
    if initial_state is None:
        zeros = tf.zeros([tf.shape(x)[1 if time_major else 0], tf.shape(recurrent_kernel)[0]])
        initial_state = zeros, zeros
    results = _ops.dqat_quantized_lstm(
        x,
        kernel,
        recurrent_kernel,
        tf.zeros([0]) if bias is None else bias,
        *initial_state,
        tf.zeros([0, 0], tf.bool) if mask is None else mask,
        *hidden_range,
        *cell_range,
        tf.zeros([0, 0]) if operand_scales is None else operand_scales,
        hidden_bits=hidden_bits,
        hidden_narrow_range=hidden_narrow_range,
        cell_bits=cell_bits,
        cell_narrow_range=cell_narrow_range,
        go_backwards=go_backwards,
        time_major=time_major,
    )
    return LstmOutputs(*results[:3], tuple(results[3:5]), tuple(results[5:7]))


def gru_step(
    projected: TensorLike,
    product: TensorLike,
    hidden: TensorLike,
    ranges: Range,
    *,
    mask: TensorLike | None = None,
    num_bits: int = 8,
    narrow_range: bool = False,
) -> tuple[tf.Tensor, Range]:
    """The elementwise part of a GRU's timestep as TFLite's int8 operators compute it, in one pass.

    The reset gate comes after the recurrent product. Ten tensors are quantized on the way, in this order: the product,
    the gates' sum, the gates, reset gate times product, the candidate's sum, the candidate, what is kept of the
    state, 1 - update gate, what is new, and the new state. Sums saturate at ±8. Gradients go straight through the
    roundings and stop where a value was clipped; the ranges get none. The gradient keeps nothing but the inputs.

    Args:
        projected: float32 [batch, 3 * units], quantized: the input's share of update gate, reset gate, candidate.
        product: float32 [batch, 3 * units]: the hidden state times the recurrent weights, with bias.
        hidden: float32 [batch, units]: the state before, quantized.
        ranges: float32 [10] each; (+inf, -inf) stands for "no range yet": values pass through.
        mask: bool [batch]; where it is false, the state stays, and nothing is recorded.
        num_bits: 2 to 16, of all points.
        narrow_range: see `fake_quant`.

    Returns:
        float32 [batch, units], the state after; and the records of all points, float32 [10] each.

    Raises:
        tf.errors.InvalidArgumentError: for a wrong shape or range (ValueError where the shapes are known when a
            graph is built).
    """
    mask = tf.zeros([0], tf.bool) if mask is None else mask
    after, *records = _ops.dqat_gru_step(
        projected, product, hidden, mask, *ranges, num_bits=num_bits, narrow_range=narrow_range
    )
    return after, tuple(records)


@tf.RegisterGradient("Dqat>FakeQuant")
def _(op: tf.Operation, dy: tf.Tensor) -> list[tf.Tensor]:
    return list(_ops.dqat_fake_quant_grad(dy, *op.inputs, **_options(op)))


@tf.RegisterGradient("Dqat>FakeQuantTrack")
def _(op: tf.Operation, dy: tf.Tensor, *_others: tf.Tensor) -> list[tf.Tensor]:
    if op.get_attr("per_channel"):
        return list(_ops.dqat_fake_quant_grad(dy, *op.inputs, **_options(op)))
    # Two bits a value in place of x: an activation is what memory is short of.
    return list(_ops.dqat_reach_grad(dy, op.outputs[3]))


@tf.RegisterGradient("Dqat>FakeQuantHistogram")
def _(op: tf.Operation, dy: tf.Tensor, *_records: tf.Tensor) -> list[tf.Tensor]:
    options = {name: op.get_attr(name) for name in ("num_bits", "narrow_range")}
    return list(_ops.dqat_fake_quant_grad(dy, *op.inputs[:3], **options))


@tf.RegisterGradient("Dqat>FakeQuantLearned")
def _(op: tf.Operation, dy: tf.Tensor, *_records: tf.Tensor) -> list[tf.Tensor | None]:
    return [*_ops.dqat_fake_quant_learned_grad(dy, *op.inputs, **_options(op)), None, None]


@tf.RegisterGradient("Dqat>MatMul")
def _(op: tf.Operation, slope: tf.Tensor) -> list[tf.Tensor]:
    (a, b), transpose_a, transpose_b = op.inputs, op.get_attr("transpose_a"), op.get_attr("transpose_b")
    to_a = matmul(b, slope, transpose_a=transpose_b, transpose_b=True) if transpose_a else None
    to_b = matmul(slope, a, transpose_a=True, transpose_b=transpose_a) if transpose_b else None
    if to_a is None:
        to_a = matmul(slope, b, transpose_b=not transpose_b)
    if to_b is None:
        to_b = matmul(a, slope, transpose_a=not transpose_a)
    return [to_a, to_b]


@tf.RegisterGradient("Dqat>QuantizedLstm")
def _(op: tf.Operation, *slopes: tf.Tensor) -> list[tf.Tensor | None]:
    names = ("hidden_bits", "hidden_narrow_range", "cell_bits", "cell_narrow_range", "go_backwards", "time_major")
    options = {name: op.get_attr(name) for name in names}
    outputs, gates, cells = op.outputs[0], *op.outputs[7:]
    to_sums, *others = _ops.dqat_quantized_lstm_grad(*slopes[:3], *op.inputs, outputs, gates, cells, **options)
    kernel = op.inputs[1]
    # An operation of its own: a graph drops it where nobody asks for the gradient to x.
    rows = tf.reshape(to_sums, [-1, tf.shape(kernel)[1]])
    to_x = tf.reshape(matmul(rows, kernel, transpose_b=True), tf.shape(op.inputs[0]))
    return [to_x, *others, *[None] * 6]


@tf.RegisterGradient("Dqat>GruStep")
def _(op: tf.Operation, slope: tf.Tensor, *_records: tf.Tensor) -> list[tf.Tensor | None]:
    options = {name: op.get_attr(name) for name in ("num_bits", "narrow_range")}
    return [*_ops.dqat_gru_step_grad(slope, *op.inputs, **options), None, None, None]


for _name in ("MinMax", "FitRange", "Histogram", "PercentileRange", "MinimumErrorRange"):
    tf.no_gradient(f"Dqat>{_name}")
