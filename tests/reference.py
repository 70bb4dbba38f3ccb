"""The definition of every op in NumPy: as plain as can be, and nothing of dqat is used here.

float32 throughout, in the order of operations of TensorFlow's fake-quant ops. TensorFlow runs kernels with
subnormal numbers taken as 0, so each step here flushes them too.
"""

import numpy as np

F = np.float32
TINY = np.finfo(F).tiny
INFINITY = F(np.inf)


def flush(value):
    """Subnormals become 0 of their sign."""
    value = np.asarray(value, F)
    return np.where(np.abs(value) < TINY, np.copysign(F(0), value), value)


def reduced_axes(x, axis):
    """The axes over which a range is taken."""
    return None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)


def along(channels, x, axis):
    """[channels] (or a scalar) in a shape that broadcasts against x."""
    if axis is None:
        return np.asarray(channels)
    shape = [1] * x.ndim
    shape[axis % x.ndim] = np.size(channels)
    return np.reshape(channels, shape)


def is_empty(low, high):
    return (low == INFINITY) & (high == -INFINITY)


def is_valid(low, high):
    """Per channel: a range that can be quantized with."""
    low, high = flush(low), flush(high)
    with np.errstate(all="ignore"):
        finite = np.isfinite(low) & np.isfinite(high) & np.isfinite(high - low)
        return is_empty(low, high) | (finite & ((low < high) | ((low == 0) & (high == 0))))


class Grid:
    """The nudged range, its scale and its inverse, and the level of 0; arrays of the shape of `low`."""

    def __init__(self, low, high, num_bits, narrow_range):
        low, high = flush(low), flush(high)
        with np.errstate(all="ignore"):
            self.passthrough = is_empty(low, high)
            first, last = F(narrow_range), F(2**num_bits - 1)
            scale = flush((high - low) / (last - first))
            # (0, 0), and what is too small for a scale: 0 is the only value, and all gradients pass.
            self.zero_only = ~self.passthrough & (scale < TINY)
            nothing = self.passthrough | self.zero_only
            self.scale = np.where(nothing, F(0), scale)
            self.inverse = np.where(nothing, F(0), flush((last - first) / (high - low)))
            from_min = np.where(nothing, F(0), first - flush(low / scale))
            # To the nearest, halves up; what lies outside is clipped.
            whole = np.trunc(from_min)
            level = np.clip(whole + (from_min - whole >= F(0.5)), first, last).astype(F)
            self.low = np.where(nothing, F(0), (first - level) * self.scale).astype(F)
            self.high = np.where(nothing, F(0), (last - level) * self.scale).astype(F)
            self.zero_level = np.floor(flush(-self.low * self.inverse) + F(0.5)).astype(F)
            self.pass_low = np.where(nothing, -INFINITY, self.low)
            self.pass_high = np.where(nothing, INFINITY, self.high)


def fake_quant(x, low, high, *, num_bits=8, narrow_range=False, axis=None):
    x = np.asarray(x, F)
    grid = Grid(along(low, x, axis), along(high, x, axis), num_bits, narrow_range)
    with np.errstate(all="ignore"):
        values = flush(x)
        clamped = np.where(values > grid.high, grid.high, values)
        clamped = np.where(clamped < grid.low, grid.low, clamped)
        above = flush(clamped - grid.low)
        # Per tensor TensorFlow divides by the scale, per channel it multiplies with the inverse.
        divides = (grid.scale != 0) & (axis is None)
        steps = np.where(divides, flush(above / grid.scale), flush(above * grid.inverse))
        y = (np.floor(steps - grid.zero_level + F(0.5)) * grid.scale).astype(F)
        return np.where(grid.passthrough, x, y)


def gradients(dy, x, low, high, *, num_bits=8, narrow_range=False, axis=None):
    """dx, and dmin and dmax in float64 with the sums of |dy| that their rounding errors are measured against."""
    dy, x = np.asarray(dy, F), np.asarray(x, F)
    grid = Grid(along(low, x, axis), along(high, x, axis), num_bits, narrow_range)
    values = flush(x)
    with np.errstate(all="ignore"):
        below, above = values < grid.pass_low, values > grid.pass_high
        inside = (values >= grid.pass_low) & (values <= grid.pass_high)
        dx = flush(flush(dy) * inside.astype(F))
        over = reduced_axes(x, axis)
        sums = [np.where(where, dy, F(0)).astype(np.float64).sum(axis=over) for where in (below, above)]
        sizes = [np.where(where, np.abs(dy), F(0)).astype(np.float64).sum(axis=over) for where in (below, above)]
    return dx, *sums, *sizes


def min_max(x, *, axis=None):
    x = np.asarray(x, F)
    over = reduced_axes(x, axis)
    bad = ~np.isfinite(x).all(axis=over)
    with np.errstate(all="ignore"):
        low = np.where(bad, -INFINITY, flush(np.min(x, axis=over, initial=INFINITY)))
        high = np.where(bad, INFINITY, flush(np.max(x, axis=over, initial=-INFINITY)))
    return (low + F(0)).astype(F), (high + F(0)).astype(F)


def fit_range(low, high, *, num_bits=8, narrow_range=False, symmetric=False, power_of_two=False):
    low, high = np.asarray(low, F), np.asarray(high, F)
    with np.errstate(all="ignore"):
        kept = ~(np.isfinite(low) & np.isfinite(high)) | (flush(low) > flush(high))
        fitted_low, fitted_high = np.minimum(low, F(0)), np.maximum(high, F(0))
        half = F(2 ** (num_bits - 1))
        if symmetric or power_of_two:
            bound = np.maximum(-fitted_low, fitted_high)
            if power_of_two:
                bound = np.where(bound > 0, bound, F(1))
                bound = np.exp2(np.ceil(np.log2(bound.astype(np.float64)))).clip(1, 64).astype(F)
            fitted_high = bound
            if narrow_range:
                fitted_low = -bound
            elif power_of_two:
                fitted_low, fitted_high = -bound, bound - bound / half
            else:
                fitted_low = -bound * (half / (half - F(1)))
        return np.where(kept, low, fitted_low).astype(F), np.where(kept, high, fitted_high).astype(F)
