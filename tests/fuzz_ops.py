"""Random calls of the ops, each checked: what `tests/test_fuzz.py` runs in a process of its own.

python tests/fuzz_ops.py PROGRESS_FILE FIRST_OP CALLS   # all ops from FIRST_OP on
python -c "import fuzz_ops; fuzz_ops.call('MinMax', 123)"   # one call again, in tests/
"""

import json
import pathlib
import sys

import numpy as np
import reference
import tensorflow as tf

from dqat.native import ops

OPS = {
    "FakeQuant": ops.dqat_fake_quant,
    "FakeQuantTrack": ops.dqat_fake_quant_track,
    "FakeQuantGrad": ops.dqat_fake_quant_grad,
    "MinMax": ops.dqat_min_max,
    "FitRange": ops.dqat_fit_range,
}
REFUSALS = (tf.errors.InvalidArgumentError, TypeError, ValueError, OverflowError)
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-40, 1.2e-38, 3.4e38, -3.4e38], np.float32)
# float32 ranges: some usual, some at the edges of what is valid, some beyond.
VALID = [(-1, 1), (0, 6), (-3, 0), (2, 3), (-0.1, 0.7), (0, 0), (np.inf, -np.inf), (-1e38, 1e38), (0, 3e-36)]
SMALL = [(0, 1e-45), (-1e-40, 1e-40), (-1e-37, 1e-37), (1e-40, 1e-40), (2e-40, 1e-40)]
INVALID = [(1, -1), (np.nan, 1), (-1, np.nan), (-1, np.inf), (-np.inf, np.inf), (0.5, 0.5), (-3e38, 3e38), (np.inf, 0)]
# An axis that only an empty tensor can have: 256 TiB of channels, beyond any address space.
HUGE = 2**46
WRONG_BITS = [-(2**31), -1, 0, 1, 17, 31, 32, 2**31 - 1, 2**40]
SMALL_FLOATS = [np.float16, tf.bfloat16.as_numpy_dtype]
WRONG_TYPES = [np.float64, np.int32, np.bool_, np.complex64, np.str_]


class Random:
    """What the calls are drawn from. The numbers of one call depend on its name and index alone."""

    def __init__(self, name, index):
        self.generator = np.random.default_rng((list(OPS).index(name), index))

    def chance(self, probability):
        return self.generator.random() < probability

    def one_of(self, options):
        return options[int(self.generator.integers(len(options)))]

    def shape(self):
        if self.chance(0.004):
            return self.one_of([(0, HUGE), (HUGE, 0), (2, 0, HUGE)])
        if self.chance(0.01):
            return self.one_of([(40_000,), (700, 70), (3, 20_000), (2, 5, 7_000), (20_000, 3, 1)])
        rank = int(self.generator.integers(6))
        return tuple(
            int(n) for n in self.generator.choice([0, 1, 2, 3, 5, 9], rank, p=[0.05, 0.2, 0.25, 0.2, 0.2, 0.1])
        )

    def values(self, shape, magnitude=8):
        values = self.generator.standard_normal(shape, np.float32)
        values *= np.float32(10.0 ** self.generator.integers(-magnitude, magnitude + 1) if self.chance(0.3) else 1.0)
        if values.size and self.chance(0.2):
            places = self.generator.integers(values.size, size=3)
            values.reshape(-1)[places] = self.generator.choice(SPECIAL, 3)
        return values

    def range(self, shape):
        """min and max of a shape, drawn from the tables above or at random."""
        if self.chance(0.04):
            return self.values(shape), self.values(shape)
        pairs = np.array(4 * VALID + self.chance(0.3) * SMALL + self.chance(0.1) * INVALID, np.float32)
        chosen = pairs[self.generator.integers(len(pairs), size=shape)]
        return chosen[..., 0], chosen[..., 1]


def draw(name, index):
    """The arguments and attributes of one call, and whether it must be refused."""
    random = Random(name, index)
    options, refused = {}, False
    if name != "MinMax":
        wrong = random.chance(0.05)
        options["num_bits"] = random.one_of(WRONG_BITS) if wrong else int(random.generator.integers(2, 17))
        options["narrow_range"] = random.chance(0.5)
        refused |= wrong
    shape = random.shape()
    if name == "FitRange":
        options |= {"symmetric": random.chance(0.5), "power_of_two": random.chance(0.3)}
        if np.prod(shape, dtype=np.float64) > 1e6 or HUGE in shape:
            shape = ()
        low, high = random.range(shape)
        if random.chance(0.05):
            low, refused = np.stack([low, low]), True
        return [low, high], options, refused
    axis = None
    if random.chance(0.6):
        axis = int(random.generator.integers(-len(shape), len(shape))) if shape else 0
        if random.chance(0.05):
            axis = random.one_of([-(2**31), -7, -6, 5, 6, 2**31 - 1, 2**40])
        refused |= not -len(shape) <= axis < len(shape)
    group_size = 1
    if axis is not None and random.chance(0.3):
        group_size = int(random.generator.integers(1, 5))
        refused = refused or shape[axis] % group_size != 0
    options |= {"per_channel": axis is not None, "axis": -1 if axis is None else axis, "group_size": group_size}
    x = random.values(shape)
    arguments = [x]
    if name == "FakeQuantGrad":
        dy = random.values(shape, magnitude=2)
        dy[np.abs(dy) > 1e38] = np.inf  # finite ones would overflow in sums
        if random.chance(0.03):
            dy, refused = np.stack([dy, dy]), True
        arguments = [dy, x]
    if random.chance(0.03):
        with np.errstate(invalid="ignore"):
            arguments = [value.astype(random.one_of(WRONG_TYPES)) for value in arguments]
        refused = True
    elif random.chance(0.3):
        dtype = random.one_of(SMALL_FLOATS)
        with np.errstate(over="ignore"):
            arguments = [value.astype(dtype) for value in arguments]
    if name != "MinMax":
        wanted = () if axis is None or refused else (shape[axis] // group_size,)
        given = wanted
        if random.chance(0.05) or wanted > (HUGE // 8,):
            given = random.one_of([(), (1,), (2,), (3,), (7,), (0,), (1, 1), (2, 3)])
        low, high = random.range(given)
        refused |= given != wanted or not np.all(reference.is_valid(low, high))
        arguments += [low, high]
    return arguments, options, refused


def to_array(value):
    """Of a tensor or an array; NumPy itself can't make one of a bfloat16 scalar tensor."""
    return np.asarray(value.numpy() if tf.is_tensor(value) else value)


def same(got, expected, dtype=np.float32):
    """The same bits, after rounding what is expected to `dtype`; all NaNs are one value."""
    got = to_array(got)
    if got.shape != np.shape(expected) or got.dtype != dtype:
        return False
    with np.errstate(over="ignore"):
        got, expected = (np.asarray(value).astype(dtype).astype(np.float32) for value in (got, expected))
    equal = got.view(np.int32) == expected.view(np.int32)
    return bool(np.all(equal | (np.isnan(got) & np.isnan(expected))))


def same_but_subnormals(got, expected, dtype=np.float32):
    """The same, where a subnormal number may come out as it is or as 0: to every kernel it is 0. So is -0."""
    zero = np.float32(0)
    got = to_array(got)
    if got.dtype != dtype:
        return False
    with np.errstate(over="ignore"):
        got, expected = (np.asarray(value).astype(dtype).astype(np.float32) for value in (got, expected))
    return same(reference.flush(got) + zero, reference.flush(expected) + zero)


def close_sums(got, expected, size, x):
    """Float32 sums: each addition is off by at most half an epsilon of the sum of magnitudes."""
    got = to_array(got)
    with np.errstate(all="ignore"):
        close = np.abs(got - expected) <= x.size * np.finfo(np.float32).eps * size + 1e-37
    return got.shape == np.shape(expected) and bool(
        np.all(close | (got == expected) | (np.isnan(got) & np.isnan(expected)))
    )


def is_right(name, results, arguments, options):
    """Whether the results are those of the reference."""
    options = dict(options)
    if name == "FitRange":
        expected = reference.fit_range(*arguments, **options)
        return all(same_but_subnormals(a, b) for a, b in zip(results, expected, strict=True))
    per_channel, group_size = options.pop("per_channel"), options.pop("group_size")
    tensors = 2 if name == "FakeQuantGrad" else 1
    shape, dtype = arguments[0].shape, arguments[0].dtype
    if per_channel:
        # A group of channels is one channel of a tensor that has the rest of the axis in the next one.
        axis = options["axis"] = options["axis"] % len(shape)
        split = (*shape[:axis], shape[axis] // group_size, group_size, *shape[axis + 1 :])
    else:
        options["axis"], split = None, shape
    arguments = [*(v.astype(np.float32).reshape(split) for v in arguments[:tensors]), *arguments[tensors:]]
    if name == "MinMax":
        return all(map(same, results, reference.min_max(*arguments, **options)))
    if name == "FakeQuantGrad":
        dx, *sums = reference.gradients(*arguments, **options)
        return same_but_subnormals(results[0], dx.reshape(shape), dtype) and all(
            close_sums(results[i + 1], sums[i], sums[i + 2], arguments[1]) for i in range(2)
        )
    y, *records = results if name == "FakeQuantTrack" else [results]
    expected = reference.min_max(arguments[0], axis=options["axis"])
    y_expected = reference.fake_quant(*arguments, **options).reshape(shape)
    return same(y, y_expected, dtype) and all(map(same, records, expected))


def call(name, index):
    """Makes one call; returns "right" or "refused", or says what went wrong."""
    arguments, options, refused = draw(name, index)
    try:
        results = OPS[name](*map(tf.constant, arguments), **options)
    except REFUSALS as error:
        return "refused" if refused else f"refused for no reason: {error}"
    except tf.errors.ResourceExhaustedError:
        # A record of HUGE channels, which only an empty tensor can ask for.
        return "refused" if name == "MinMax" and HUGE in np.shape(arguments[0]) else "out of memory"
    if refused:
        return "not refused"
    return "right" if is_right(name, results, arguments, options) else "wrong result"


def main(progress_file, first, calls):
    names = list(OPS)
    with open(progress_file, "r+b", buffering=0) as progress:
        for name in names[names.index(first) :]:
            counts, problems = {"right": 0, "refused": 0}, []
            for index in range(calls):
                # What the parent reads where this process dies or hangs.
                progress.seek(0)
                progress.write(f"{name} {index:8d}\n".encode().ljust(64))
                outcome = call(name, index)
                if outcome in counts:
                    counts[outcome] += 1
                else:
                    problems.append(f"call {index}: {outcome}")
            print(json.dumps({"op": name, "problems": problems[:10], **counts}), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
