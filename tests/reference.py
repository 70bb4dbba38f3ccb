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


def activate(x, activation):
    """What a quantizer that takes an activation with it quantizes and records."""
    if activation == "linear":
        return x
    x = np.asarray(x, F)
    y = np.where(flush(x) <= 0, F(0), x)
    return np.where(y > 6, F(6), y) if activation == "relu6" else y


def gradients_where(dy, inside, below, above, axis=None):
    """dx, and dmin and dmax in float64 with the sums of |dy| that their rounding errors are measured against."""
    dy, over = np.asarray(dy, F), reduced_axes(dy, axis)
    with np.errstate(all="ignore"):
        dx = flush(flush(dy) * inside.astype(F))
        sums = [np.where(where, dy, F(0)).astype(np.float64).sum(axis=over) for where in (below, above)]
        sizes = [np.where(where, np.abs(dy), F(0)).astype(np.float64).sum(axis=over) for where in (below, above)]
    return dx, *sums, *sizes


def gradients(dy, x, low, high, *, num_bits=8, narrow_range=False, axis=None):
    """As `gradients_where` gives them."""
    x = np.asarray(x, F)
    grid, values = Grid(along(low, x, axis), along(high, x, axis), num_bits, narrow_range), flush(x)
    with np.errstate(invalid="ignore"):
        below, above = values < grid.pass_low, values > grid.pass_high
        inside = (values >= grid.pass_low) & (values <= grid.pass_high)
    return gradients_where(dy, inside, below, above, axis)


def reach(x, low, high, *, num_bits=8, narrow_range=False, activation="linear"):
    """The words of what slopes reach, for one range: int64 [ceil(size / 32)]."""
    values, grid = flush(activate(x, activation)).ravel(), Grid(F(low), F(high), num_bits, narrow_range)
    with np.errstate(invalid="ignore"):
        below, above = values < grid.pass_low, values > grid.pass_high
        inside = (values >= grid.pass_low) & (values <= grid.pass_high)
        if activation != "linear":
            inside &= (values > 0) & ((values < 6) | (activation == "relu"))
    halves = np.zeros([-(-values.size // 32), 2, 32], bool)
    for half, bits in enumerate((inside | above, below | above)):
        padded = np.zeros([halves.shape[0] * 32], bool)
        padded[: bits.size] = bits
        halves[:, half] = padded.reshape(-1, 32)
    return np.packbits(halves.reshape(-1), bitorder="little").view("<i8")


def reach_gradients(dy, words):
    """As `gradients_where` gives them, of a tensor with one range."""
    bits = np.unpackbits(words.astype("<i8").view(np.uint8), bitorder="little").reshape(-1, 2, 32).astype(bool)
    lower, upper = (bits[:, half].ravel()[: dy.size].reshape(dy.shape) for half in range(2))
    return gradients_where(dy, lower & ~upper, upper & ~lower, lower & upper)


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


SMALLEST_STEP = F(2.0**-120)


def learned_range(step, signed, num_bits, narrow_range):
    """The range of a learned step; empty where there is none yet."""
    step, signed = np.asarray(step, F), np.asarray(signed, bool)
    half = F(2 ** (num_bits - 1))
    lowest = np.where(signed, F(narrow_range) - half, F(0))
    highest = lowest + F(2**num_bits - 1 - narrow_range)
    unknown = step < SMALLEST_STEP
    with np.errstate(all="ignore"):
        low, high = (np.where(unknown, F(0), step) * level for level in (lowest, highest))
    return np.where(unknown, INFINITY, low).astype(F), np.where(unknown, -INFINITY, high).astype(F)


def is_valid_step(step, signed, num_bits, narrow_range):
    step = np.asarray(step, F)
    return (step > -TINY) & np.isfinite(step) & is_valid(*learned_range(step, signed, num_bits, narrow_range))


def learned_gradients(dy, x, step, signed, elements, *, num_bits=8, narrow_range=False, axis=None):
    """dx, dstep in float64, and the sum of magnitudes that its rounding error is measured against."""
    dy, x = np.asarray(dy, F), np.asarray(x, F)
    low, high = learned_range(step, signed, num_bits, narrow_range)
    grid = Grid(along(low, x, axis), along(high, x, axis), num_bits, narrow_range)
    known = ~grid.passthrough
    values, levels = flush(x), F(2**num_bits - 1 - narrow_range)
    with np.errstate(all="ignore"):
        from_low = flush(values - grid.low)
        steps = flush(from_low / grid.scale) if axis is None else flush(from_low * grid.inverse)
        slope = np.floor(steps - grid.zero_level + F(0.5)) - flush(values / grid.scale)
        slope = np.where(values > grid.low, slope, F(0))
        slope = np.where(values <= grid.low, -grid.zero_level, slope)
        slope = np.where(known, np.where(values >= grid.high, levels - grid.zero_level, slope), F(0)).astype(F)
        dx = np.where(known & ~((values > grid.low) & (values < grid.high)), flush(dy) * F(0), flush(dy))
        shares = flush(flush(dy) * slope).astype(np.float64)
        over = reduced_axes(x, axis)
        highest = (2 ** (num_bits - 1) - 1) * np.ones(np.shape(step))
        highest = np.where(signed, highest, 2**num_bits - 1 - narrow_range)
        scale = 1 / np.sqrt(max(int(elements), 1) * highest)
        return dx, shares.sum(axis=over) * scale, np.abs(shares).sum(axis=over) * scale


SIDE_BINS = 40 * 32  # exponents -24 to 15, 32 bins each
BINS = 2 * SIDE_BINS + 1


def bin_levels(x):
    """0 for tiny magnitudes, else 1 to SIDE_BINS; by arithmetic, not by bits."""
    mantissa, exponent = np.frexp(np.abs(np.asarray(x, np.float64)))
    level = (exponent - 1 + 24) * 32 + np.floor((2 * mantissa - 1) * 32).astype(int) + 1
    return np.where(np.abs(x) < 2.0**-24, 0, np.minimum(level, SIDE_BINS))


def counts(x):
    x = np.asarray(x, F)
    x = x[np.isfinite(x)]
    return np.bincount(SIDE_BINS + np.where(np.signbit(x), -1, 1) * bin_levels(x), minlength=BINS)


def bin_edges():
    """Lower and upper edge of each bin."""
    magnitudes = [2.0 ** (i // 32 - 24) * (1 + i % 32 / 32) for i in range(SIDE_BINS)]
    upper = np.concatenate([-np.array(magnitudes[::-1]), magnitudes, [np.inf]])
    return np.concatenate([[-np.inf], upper[:-1]]), upper


LOWER_EDGES, UPPER_EDGES = bin_edges()


def percentile_range(found, low, high, lower, upper):
    """By Python integers and float64: leaves out at most so many percent, rounded down, at each end."""
    total = float(sum(found.tolist()))
    if is_empty(low, high) or total == 0:
        return F(low), F(high)
    ends = []
    for values, percent in ((found, lower), (found[::-1], 100.0 - upper)):
        skipped = np.floor(total * percent / 100.0 * (1 + 1e-9))
        ends.append(int(np.argmax(np.cumsum(values.astype(np.float64)) > skipped)))
    return F(max(low, F(LOWER_EDGES[ends[0]]))), F(min(high, F(UPPER_EDGES[::-1][ends[1]])))


def histogram_errors(found, extremes, low, high, *, num_bits, narrow_range, symmetric, power_of_two):
    """The squared error of ranges low, high (arrays) after fitting, values spread evenly in their bins; inf for none.

    In float64: the integral of the error over each bin, as far as it lies within the extremes.
    """
    fit = {"symmetric": symmetric, "power_of_two": power_of_two}
    low, high = fit_range(low, high, num_bits=num_bits, narrow_range=narrow_range, **fit)
    grid = Grid(low, high, num_bits, narrow_range)
    bins = np.flatnonzero(found)
    bins = bins[bins != SIDE_BINS]
    start = np.maximum(LOWER_EDGES[bins], extremes[0])
    width = np.maximum(np.minimum(UPPER_EDGES[bins], extremes[1]) - start, 1e-9 * np.abs(start))
    bottom, top, scale = (part[:, np.newaxis].astype(np.float64) for part in (grid.low, grid.high, grid.scale))

    def integral(x):
        steps = np.clip(x, bottom, top) / scale
        whole = np.round(steps)
        rounding = scale**3 * (whole / 12 + (steps - whole) ** 3 / 3)
        return rounding + ((np.minimum(x, bottom) - bottom) ** 3 + (np.maximum(x, top) - top) ** 3) / 3

    with np.errstate(all="ignore"):
        error = ((integral(start + width) - integral(start)) * (found[bins] / width)).sum(axis=1)
    return np.where(is_valid(low, high) & (grid.scale > 0), error, np.inf)


def range_ends(extreme):
    """Where one end of a range of minimum error may stand: the extreme, and bin edges of eight octaves inside."""
    extreme = F(extreme)
    level = int(bin_levels(extreme))
    inside = UPPER_EDGES[SIDE_BINS + level - 1 - np.arange(min(level, 256))].astype(F)
    return np.concatenate([[extreme], np.copysign(inside, extreme)]).astype(F)
