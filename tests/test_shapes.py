"""Static shapes: every operation keeps what is known when the graph is built, and refuses there what can't fit."""

import pytest
import tensorflow as tf

from dqat.native import ops

FLOAT, CHANNELS = tf.float32, {"per_channel": True, "axis": -1}
BINS = 2561


def graph_shapes(op, inputs, **options):
    """The static shapes of an operation's outputs, for inputs of the given shapes or (shape, dtype) pairs."""
    specs = [tf.TensorSpec(*(each if isinstance(each, tuple) else (each, FLOAT))) for each in inputs]
    outputs = tf.function(lambda *values: getattr(ops, f"dqat_{op}")(*values, **options)).get_concrete_function(*specs)
    return [None if each.shape.rank is None else each.shape.as_list() for each in outputs.outputs]


def counts(size):
    return (size, tf.int64)


def lstm(**changed):
    """The inputs of quantized_lstm for 5 features and 7 units, of an unknown batch and time."""
    shapes = {
        "x": [None, None, 5],
        "kernel": [5, 28],
        "recurrent_kernel": [7, 28],
        "bias": [28],
        "initial_hidden": [None, 7],
        "initial_cell": [None, 7],
        "mask": [0, 0],
        "operand_scales": [0, 0],
    }
    shapes |= changed
    return [*list(shapes.values())[:6], (shapes["mask"], tf.bool), *[[]] * 4, shapes["operand_scales"]]


def learned(step, signed=None, elements=()):
    return [step, (step if signed is None else signed, tf.bool), (list(elements), tf.int64)]


def gru(projected=(None, 12), product=(None, 12), hidden=(None, 4), mask=(0,), min=(10,), max=(10,)):
    return [list(projected), list(product), list(hidden), (list(mask), tf.bool), list(min), list(max)]


KEPT = [None, 3]
KNOWN = [
    ("fake_quant", [KEPT, [3], [3]], CHANNELS, [KEPT]),
    ("fake_quant", [None, [], []], {}, [None]),
    ("fake_quant_track", [KEPT, None, None], CHANNELS, [KEPT, [3], [3], [0]]),
    ("fake_quant_track", [None, [3], None], CHANNELS, [None, [3], [3], [0]]),
    ("fake_quant_track", [[None, 6], None, None], {**CHANNELS, "group_size": 2}, [[None, 6], [3], [3], [0]]),
    ("fake_quant_track", [KEPT, None, []], {}, [KEPT, [], [], [None]]),
    ("fake_quant_track", [[5, 13], [], []], {}, [[5, 13], [], [], [3]]),
    ("fake_quant_grad", [KEPT, None, [3], [3]], CHANNELS, [KEPT, [3], [3]]),
    ("fake_quant_grad", [[4, None], KEPT, [], []], {}, [[4, 3], [], []]),
    ("reach_grad", [KEPT, ([None], tf.int64)], {}, [KEPT, [], []]),
    ("reach_grad", [[5, 13], ([3], tf.int64)], {}, [[5, 13], [], []]),
    ("min_max", [KEPT], CHANNELS, [[3], [3]]),
    ("min_max", [None], CHANNELS, [[None], [None]]),
    ("min_max", [None], {}, [[], []]),
    ("fit_range", [KEPT, None], {}, [KEPT, KEPT]),
    ("histogram", [None], {}, [[], [], [BINS]]),
    ("fake_quant_histogram", [KEPT, [], []], {}, [KEPT, [], [], [BINS]]),
    ("percentile_range", [counts(None), [], [], ([], tf.float64), ([], tf.float64)], {}, [[], []]),
    ("minimum_error_range", [counts([BINS]), None, None], {}, [[], []]),
    ("fake_quant_learned", [KEPT, *learned(None)], CHANNELS, [KEPT, [3], [3]]),
    ("fake_quant_learned_grad", [None, KEPT, *learned([3])], CHANNELS, [KEPT, [3]]),
    ("gru_step", gru(), {}, [[None, 4], [10], [10]]),
    ("gru_step", gru(hidden=(5, 4), mask=(5,)), {}, [[5, 4], [10], [10]]),
    ("gru_step_grad", [None, *gru(product=(5, 12))], {}, [[5, 12], [5, 12], [5, 4]]),
    ("mat_mul", [[None, 4], [4, 5]], {}, [[None, 5]]),
    (
        "quantized_lstm",
        lstm(),
        {},
        [[None, None, 7], [None, 7], [None, 7], *[[]] * 4, [None, None, 28], [None, None, 7]],
    ),
    ("quantized_lstm", lstm(x=[2, 9, 5]), {}, [[2, 9, 7], [2, 7], [2, 7], *[[]] * 4, [2, 9, 28], [2, 9, 7]]),
    (
        "quantized_lstm_grad",
        [[None, None, 7], None, None, *lstm(), [2, 9, None], None, None],
        {},
        [[None, None, 28], [5, 28], [7, 28], [28], [None, 7], [None, 7]],
    ),
]


@pytest.mark.parametrize("op, inputs, options, expected", KNOWN, ids=lambda value: value if type(value) is str else "")
def test_what_is_known_of_shapes_is_kept(op, inputs, options, expected):
    assert graph_shapes(op, inputs, **options) == expected


WRONG = [
    ("fake_quant", [KEPT, [2], [2]], CHANNELS),
    ("fake_quant", [None, [2], [3]], CHANNELS),
    ("fake_quant", [None, [2], [2]], {}),
    ("fake_quant", [KEPT, [], []], CHANNELS),
    ("fake_quant", [KEPT, [3], [3]], {"per_channel": True, "axis": 2}),
    ("fake_quant_track", [[None, 5], None, None], {**CHANNELS, "group_size": 2}),
    ("fake_quant_grad", [KEPT, [None, 4], [], []], {}),
    ("fake_quant_grad", [[2, 3], [2], [], []], {}),
    ("fake_quant_grad", [KEPT, KEPT, [3], [4]], CHANNELS),
    ("reach_grad", [[5, 13], ([2], tf.int64)], {}),
    ("reach_grad", [KEPT, ([], tf.int64)], {}),
    ("min_max", [[2, 5]], {**CHANNELS, "group_size": 2}),
    ("min_max", [[]], CHANNELS),
    ("fit_range", [[3], [4]], {}),
    ("fake_quant_histogram", [KEPT, [3], [3]], {}),
    ("percentile_range", [counts([7]), [], [], ([], tf.float64), ([], tf.float64)], {}),
    ("percentile_range", [counts([BINS]), [], [], ([], tf.float64), ([2], tf.float64)], {}),
    ("minimum_error_range", [counts([BINS]), [1], []], {}),
    ("fake_quant_learned", [KEPT, *learned([4])], CHANNELS),
    ("fake_quant_learned", [KEPT, *learned([3], signed=[])], CHANNELS),
    ("fake_quant_learned", [KEPT, *learned([3], elements=[1])], CHANNELS),
    ("fake_quant_learned_grad", [[2, 3], [2, 4], *learned([])], {}),
    ("gru_step", gru(product=(None, 9)), {}),
    ("gru_step", gru(projected=(3, 12), product=(4, 12)), {}),
    ("gru_step", gru(hidden=(None, 5)), {}),
    ("gru_step", gru(hidden=(5, 4), mask=(6,)), {}),
    ("gru_step", gru(min=(9,)), {}),
    ("gru_step_grad", [[None, 5], *gru()], {}),
    ("mat_mul", [[None, 4], [3, 5]], {}),
    ("mat_mul", [[2, 3, 4], [4, 5]], {}),
    ("quantized_lstm", lstm(x=[None, 5]), {}),
    ("quantized_lstm", lstm(x=[None, None, 4]), {}),
    ("quantized_lstm", lstm(kernel=[5, 24]), {}),
    ("quantized_lstm", lstm(recurrent_kernel=[6, 28]), {}),
    ("quantized_lstm", lstm(kernel=[5, 30], recurrent_kernel=[7, 30]), {}),
    ("quantized_lstm", lstm(bias=[27]), {}),
    ("quantized_lstm", lstm(initial_cell=[None, 6]), {}),
    ("quantized_lstm", lstm(x=[2, None, 5], initial_hidden=[3, 7]), {}),
    ("quantized_lstm", lstm(x=[2, 9, 5], mask=[2, 8]), {}),
    ("quantized_lstm", [*lstm()[:10], [1], [2, 4]], {}),
    ("quantized_lstm", lstm(operand_scales=[3, 3]), {}),
    ("quantized_lstm_grad", [[None, None, 8], None, None, *lstm(), None, None, None], {}),
    ("quantized_lstm_grad", [None, None, [None, 8], *lstm(), None, None, None], {}),
    ("quantized_lstm_grad", [None, None, None, *lstm(x=[2, 9, 5]), [2, 8, 7], None, None], {}),
    ("quantized_lstm_grad", [None, None, None, *lstm(x=[2, 9, 5]), None, [2, 9, 27], None], {}),
    ("quantized_lstm_grad", [None, None, None, *lstm(x=[2, 9, 5]), None, None, [2, 9, 8]], {}),
]


@pytest.mark.parametrize("op, inputs, options", WRONG, ids=lambda value: value if type(value) is str else "")
def test_a_wrong_static_shape_fails_when_the_graph_is_built(op, inputs, options):
    with pytest.raises(ValueError, match="(?i)shape|dimension|axis"):
        graph_shapes(op, inputs, **options)


def test_every_operation_is_here():
    names = {name.removeprefix("dqat_") for name in dir(ops) if name.startswith("dqat_") and "eager" not in name}
    assert names == {case[0] for case in KNOWN}
