"""TFLite's integer arithmetic on NumPy arrays: what an exported model computes, to the bit.

Works without importing TensorFlow. Most kernels are plain reference loops in C++ (`cc/core/integer_kernels.h`),
after TFLite's `lite/kernels/internal/common.h` and `reference/integer_ops/fully_connected.h`, with the double
rounding of its released builds.
"""

import numpy as np

from dqat import native


def quantization_parameters(
    min: np.ndarray, max: np.ndarray, *, num_bits: int = 8, narrow_range: bool = False
) -> dict[str, np.ndarray]:
    """Scale and zero point of a range, as kernels and export use them.

    Args:
        min: float32, any shape.
        max: like `min`; finite with min < max, or both 0.
        num_bits: 2 to 16.
        narrow_range: one level less, at the negative end.

    Returns:
        "scale" float32, "zero_point" int32 (of the signed integer), "nudged_min" and "nudged_max" float32,
        each like `min`.

    Raises:
        ValueError: for an invalid range, number of bits, or shapes that differ.
    """
    return native.module.quantization_parameters(min, max, num_bits=num_bits, narrow_range=narrow_range)


def quantize(x: np.ndarray, *, scale: float, zero_point: int, num_bits: int = 8) -> np.ndarray:
    """Integers of float values, as fake-quant rounds them: to the nearest, saturating.

    Float32 decides which way a value goes that lies in the middle of two levels, and images that were scaled from 0 to
    255 to a range of -1 to 1 lie there with every pixel. So this takes fake-quant's own steps.

    Args:
        x: float32, any shape. A NaN becomes the zero point.
        scale: positive.
        zero_point: of the signed integer.
        num_bits: 2 to 16.

    Returns:
        int32 like `x`, -2^(num_bits - 1) to 2^(num_bits - 1) - 1.

    Raises:
        ValueError: for a scale that is not positive, or a wrong number of bits.
    """
    if not np.isfinite(scale) or scale <= 0.0:
        raise ValueError(f"scale must be finite and positive, got {scale}")
    if not 2 <= num_bits <= 16:
        raise ValueError(f"num_bits must be 2 to 16, got {num_bits}")
    half, scale, x = 1 << (num_bits - 1), np.float32(scale), np.asarray(x, np.float32)
    low, high = (np.float32(level - zero_point) * scale for level in (-half, half - 1))
    # A division, as for one range per tensor: the inverse of a scale decides otherwise.
    steps = np.floor((np.clip(x, low, high) - low) / scale - np.float32(half + zero_point) + np.float32(0.5))
    return np.clip(np.where(np.isnan(x), 0.0, steps).astype(np.int32) + zero_point, -half, half - 1)


def dequantize(codes: np.ndarray, *, scale: float, zero_point: int) -> np.ndarray:
    """float32 values of integers: (codes - zero_point) * scale."""
    return (np.asarray(codes, np.int32) - zero_point).astype(np.float32) * np.float32(scale)


def quantize_multiplier(factor: float) -> tuple[int, int]:
    """A positive factor as (multiplier, shift): multiplier * 2^(shift - 31), multiplier in [2^30, 2^31) or 0."""
    return native.module.quantize_multiplier(factor)


def requantize(x: np.ndarray, *, multiplier: int, shift: int) -> np.ndarray:
    """int32 values times a quantized factor, rounded twice (MultiplyByQuantizedMultiplier).

    Args:
        x: int32, any shape.
        multiplier: from `quantize_multiplier`.
        shift: from `quantize_multiplier`.

    Returns:
        int32 like `x`.

    Raises:
        ValueError: for a shift out of -31 to 30.
        TypeError: where `x` is not int32.
    """
    return native.module.requantize(x, multiplier, shift)


def fully_connected(
    input: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    *,
    input_scale: float,
    input_zero_point: int,
    weight_scale: float | np.ndarray,
    output_scale: float,
    output_zero_point: int,
    lowest: int = -128,
    highest: int = 127,
    optimized: bool = False,
) -> np.ndarray:
    """TFLite's int8 FULLY_CONNECTED, its reference kernel or its optimized one, to the bit.

    Args:
        input: int8 [batch, inputs].
        weight: int8 [outputs, inputs], symmetric.
        bias: int32 [outputs] at scale input_scale * weight_scale, or None.
        input_scale: positive.
        input_zero_point: of `input`.
        weight_scale: positive, one or [outputs].
        output_scale: positive.
        output_zero_point: of the output.
        lowest: least output, -128, or more with a fused activation.
        highest: greatest output, 127, or less with a fused activation.
        optimized: as the builtin kernel that runs by default, which breaks ties upwards, the reference away from zero.

    Returns:
        int8 [batch, outputs].

    Raises:
        ValueError: for shapes or scales that don't fit.
        TypeError: for other dtypes.
    """
    return native.module.fully_connected(
        input,
        weight,
        bias,
        input_scale=input_scale,
        input_zero_point=input_zero_point,
        weight_scale=np.atleast_1d(weight_scale),
        output_scale=output_scale,
        output_zero_point=output_zero_point,
        lowest=lowest,
        highest=highest,
        ties_upwards=optimized,
    )


def logistic(x: np.ndarray) -> np.ndarray:
    """gemmlowp's fixed-point 1 / (1 + e^-x), an approximation.

    Args:
        x: int16, Q3.12: units of 2^-12.

    Returns:
        int16 like `x`, Q0.15: units of 2^-15.

    Raises:
        TypeError: where `x` is not int16.
    """
    return native.module.logistic(x)


def tanh(x: np.ndarray, *, integer_bits: int) -> np.ndarray:
    """gemmlowp's fixed-point tanh, an approximation.

    Args:
        x: int16 in units of 2^(integer_bits - 15).
        integer_bits: 0 to 6.

    Returns:
        int16 like `x`, Q0.15.

    Raises:
        ValueError: for another number of bits.
        TypeError: where `x` is not int16.
    """
    return native.module.tanh(x, integer_bits=integer_bits)


def lstm(
    input: np.ndarray,
    input_weights: np.ndarray,
    recurrent_weights: np.ndarray,
    bias: np.ndarray,
    *,
    input_scale: float,
    input_zero_point: int,
    input_weight_scales: np.ndarray,
    recurrent_weight_scales: np.ndarray,
    hidden_scale: float,
    hidden_zero_point: int,
    cell_scale: float,
    cell_clip: float = 10.0,
    hidden: np.ndarray | None = None,
    cell: np.ndarray | None = None,
    peepholes: np.ndarray | None = None,
    peephole_scales: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """TFLite's integer UNIDIRECTIONAL_SEQUENCE_LSTM, without projection or layer norm, to the bit.

    Gates are in TFLite's and Keras' order: input, forget, cell, output. After `lite/kernels/lstm_eval.cc`.

    Args:
        input: int8 [batch, time, inputs].
        input_weights: int8 [4, units, inputs], symmetric.
        recurrent_weights: int8 [4, units, units], symmetric.
        bias: int32 [4, units] at scale input_scale * input_weight_scales.
        input_scale: positive.
        input_zero_point: of `input`.
        input_weight_scales: positive, [4].
        recurrent_weight_scales: positive, [4].
        hidden_scale: positive; of the hidden state, which is the output.
        hidden_zero_point: of the hidden state.
        cell_scale: a power of two from 2^-15 to 2^-9.
        cell_clip: where the cell state is clipped, as a real value; 0 for nowhere.
        hidden: int8 [batch, units], before the first timestep; None for zeros (the zero point).
        cell: int16 [batch, units], before the first timestep; None for zeros.
        peepholes: int16 [3, units], symmetric: what input, forget and output gate see the cell state through; None
            for an LSTM without.
        peephole_scales: positive, [3]; with `peepholes`.

    Returns:
        The output, int8 [batch, time, units], and the last hidden and cell state.

    Raises:
        ValueError: for shapes or scales that don't fit.
        TypeError: for other dtypes.
    """
    state = np.shape(input)[0], np.shape(recurrent_weights)[1]
    return native.module.lstm(
        input,
        input_weights,
        recurrent_weights,
        bias,
        np.full(state, hidden_zero_point, np.int8) if hidden is None else hidden,
        np.zeros(state, np.int16) if cell is None else cell,
        input_scale=input_scale,
        input_zero_point=input_zero_point,
        input_weight_scales=np.asarray(input_weight_scales),
        recurrent_weight_scales=np.asarray(recurrent_weight_scales),
        hidden_scale=hidden_scale,
        hidden_zero_point=hidden_zero_point,
        cell_scale=cell_scale,
        cell_clip=cell_clip,
        peepholes=peepholes,
        peephole_scales=np.asarray([] if peephole_scales is None else peephole_scales),
    )


#: Scale and zero point by quantization point, as `dqat.export_tflite` reports them.
Grids = dict[str, tuple[float, int]]


def simple_rnn(
    input: np.ndarray,
    kernel: np.ndarray,
    recurrent_kernel: np.ndarray,
    bias: np.ndarray | None,
    *,
    kernel_scale: float,
    recurrent_kernel_scale: float,
    grids: Grids,
    activation: str = "tanh",
    hidden: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A SimpleRNN as it is exported, a chain of int8 operators: TFLite's builtin kernels to the bit.

    Args:
        input: int8 [batch, time, inputs].
        kernel: int8 [units, inputs], symmetric.
        recurrent_kernel: int8 [units, units], symmetric.
        bias: int32 [units] at scale input scale * kernel_scale, or None.
        kernel_scale: positive.
        recurrent_kernel_scale: positive.
        grids: of "input", "input_product", "recurrent_product", "hidden", and, for tanh and sigmoid, "hidden_sum".
        activation: "tanh", "sigmoid", "relu" or "linear".
        hidden: int8 [batch, units], before the first timestep; None for zeros (the zero point).

    Returns:
        The output, int8 [batch, time, units], and the last hidden state.

    Raises:
        ValueError: for shapes or scales that don't fit, a missing point, or another activation.
        TypeError: for other dtypes.
    """
    return native.module.simple_rnn(
        input,
        kernel,
        recurrent_kernel,
        bias,
        _initial(hidden, input, recurrent_kernel, grids),
        kernel_scale=kernel_scale,
        recurrent_scale=recurrent_kernel_scale,
        grids=grids,
        activation=activation,
    )


def gru(
    input: np.ndarray,
    kernel: np.ndarray,
    recurrent_kernel: np.ndarray,
    bias: np.ndarray | None,
    *,
    kernel_scale: float,
    recurrent_kernel_scale: float,
    grids: Grids,
    recurrent_bias: np.ndarray | None = None,
    candidate_kernel: np.ndarray | None = None,
    candidate_kernel_scale: float = 1.0,
    activation: str = "tanh",
    hidden: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A GRU as it is exported, a chain of int8 operators: TFLite's builtin kernels to the bit.

    Gates are in Keras' order: update, reset, candidate.

    Args:
        input: int8 [batch, time, inputs].
        kernel: int8 [3 * units, inputs], symmetric.
        recurrent_kernel: int8 [3 * units, units], symmetric; [2 * units, units] with `candidate_kernel`.
        bias: int32 [3 * units] at scale input scale * kernel_scale, or None.
        kernel_scale: positive.
        recurrent_kernel_scale: positive.
        grids: of "input", "input_product", "recurrent_product", "gates_sum", "gates", "candidate", "kept",
            "openness", "new", "hidden"; for tanh and sigmoid "candidate_sum"; "reset_product", or, with
            `candidate_kernel`, "reset_hidden" and "candidate_product".
        recurrent_bias: int32 [3 * units] at scale hidden scale * recurrent_kernel_scale, or None.
        candidate_kernel: int8 [units, units], where the reset gate comes before the recurrent product
            (`reset_after=False`); None where it comes after.
        candidate_kernel_scale: positive.
        activation: of the candidate: "tanh", "sigmoid", "relu" or "linear".
        hidden: int8 [batch, units], before the first timestep; None for zeros (the zero point).

    Returns:
        The output, int8 [batch, time, units], and the last hidden state.

    Raises:
        ValueError: for shapes or scales that don't fit, a missing point, or another activation.
        TypeError: for other dtypes.
    """
    return native.module.gru(
        input,
        kernel,
        recurrent_kernel,
        candidate_kernel,
        bias,
        recurrent_bias,
        _initial(hidden, input, recurrent_kernel, grids),
        kernel_scale=kernel_scale,
        recurrent_scale=recurrent_kernel_scale,
        candidate_scale=candidate_kernel_scale,
        grids=grids,
        activation=activation,
    )


def _initial(hidden: np.ndarray | None, input: np.ndarray, recurrent_kernel: np.ndarray, grids: Grids) -> np.ndarray:
    if hidden is not None:
        return hidden
    if "hidden" not in grids:
        raise ValueError("grids must have the point 'hidden'")
    return np.full((np.shape(input)[0], np.shape(recurrent_kernel)[-1]), grids["hidden"][1], np.int8)
