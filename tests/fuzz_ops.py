"""Random calls of the ops, each checked: what `tests/test_fuzz.py` runs in a process of its own.

python tests/fuzz_ops.py PROGRESS_FILE CALLS OP ...
python -c "import fuzz_ops; fuzz_ops.call('MinMax', 123)"   # one call again, in tests/
"""

import json
import pathlib
import sys

import fuzz_recurrent
import numpy as np
import reference
import tensorflow as tf

from dqat.native import ops

OPS = {
    "FakeQuant": ops.dqat_fake_quant,
    "FakeQuantTrack": ops.dqat_fake_quant_track,
    "FakeQuantGrad": ops.dqat_fake_quant_grad,
    "ReachGrad": ops.dqat_reach_grad,
    "MinMax": ops.dqat_min_max,
    "FitRange": ops.dqat_fit_range,
    "Histogram": ops.dqat_histogram,
    "FakeQuantHistogram": ops.dqat_fake_quant_histogram,
    "PercentileRange": ops.dqat_percentile_range,
    "MinimumErrorRange": ops.dqat_minimum_error_range,
    "FakeQuantLearned": ops.dqat_fake_quant_learned,
    "FakeQuantLearnedGrad": ops.dqat_fake_quant_learned_grad,
    **fuzz_recurrent.OPS,
}
WITHOUT_BITS = ("MinMax", "Histogram", "PercentileRange", "ReachGrad")
WITHOUT_AXIS = ("Histogram", "FakeQuantHistogram", "ReachGrad")
GRADIENTS = ("FakeQuantGrad", "FakeQuantLearnedGrad")
REFUSALS = (tf.errors.InvalidArgumentError, TypeError, ValueError, OverflowError)
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-40, 1.2e-38, 3.4e38, -3.4e38], np.float32)
# float32 ranges: some usual, some at the edges of what is valid, some beyond.
VALID = [(-1, 1), (0, 6), (-3, 0), (2, 3), (-0.1, 0.7), (0, 0), (np.inf, -np.inf), (-1e38, 1e38), (0, 3e-36)]
SMALL = [(0, 1e-45), (-1e-40, 1e-40), (-1e-37, 1e-37), (1e-40, 1e-40), (2e-40, 1e-40)]
INVALID = [(1, -1), (np.nan, 1), (-1, np.nan), (-1, np.inf), (-np.inf, np.inf), (0.5, 0.5), (-3e38, 3e38), (np.inf, 0)]
STEPS = [1.0, 0.02, 2.0**-7, 3e-4, 1e-20, 0.0, -0.0, 2.0**-120, 1e-37, 1e-40, -1e-40, 40.0, 1e30]
IMPOSSIBLE_STEPS = [-1.0, -1e-37, np.nan, np.inf, -np.inf, 3.4e38]
PERCENTILES = [(0.0, 100.0), (0.01, 99.99), (1.0, 99.0), (49.9, 50.1), (0.0, 75.5)]
WRONG_PERCENTILES = [(-0.1, 99.0), (50.0, 99.0), (1.0, 50.0), (1.0, 100.1), (np.nan, 99.0), (1.0, np.inf)]
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


def draw_bits(random):
    """num_bits and narrow_range, and whether they must be refused."""
    wrong = random.chance(0.05)
    num_bits = random.one_of(WRONG_BITS) if wrong else int(random.generator.integers(2, 17))
    return {"num_bits": num_bits, "narrow_range": random.chance(0.5)}, wrong


def draw_fit_range(random, options):
    shape = random.shape()
    options |= {"symmetric": random.chance(0.5), "power_of_two": random.chance(0.3)}
    if np.prod(shape, dtype=np.float64) > 1e6 or HUGE in shape:
        shape = ()
    low, high = random.range(shape)
    if random.chance(0.05):
        return [low, np.stack([high, high])], True
    return [low, high], False


def draw_histogram(random, name, options):
    """counts of some values, or a few bins drawn alone, with extremes that fit or don't."""
    x = random.values(int(random.generator.integers(0, 30)))
    counts = reference.counts(x)
    low, high = (np.float32(end + 0.0) for end in reference.min_max(x[np.isfinite(x)]))
    if low <= high:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    if random.chance(0.2):
        bins = random.generator.integers(reference.BINS, size=5)
        counts[bins] += random.generator.integers(2 ** int(random.generator.integers(1, 45)), size=5)
    refused = False
    if random.chance(0.1):
        low, high = random.range(())
    if random.chance(0.03):
        counts[random.generator.integers(reference.BINS)], refused = random.one_of([-1, -(2**63)]), True
    if random.chance(0.03):
        wrong = [counts[:-1], counts[:0], counts[:1].reshape(()), np.stack([counts, counts]), counts.astype(np.int32)]
        counts, refused = wrong[int(random.generator.integers(len(wrong)))], True
    # Subnormals are taken as 0.
    low_seen, high_seen = reference.flush(low), reference.flush(high)
    contains_zero = (low_seen <= 0 <= high_seen) or reference.is_empty(low, high)
    refused |= not (reference.is_valid(low, high) and contains_zero)
    arguments = [counts, np.float32(low), np.float32(high)]
    if name == "PercentileRange":
        wrong = random.chance(0.03)
        arguments += map(np.float64, random.one_of(WRONG_PERCENTILES if wrong else PERCENTILES))
        refused |= wrong
    else:
        options |= {"symmetric": random.chance(0.5), "power_of_two": random.chance(0.3)}
    if random.chance(0.02):
        index = 1 + int(random.generator.integers(len(arguments) - 1))
        arguments[index], refused = np.stack([arguments[index]] * 2), True
    return arguments, refused


def draw(name, index):
    """The arguments and attributes of one call, and whether it must be refused."""
    random = Random(name, index)
    if name in fuzz_recurrent.OPS:
        return fuzz_recurrent.draw(name, random)
    options, refused = ({}, False) if name in WITHOUT_BITS else draw_bits(random)
    if name == "FitRange":
        arguments, wrong = draw_fit_range(random, options)
        return arguments, options, refused or wrong
    if name in ("PercentileRange", "MinimumErrorRange"):
        arguments, wrong = draw_histogram(random, name, options)
        return arguments, options, refused or wrong
    shape = random.shape()
    axis, group_size = None, 1
    if name not in WITHOUT_AXIS and random.chance(0.6):
        axis = int(random.generator.integers(-len(shape), len(shape))) if shape else 0
        if random.chance(0.05):
            axis = random.one_of([-(2**31), -7, -6, 5, 6, 2**31 - 1, 2**40])
        refused |= not -len(shape) <= axis < len(shape)
    if axis is not None and random.chance(0.3):
        group_size = int(random.generator.integers(1, 5))
        refused = refused or shape[axis] % group_size != 0
    if name not in WITHOUT_AXIS:
        options |= {"per_channel": axis is not None, "axis": -1 if axis is None else axis, "group_size": group_size}
    if name == "FakeQuantTrack" and random.chance(0.4):
        options["activation"] = random.one_of(["relu", "relu6", "relu", "relu6", "linear", "tanh"])
        refused |= options["activation"] == "tanh" or (options["activation"] != "linear" and axis is not None)
    x = random.values(shape)
    arguments = [x]
    if name == "ReachGrad":
        x[np.abs(x) > 1e38] = np.inf  # finite ones would overflow in sums
    if name in GRADIENTS:
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
    if name in ("MinMax", "Histogram"):
        return arguments, options, refused
    if name == "ReachGrad":
        words = random.generator.integers(-(2**63), 2**63, -(-x.size // 32))
        if random.chance(0.05):
            words = random.one_of([np.append(words, 0), words.reshape(-1, 1), words.astype(np.int32)])
            refused = True
        return [*arguments, words], options, refused
    wanted = () if axis is None or refused else (shape[axis] // group_size,)
    given = wanted
    if random.chance(0.05) or wanted > (HUGE // 8,):
        given = random.one_of([(), (1,), (2,), (3,), (7,), (0,), (1, 1), (2, 3)])
    refused |= given != wanted
    if "Learned" not in name:
        low, high = random.range(given)
        return [*arguments, low, high], options, refused or not np.all(reference.is_valid(low, high))
    steps = random.generator.choice(STEPS + random.chance(0.1) * IMPOSSIBLE_STEPS, given).astype(np.float32)
    signed = random.generator.random(given) < 0.7
    if random.chance(0.02):
        signed, refused = np.stack([signed, signed]), True
    elements = np.int64(random.one_of([0, 1, 77, 2**40, -1]))
    if random.chance(0.02):
        elements, refused = np.stack([elements, elements]), True
    if not refused:
        refused = not np.all(reference.is_valid_step(steps, signed, options["num_bits"], options["narrow_range"]))
    return [*arguments, steps, signed, elements], options, refused


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


def is_right_range(name, results, arguments, options):
    counts, low, high = arguments[:3]
    if name == "PercentileRange":
        return all(map(same_but_subnormals, results, reference.percentile_range(*arguments)))
    found = [np.float32(to_array(part)) for part in results]
    if reference.is_empty(low, high):
        return found == [low, high]
    ends = [reference.range_ends(reference.flush(end)) for end in (low, high)]
    # Against ranges that are drawn in from both ends together: the search may find better ones, never worse.
    places = np.arange(0, max(map(len, ends)), 4)
    tried = [end[np.minimum(places, len(end) - 1)] for end in ends]
    together = [np.append(a, b) for a, b in zip(tried, found, strict=True)]
    errors = reference.histogram_errors(counts, (low, high), *together, **options)
    # A bin beyond the extremes, as no values give it, counts as nearly a point, where the integral's terms cancel.
    bins = np.flatnonzero(counts)
    beyond = (reference.LOWER_EDGES[bins] > high) | (reference.UPPER_EDGES[bins] < low)
    slack = (1e-6 if beyond.any() else 1e-9) * errors[np.isfinite(errors)].max(initial=0)
    stand = all(np.any(reference.flush(part) == reference.flush(end)) for part, end in zip(found, ends, strict=True))
    return stand and (errors[-1] <= errors[:-1].min() + slack or not np.isfinite(errors).any())


def is_right(name, results, arguments, options):
    """Whether the results are those of the reference."""
    if name in fuzz_recurrent.OPS:
        return fuzz_recurrent.is_right(name, results, arguments, options)
    options = dict(options)
    if name == "FitRange":
        expected = reference.fit_range(*arguments, **options)
        return all(same_but_subnormals(a, b) for a, b in zip(results, expected, strict=True))
    if name in ("PercentileRange", "MinimumErrorRange"):
        return is_right_range(name, results, arguments, options)
    per_channel, group_size = options.pop("per_channel", False), options.pop("group_size", 1)
    tensors = 2 if name in GRADIENTS else 1
    shape, dtype = arguments[0].shape, arguments[0].dtype
    if per_channel:
        # A group of channels is one channel of a tensor that has the rest of the axis in the next one.
        axis = options["axis"] = options["axis"] % len(shape)
        split = (*shape[:axis], shape[axis] // group_size, group_size, *shape[axis + 1 :])
    else:
        options["axis"], split = None, shape
    arguments = [*(v.astype(np.float32).reshape(split) for v in arguments[:tensors]), *arguments[tensors:]]
    if name in ("MinMax", "Histogram"):
        counted = name == "MinMax" or np.array_equal(results[2], reference.counts(arguments[0]))
        return counted and all(map(same, results, reference.min_max(arguments[0], **options)))
    if name == "ReachGrad":
        dx, *sums = reference.reach_gradients(*arguments)
        return same_but_subnormals(results[0], dx, dtype) and all(
            close_sums(results[i + 1], sums[i], sums[i + 2], arguments[0]) for i in range(2)
        )
    if name == "FakeQuantGrad":
        dx, *sums = reference.gradients(*arguments, **options)
        return same_but_subnormals(results[0], dx.reshape(shape), dtype) and all(
            close_sums(results[i + 1], sums[i], sums[i + 2], arguments[1]) for i in range(2)
        )
    if name == "FakeQuantLearnedGrad":
        dx, dstep, size = reference.learned_gradients(*arguments, **options)
        return same_but_subnormals(results[0], dx.reshape(shape), dtype) and close_sums(
            results[1], dstep, size, arguments[1]
        )
    if name == "FakeQuantLearned":
        x, step, signed, _ = arguments
        arguments = [x, *reference.learned_range(step, signed, options["num_bits"], options["narrow_range"])]
    elif name == "FakeQuantHistogram":
        *results, counts = results
        if not np.array_equal(counts, reference.counts(arguments[0])):
            return False
    elif name == "FakeQuantTrack":
        *results, words = results
        one_range = {key: value for key, value in options.items() if key != "axis"}
        expected = np.zeros(0, np.int64) if per_channel else reference.reach(*arguments, **one_range)
        if not np.array_equal(words, expected):
            return False
    y, *records = [results] if name == "FakeQuant" else results
    # Where values pass through, ReLU flushes subnormals.
    same_y = same if (activation := options.pop("activation", "linear")) == "linear" else same_but_subnormals
    arguments[0] = reference.activate(arguments[0], activation)
    expected = reference.min_max(arguments[0], axis=options["axis"])
    y_expected = reference.fake_quant(*arguments, **options).reshape(shape)
    return same_y(y, y_expected, dtype) and all(map(same, records, expected))


def call(name, index):
    """Makes one call; returns "right" or "refused", or says what went wrong."""
    arguments, options, refused = draw(name, index)
    try:
        results = OPS[name](*map(tf.constant, arguments), **options)
    except REFUSALS as error:
        return "refused" if refused else f"refused for no reason: {error}"
    except tf.errors.ResourceExhaustedError:
        # Results of HUGE length, which only an empty tensor can ask for.
        return "refused" if any(HUGE in np.shape(each) for each in arguments) else "out of memory"
    if refused:
        return "not refused"
    return "right" if is_right(name, results, arguments, options) else "wrong result"


def main(progress_file, calls, names):
    with open(progress_file, "r+b", buffering=0) as progress:
        for name in names:
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
    # Tensors are small, and the other ops run beside this process.
    tf.config.threading.set_intra_op_parallelism_threads(2)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
