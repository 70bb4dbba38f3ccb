"""How TFLite's integer LSTM rounds, in plain operations: `cc/core/lstm_element.h` as a composition."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dqat import integer

#: Bits that a sum keeps until its second rounding; a float32 has no more.
_MOST_SHIFT = 9
#: Exponents of the cell state's scale for which TFLite has a tanh.
_LEAST_EXPONENT, _MOST_EXPONENT = -15, -9
_CODES = 2**16


@functools.cache
def _table(integer_bits: int | None) -> np.ndarray:
    """The fixed-point tanh at all codes, or the logistic (None), in Q0.15."""
    codes = np.arange(-_CODES // 2, _CODES // 2).astype(np.int16)
    return integer.logistic(codes) if integer_bits is None else integer.tanh(codes, integer_bits=integer_bits)


def _shifted_right(x: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """x / 2^shift in int32, halves away from zero."""
    shift = tf.broadcast_to(shift, tf.shape(x))
    rest = tf.bitwise.left_shift(tf.ones_like(x), shift) - 1
    threshold = tf.bitwise.right_shift(rest, tf.ones_like(x)) + tf.cast(x < 0, tf.int32)
    over = tf.bitwise.bitwise_and(x, rest) > threshold
    return tf.bitwise.right_shift(x, shift) + tf.cast(over, tf.int32)


def _nearest(x: tf.Tensor) -> tf.Tensor:
    rounded = tf.clip_by_value(tf.floor(x + 0.5), -(2.0**27), 2.0**27)
    return tf.cast(tf.where(tf.math.is_nan(rounded), 0.0, rounded), tf.int32)


def _saturated(x: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(x, -_CODES // 2, _CODES // 2 - 1)


def _power(exponent: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(tf.bitwise.left_shift(exponent + 127, tf.fill(tf.shape(exponent), 23)), tf.float32)


def _exponent(x: tf.Tensor) -> tf.Tensor:
    """Of a positive float32, mantissa in [1, 2)."""
    return tf.bitwise.right_shift(tf.bitcast(x, tf.int32), tf.fill(tf.shape(x), 23)) - 127


@tf.custom_gradient
def _instead(smooth: tf.Tensor, value: tf.Tensor) -> tuple[tf.Tensor, object]:
    """`value`, with the gradient of `smooth`."""
    return tf.identity(value), lambda slope: (slope, None)


@tf.custom_gradient
def _logistic(sums: tf.Tensor, value: tf.Tensor) -> tuple[tf.Tensor, object]:
    return tf.identity(value), lambda slope: (slope * (value * (1.0 - value)), None)


@tf.custom_gradient
def _tanh(sums: tf.Tensor, value: tf.Tensor) -> tuple[tf.Tensor, object]:
    return tf.identity(value), lambda slope: (slope * (1.0 - value * value), None)


class Codes(NamedTuple):
    """A matrix as whole numbers, and what goes with it: the same at all timesteps.

    Attributes:
        matrix: float32 [depth, 4 * units].
        steps: float32 scalar: 1 over the scale of what it multiplies.
        factors: float32 [4 * units]: what a product of whole numbers is worth.
    """

    matrix: tf.Tensor
    steps: tf.Tensor
    factors: tf.Tensor


class LstmRounding(NamedTuple):
    """The roundings of one layer.

    Attributes:
        scales: float32 [shares, 2, 4]: for each share of the sums and each gate the scales of its two operands. Shares
            are those of inputs, hidden states and, where there are peepholes, cell states.
        shift: int32 [shares, 4, 1]: bits that each share keeps until it is rounded again.
        cell_exponent: int32 scalar; the cell state's scale is 2 to this.
        is_known: bool scalar; where false, nothing is rounded.
    """

    scales: tf.Tensor
    shift: tf.Tensor
    cell_exponent: tf.Tensor
    is_known: tf.Tensor

    @classmethod
    def of(cls, operand_scales: tf.Tensor, hidden_scale: tf.Tensor, cell_scale: tf.Tensor) -> "LstmRounding":
        """From what `dqat.ops.quantized_lstm` calls so, with a row more for peepholes, and the states' scales."""
        x, *matrices = tf.unstack(tf.stop_gradient(operand_scales))
        states = (tf.broadcast_to(tf.stop_gradient(scale), x.shape) for scale in (hidden_scale, cell_scale))
        # Without peepholes the cell state is no operand.
        scales = tf.stack([tf.stack(pair) for pair in zip((x, *states), matrices, strict=False)])
        factors = scales[:, 0] * scales[:, 1] * 4096.0
        known = (scales[:, 0] > 0.0) & (factors > 0.0) & tf.math.is_finite(factors)
        shift = tf.clip_by_value(-_exponent(tf.where(known, factors, 1.0)) - 1, 0, _MOST_SHIFT)
        cell_scale = tf.convert_to_tensor(tf.stop_gradient(cell_scale))
        positive = tf.where(cell_scale > 0.0, cell_scale, 3.0)
        exponent = _exponent(positive)
        fits = (_power(exponent) == positive) & (exponent >= _LEAST_EXPONENT) & (exponent <= _MOST_EXPONENT)
        exponent = tf.clip_by_value(exponent, _LEAST_EXPONENT, _MOST_EXPONENT)
        return cls(scales, shift[..., tf.newaxis], exponent, fits & tf.reduce_all(known))

    def encoded(self, matrix: tf.Tensor, share: int) -> Codes:
        """What `product` takes for a matrix float32 [depth, 4 * units] of a share of the sums, in `scales`' order."""
        of_x, of_gates = tf.unstack(tf.where(self.is_known, self.scales[share], 1.0))
        of_columns = tf.repeat(of_gates, matrix.shape[-1] // of_gates.shape[0])
        return Codes(self._codes(matrix, 1.0 / of_columns), 1.0 / of_x[0], of_x[0] * of_columns)

    def product(self, x: tf.Tensor, codes: Codes, dropped: Callable[[tf.Tensor], tf.Tensor] = tf.identity) -> tf.Tensor:
        """x times a matrix of whole multiples of their scales, by their integers: exact in float32 as far as 2^24.

        Args:
            x: float32 [..., depth].
            codes: of the matrix, see `encoded`.
            dropped: x with dropout.
        """
        return tf.tensordot(dropped(self._codes(x, codes.steps)), codes.matrix, 1) * codes.factors

    def _codes(self, values: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
        scaled = values * steps
        return _instead(scaled, tf.where(self.is_known, tf.round(scaled), scaled))

    def gates(
        self, shares: Sequence[tf.Tensor], clipped: tf.Tensor, which: tuple[int, ...] = (0, 1, 2, 3)
    ) -> list[tf.Tensor]:
        """Gates after their activations: of i, f, g and o those in `which`.

        Args:
            shares: float32 [batch, gates * units] each: of the sums, in the order of `shift`.
            clipped: the sum of all, within the bounds of 16 bits: what gradients go to.
            which: gates.
        """
        count = len(which)
        units = clipped.shape[-1] // count
        codes = 0
        for share, shifts in zip(shares, tf.unstack(self.shift)[: len(shares)], strict=True):
            shift = tf.repeat(tf.gather(shifts, which), units, axis=1)
            sums = tf.reshape(share, [-1, count, units])
            code = _shifted_right(_nearest(sums * _power(shift + 12)), shift)
            codes = _saturated(codes + code)
        sums = tf.unstack(tf.reshape(clipped, [-1, count, units]), axis=1)
        found = []
        for gate, code, x in zip(which, tf.unstack(codes, axis=1), sums, strict=True):
            is_tanh = gate == 2
            rounded = self._looked_up(_table(3 if is_tanh else None), code)
            value = tf.where(self.is_known, rounded, tf.tanh(x) if is_tanh else tf.sigmoid(x))
            found.append((_tanh if is_tanh else _logistic)(x, tf.stop_gradient(value)))
        return found

    def cell_sum(self, i: tf.Tensor, f: tf.Tensor, g: tf.Tensor, cell: tf.Tensor, sums: tf.Tensor) -> tf.Tensor:
        """f * cell + i * g, both products rounded to the cell state's grid; NaN where one of the `sums` is."""
        i_code, f_code, g_code = (_nearest(gate * 32768.0) for gate in (i, f, g))
        kept = _shifted_right(f_code * self._cell_code(cell), tf.constant(15))
        added = _shifted_right(i_code * g_code, 30 + self.cell_exponent)
        rounded = tf.cast(kept + added, tf.float32) * _power(self.cell_exponent)
        rounded += tf.reduce_sum(tf.reshape(sums * 0.0, [-1, sums.shape[-1] // cell.shape[-1], cell.shape[-1]]), axis=1)
        smooth = f * cell + i * g
        return _instead(smooth, tf.stop_gradient(tf.where(self.is_known, rounded, smooth)))

    def tanh(self, cell: tf.Tensor) -> tf.Tensor:
        """Of a cell state on its grid."""
        tables = np.concatenate([_table(15 + e) for e in range(_LEAST_EXPONENT, _MOST_EXPONENT + 1)])
        first = (self.cell_exponent - _LEAST_EXPONENT) * _CODES
        rounded = self._looked_up(tables, first + self._cell_code(cell)) + cell * 0.0
        return _tanh(cell, tf.stop_gradient(tf.where(self.is_known, rounded, tf.tanh(cell))))

    def _cell_code(self, cell: tf.Tensor) -> tf.Tensor:
        return _saturated(_nearest(cell * _power(-self.cell_exponent)))

    @staticmethod
    def _looked_up(table: np.ndarray, code: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.gather(table, code + _CODES // 2), tf.float32) / 32768.0
