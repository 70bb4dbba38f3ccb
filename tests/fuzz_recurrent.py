"""Random calls of the matrix product, the fused LSTM and the GRU's step, and what is right: `fuzz_ops` for these ops.

LSTM and GRU are held against plain NumPy where nothing is quantized. With ranges, one value on the edge of two levels
changes all that follows: there outputs must lie in their range. Of the gradient, whatever the ranges are,
that the weights' parts are the sums over all rows and timesteps that `dsums` says.
"""

import numpy as np

from dqat.native import ops

OPS = {
    "MatMul": ops.dqat_mat_mul,
    "QuantizedLstm": ops.dqat_quantized_lstm,
    "QuantizedLstmGrad": ops.dqat_quantized_lstm_grad,
    "GruStep": ops.dqat_gru_step,
    "GruStepGrad": ops.dqat_gru_step_grad,
}
INPUTS = ("x", "kernel", "recurrent_kernel", "bias", "initial_hidden", "initial_cell", "mask")
HUGE = 2**46
PASS = (np.inf, -np.inf)
VALID = [PASS, PASS, PASS, (-1.0, 1.0), (-0.4, 0.5), (0.0, 0.0), (0.0, 3e-36)]
INVALID = [(1.0, -1.0), (np.nan, 1.0), (-1.0, np.inf), (0.5, 0.5)]


def _spoilt(random, shape):
    """Another shape, seldom one with an axis that only an empty tensor can have."""
    if random.chance(0.1) and len(shape) > 1:
        return (HUGE, *[0] * (len(shape) - 1))[:: random.one_of([-1, 1])]
    wrong = tuple(int(n) for n in random.generator.choice([0, 1, 2, 3], len(shape)))
    return (*wrong, 1) if random.chance(0.2) else wrong


def _floats(random, shape, by=1.0):
    return random.generator.standard_normal(shape, np.float32) * np.float32(by)


def _draw_product(random):
    rows, depth, columns = (int(n) for n in random.generator.choice([0, 1, 2, 3, 17, 40], 3))
    options = {"transpose_a": random.chance(0.5), "transpose_b": random.chance(0.5)}
    shapes = [(rows, depth), (depth, columns)]
    shapes = [shape[::-1] if turned else shape for shape, turned in zip(shapes, options.values(), strict=True)]
    if random.chance(0.1):
        index = int(random.chance(0.5))
        shapes[index] = _spoilt(random, shapes[index])
    sides = [-2 if options["transpose_a"] else -1, -1 if options["transpose_b"] else -2]
    fits = all(len(shape) == 2 for shape in shapes)
    fits = fits and shapes[0][sides[0]] == shapes[1][sides[1]]
    if fits and shapes[0][-3 - sides[0]] * shapes[1][-3 - sides[1]] >= HUGE:
        # Right, but no memory holds it, and TensorFlow waits ten seconds for some before it says so.
        shapes[index], fits = (1, 1, 1), False
    return [_floats(random, shape) for shape in shapes], options, not fits


def _fits(time_major, x, kernel, recurrent, bias, hidden, cell, mask):
    if len(x) != 3 or len(recurrent) != 2 or recurrent[0] < 1:
        return False
    units, batch = recurrent[0], x[1 if time_major else 0]
    states = hidden == cell == (batch, units)
    weights = kernel == (x[2], 4 * units) and recurrent == (units, 4 * units) and bias in ((0,), (4 * units,))
    return states and weights and mask in ((0, 0), x[:2]) and np.prod(np.array(x[:2], float)) < 1e12


def _draw_lstm(random):
    batch, time, features = (int(n) for n in random.generator.choice([0, 1, 2, 3, 9], 3, p=[0.05, 0.3, 0.25, 0.2, 0.2]))
    units = random.one_of([1, 2, 3, 17])
    options = {name: random.chance(0.5) for name in ("go_backwards", "time_major")}
    options |= {f"{name}_narrow_range": random.chance(0.3) for name in ("hidden", "cell")}
    options |= {f"{name}_bits": int(random.generator.integers(2, 17)) for name in ("hidden", "cell")}
    wrong_bits = random.chance(0.02)
    if wrong_bits:
        options[random.one_of(["hidden_bits", "cell_bits"])] = random.one_of([-1, 0, 1, 17, 31])
    sequence = (time, batch) if options["time_major"] else (batch, time)
    shapes = [(*sequence, features), (features, 4 * units), (units, 4 * units), (4 * units,)]
    shapes += [(batch, units), (batch, units), sequence]
    if random.chance(0.2):
        shapes[3] = (0,)
    if random.chance(0.5):
        shapes[6] = (0, 0)
    if random.chance(0.1):
        index = int(random.generator.integers(7))
        shapes[index] = _spoilt(random, shapes[index])
    refused = wrong_bits or not _fits(options["time_major"], *shapes)
    gains = (1.0, 0.5, 0.3, 1.0, 0.3, 1.0)
    arguments = [_floats(random, shape, gain) for shape, gain in zip(shapes[:6], gains, strict=True)]
    if arguments[0].size and random.chance(0.03):
        arguments[0].reshape(-1)[0] = random.one_of([np.nan, np.inf])
    arguments.append(np.zeros(shapes[6], bool) if HUGE in shapes[6] else random.generator.random(shapes[6]) < 0.7)
    for _ in range(2):
        wrong = random.chance(0.02)
        arguments += map(np.float32, random.one_of(INVALID if wrong else VALID))
        refused |= wrong
    if random.chance(0.02):
        arguments[-1], refused = np.stack([arguments[-1]] * 2), True
    # Scales that no layer has count for nothing.
    scales = np.float32(
        random.generator.choice([1e-9, 5e-3, 2e-2, 1.0, 0.0, np.nan], (3, 4), p=[0.05, 0.4, 0.4, 0.05, 0.05, 0.05])
    )
    scales = scales if random.chance(0.6) else np.zeros((0, 0), np.float32)
    if random.chance(0.02):
        scales, refused = np.zeros((3, 3), np.float32), True
    return [*arguments, scales], options, refused


def _draw_gru(random):
    batch, units = random.one_of([0, 1, 2, 3, 17]), random.one_of([1, 2, 3, 17, 40])
    options = {"num_bits": int(random.generator.integers(2, 17)), "narrow_range": random.chance(0.3)}
    refused = random.chance(0.02)
    if refused:
        options["num_bits"] = random.one_of([-1, 0, 1, 17, 31])
    shapes = [(batch, 3 * units), (batch, 3 * units), (batch, units), random.one_of([(0,), (batch,)]), (10,), (10,)]
    if random.chance(0.1):
        index = int(random.generator.integers(6))
        wrong = _spoilt(random, shapes[index])
        refused |= wrong != shapes[index] and not (index == 3 and wrong in ((0,), (batch,)))
        shapes[index] = wrong
    arguments = [_floats(random, shape, 3.0) for shape in shapes[:3]]
    arguments.append(random.generator.random(shapes[3]) < 0.7)
    plain, invalid = random.chance(0.4), random.chance(0.04)
    ranges = [PASS if plain else random.one_of(VALID) for _ in range(10)]
    if invalid:
        ranges[int(random.generator.integers(10))] = random.one_of(INVALID)
    ends = np.array(ranges, np.float32).T
    arguments += [
        end if shape == (10,) else np.zeros(shape, np.float32) for end, shape in zip(ends, shapes[4:], strict=True)
    ]
    return arguments, options, refused or invalid


def draw(name, random):
    """The arguments and attributes of one call, and whether it must be refused."""
    if name == "MatMul":
        return _draw_product(random)
    if name.startswith("GruStep"):
        arguments, options, refused = _draw_gru(random)
        if name == "GruStep":
            return arguments, options, refused
        slope = _floats(random, arguments[2].shape)
        wrong = slope.size > 0 and random.chance(0.05)
        return [slope[:, 1:] if wrong and slope.ndim > 1 else slope, *arguments], options, refused or wrong
    arguments, options, refused = _draw_lstm(random)
    if name == "QuantizedLstm":
        return arguments, options, refused
    # The forward pass of what is refused can't be had: anything will do.
    outputs, last, gates, cells = (np.zeros([1] * rank, np.float32) for rank in (3, 2, 3, 3))
    if not refused:
        outputs, last, *_, gates, cells = map(np.asarray, ops.dqat_quantized_lstm(*arguments, **options))
    slopes = [_floats(random, each.shape) for each in (outputs, last, last)]
    given = [*slopes, *arguments, outputs, gates, cells]
    if random.chance(0.1):
        index = random.one_of([0, 1, 2, 15, 16, 17])
        shape = _spoilt(random, given[index].shape)
        refused |= shape != given[index].shape
        given[index] = np.zeros(shape, np.float32)
    return given, options, refused


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def _lstm(x, kernel, recurrent, bias, hidden, cell, mask):
    """outputs, hidden and cell of [time, batch, features], in float64; nothing is quantized."""
    outputs, last = [], np.zeros_like(hidden, np.float64)
    for values, kept in zip(x.astype(np.float64), mask, strict=True):
        sums = np.clip(values @ kernel + hidden @ recurrent + bias, -8, 8)
        i, f, g, o = np.split(sums, 4, axis=1)
        new_cell = np.clip(_sigmoid(f) * cell + _sigmoid(i) * np.tanh(g), -10, 10)
        new_hidden = _sigmoid(o) * np.tanh(new_cell)
        cell, hidden = (np.where(kept[:, None], *pair) for pair in ((new_cell, cell), (new_hidden, hidden)))
        last = np.where(kept[:, None], new_hidden, last)
        outputs.append(last)
    return np.array(outputs).reshape(*x.shape[:2], hidden.shape[1]), hidden, cell


def _is_right_lstm(results, arguments, options):
    x, kernel, recurrent, bias, hidden, cell, mask = arguments[:7]
    outputs, *states = (np.asarray(each) for each in results[:3])
    if outputs.shape != (*x.shape[:2], hidden.shape[1]) or any(each.shape != hidden.shape for each in states):
        return False
    if not np.isfinite(x).all():
        return True
    if not all(np.isfinite(each).all() for each in (outputs, *states)):
        return False
    ranges = [float(each) for each in arguments[7:11]]
    if ranges != [*PASS, *PASS]:
        low, high = np.float32(ranges[0]), np.float32(ranges[1])
        levels = 2 ** options["hidden_bits"] - 1 - options["hidden_narrow_range"]
        slack = 0.0 if low > high else float(high - low) / levels  # the nudged range may lie half a level outside
        bounds = (-1.0, 1.0) if low > high else (min(low, 0.0) - slack, max(high, 0.0) + slack)
        return bool(np.all((outputs >= bounds[0]) & (outputs <= bounds[1])))
    if not options["time_major"]:
        x, mask, outputs = (np.swapaxes(each, 0, 1) for each in (x, mask if mask.size else mask.T, outputs))
    if mask.shape != x.shape[:2]:
        mask = np.ones(x.shape[:2], bool)
    if options["go_backwards"]:
        x, mask = x[::-1], mask[::-1]
    expected = _lstm(x, kernel, recurrent, bias if bias.size else np.zeros(kernel.shape[1]), hidden, cell, mask)
    return all(np.allclose(got, each, atol=1e-3) for got, each in zip((outputs, *states), expected, strict=True))


def _is_right_gradient(results, arguments):
    x, kernel, recurrent, bias = arguments[3:7]
    dsums, dkernel, drecurrent, dbias, dhidden, dcell = (np.asarray(each) for each in results)
    shapes = [(*x.shape[:2], kernel.shape[1]), kernel.shape, recurrent.shape, bias.shape, *[arguments[7].shape] * 2]
    if [each.shape for each in results] != shapes:
        return False
    if not np.isfinite(x).all():
        return True
    flat = x.shape[0] * x.shape[1]
    rows = dsums.reshape(flat, dsums.shape[-1]).astype(np.float64)
    sums = x.reshape(flat, x.shape[-1]).T.astype(np.float64) @ rows
    close = np.allclose(dkernel, sums, rtol=1e-3, atol=1e-3)
    close = close and (bias.size == 0 or np.allclose(dbias, rows.sum(0), rtol=1e-3, atol=1e-3))
    return close and all(np.isfinite(each).all() for each in (drecurrent, dhidden, dcell))


def _is_right_gru(results, arguments):
    projected, product, hidden, mask, low, _high = arguments
    after, *ends = (np.asarray(each) for each in results)
    if after.shape != hidden.shape or any(end.shape != (10,) for end in ends) or not np.isfinite(after).all():
        return False
    if not np.isposinf(low).all():
        return True
    z, r, h = (part.astype(np.float64) for part in np.split(projected, 3, axis=1))
    to_z, to_r, to_h = np.split(product, 3, axis=1)
    update, reset = _sigmoid(np.clip(z + to_z, -8, 8)), _sigmoid(np.clip(r + to_r, -8, 8))
    expected = update * hidden + (1 - update) * np.tanh(np.clip(h + reset * to_h, -8, 8))
    if mask.size:
        expected = np.where(mask[:, None], expected, hidden)
    return np.allclose(after, expected, atol=1e-4)


def _is_right_gru_gradient(results, arguments):
    _slope, projected, product, hidden, _mask, low, _high = arguments
    to_projected, to_product, to_hidden = (np.asarray(each) for each in results)
    if [each.shape for each in (to_projected, to_product, to_hidden)] != [projected.shape, product.shape, hidden.shape]:
        return False
    if not all(np.isfinite(each).all() for each in (to_projected, to_product, to_hidden)):
        return False
    gates = 2 * hidden.shape[1]
    return not np.isposinf(low[0]) or np.array_equal(to_projected[:, :gates], to_product[:, :gates])


def is_right(name, results, arguments, options):
    """Whether the results are right."""
    if name == "MatMul":
        a, b = arguments
        a, b = a.T if options["transpose_a"] else a, b.T if options["transpose_b"] else b
        got = np.asarray(results)
        return got.shape == (a.shape[0], b.shape[1]) and np.allclose(got, a @ b, rtol=1e-4, atol=1e-4)
    if name == "QuantizedLstm":
        return _is_right_lstm(results, arguments, options)
    if name == "GruStep":
        return _is_right_gru(results, arguments)
    if name == "GruStepGrad":
        return _is_right_gru_gradient(results, arguments)
    return _is_right_gradient(results, arguments)
