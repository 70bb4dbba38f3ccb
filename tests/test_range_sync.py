"""What a training step's graph makes of range sync: how many collectives, and what waits for them."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import speech_model

import dqat
from dqat import range_sync
from dqat.keras_api import keras
from dqat.model import named_quantizers

MARK = "range_collective"


def reduce_marked(vector, name):
    return tf.identity(vector, name=MARK)


def many_layers(count):
    inputs = outputs = keras.Input((8,), name="inputs")
    for _ in range(count):
        outputs = keras.layers.Dense(8, activation="relu")(outputs)
    return keras.Model(inputs, outputs)


def step_graph(model):
    """The graph of a training step; the gradients, before and after they are held back."""
    model_input = tf.TensorSpec([4, *model.input_shape[1:]], tf.float32)

    @tf.function
    def step(samples):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(samples, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        return gradients, model.range_sync.hold_back(gradients)

    function = step.get_concrete_function(model_input)
    gradients, held_back = (part for part in function.structured_outputs)
    return function.graph, gradients, held_back


def needed_for(operations):
    """All operations that must run before or as these."""
    found, waiting = set(), list(operations)
    while waiting:
        operation = waiting.pop()
        if operation.name not in found:
            found.add(operation.name)
            waiting += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    return found


def waiting_for(graph, operation):
    """The names of all operations that run after this one."""
    found, waiting = set(), [operation]
    while waiting:
        current = waiting.pop()
        if current.name not in found:
            found.add(current.name)
            waiting += [consumer for tensor in current.outputs for consumer in tensor.consumers()]
            waiting += current._control_outputs
    return found


def collectives(graph):
    return [operation.name for operation in graph.get_operations() if MARK in operation.name]


@pytest.fixture(params=[lambda: speech_model((6, 5)), lambda: many_layers(149)], ids=["lstm", "150 quantizers"])
def delayed(request):
    with range_sync.reductions_scope(range_sync.Reductions(reduce_marked, reduce_marked)):
        return dqat.quantize_model(request.param(), range_sync="delayed")


def test_a_delayed_step_has_one_collective_that_the_backward_pass_does_not_wait_for(delayed):
    graph, gradients, held_back = step_graph(delayed)
    (collective,) = collectives(graph)
    assert delayed.range_sync.collectives_per_step == 1
    producers = [tensor.op.inputs[0].op if tensor.op.type == "Identity" else tensor.op for tensor in gradients]
    assert collective not in needed_for(producers)
    # Only the update of weights and ranges does.
    later = waiting_for(graph, graph.get_operation_by_name(collective))
    assert all(tensor.op.name in later or tensor.op.inputs[0].op.name in later for tensor in held_back)
    assigned = [operation for operation in graph.get_operations() if operation.type == "AssignVariableOp"]
    assert sum(operation.name in later for operation in assigned) >= 2 * len(delayed.range_sync.quantizers)


def test_the_step_of_150_quantizers_has_few_operations_for_each():
    def operations(quantizers):
        with range_sync.reductions_scope(range_sync.Reductions(reduce_marked, reduce_marked)):
            model = dqat.quantize_model(many_layers(quantizers - 1), range_sync="delayed")
        graph, *_ = step_graph(model)
        (collective,) = collectives(graph)
        return len(waiting_for(graph, graph.get_operation_by_name(collective)))

    few, many = operations(10), operations(40)
    assert (many - few) / 30 < 12  # two assignments a quantizer, and what holds back its layer's two gradients


def test_ranges_that_are_updated_together_have_the_bits_of_those_updated_alone(rng):
    observers = dqat.observers
    kinds = [observers.MovingAverage(0.9), observers.LastValue(), observers.AllValues(), observers.MovingAverage(0.9)]
    spec = dqat.QuantizerSpec
    specs = [spec(), spec(axis=-1), spec(), spec(axis=-1)]

    def quantizers():
        made = [dqat.quantizers.Quantizer(each, kind) for each, kind in zip(specs, kinds, strict=True)]
        for quantizer in made:
            quantizer.build([None, 5])
        return made

    together = quantizers()
    inputs = keras.Input((5,))
    from dqat.model import QuantizedModel

    model = QuantizedModel(inputs, [quantizer(inputs) for quantizer in together])
    alone = quantizers()
    for _ in range(5):
        values = rng.normal(size=(6, 5)).astype(np.float32)
        model(values, training=True)
        for quantizer in alone:
            low, high = quantizer.record(values)
            quantizer.observe((tf.minimum(low, 0.0), tf.maximum(high, 0.0)))
    for one, other in zip(together, alone, strict=True):
        for end in ("min", "max"):
            found, expected = (getattr(each, end).numpy().view(np.int32) for each in (one, other))
            np.testing.assert_array_equal(found, expected)


def test_a_schedule_that_makes_no_sense_is_refused():
    model = dqat.quantize_model(many_layers(1))
    for start, freeze in ((-1, None), (3, 3)):
        with pytest.raises(ValueError, match=f"got start={start}, freeze={freeze}"):
            dqat.callbacks.RangeSchedule(start, freeze)
        with pytest.raises(ValueError, match=f"got start={start}, freeze={freeze}"):
            model.range_sync.schedule.set_window(start, freeze)


@pytest.mark.parametrize("mode", ["delayed", "exact"])
def test_steps_are_counted_and_kept_in_every_kind_of_file(mode, tmp_path):
    model = dqat.quantize_model(many_layers(2), range_sync=mode)
    model.range_sync.schedule.set_window(1, 7)
    for _ in range(3):
        model(tf.ones([2, 8]), training=True)
    model(tf.ones([2, 8]), training=False)
    assert model.range_sync.schedule.steps == 3
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "weights")
    other = dqat.quantize_model(many_layers(2), range_sync=mode)
    other.load_weights(tmp_path / "weights")
    for loaded in (keras.models.load_model(tmp_path / "model.keras"), other):
        assert (loaded.range_sync.schedule.steps, loaded.range_sync.schedule.window) == (3, (1, 7))
        for (_, one), (_, another) in zip(named_quantizers(loaded), named_quantizers(model), strict=True):
            assert [part.numpy() for part in one.range()] == [part.numpy() for part in another.range()]


def exact_model(make):
    with range_sync.reductions_scope(range_sync.Reductions(reduce_marked, reduce_marked)):
        return dqat.quantize_model(make(), range_sync="exact")


def three_inputs():
    """Three branches of one, two and three layers that are added; behind them two more layers."""
    layers = keras.layers
    inputs = [keras.Input((8,), name=f"input_{index}") for index in range(3)]
    branches = list(inputs)
    for index in range(3):
        for depth in range(index + 1):
            branches[index] = layers.Dense(8, "relu", name=f"branch_{index}_{depth}")(branches[index])
    outputs = layers.Dense(8, "relu", name="joined")(layers.Add(name="added")(branches))
    return keras.Model(inputs, layers.Dense(2, name="logits")(outputs))


def encoder_and_decoder():
    layers = keras.layers
    source, target = keras.Input((6, 4), name="source"), keras.Input((6, 4), name="target")
    _, *states = layers.LSTM(5, return_state=True, name="encoder")(source)
    outputs = layers.LSTM(5, return_sequences=True, name="decoder")(target, initial_state=states)
    return keras.Model([source, target], layers.Dense(3, name="logits")(outputs))


@pytest.mark.parametrize(
    ("make", "quantizers", "levels"),
    [
        # Inputs; three layers one after another in the longest branch; two sums of two; two layers.
        (three_inputs, 13, 1 + 3 + 2 + 2),
        # Both inputs; each layer's product with its inputs, within the layer; the logits, with which all states go.
        (encoder_and_decoder, 33, 4),
        (lambda: many_layers(9), 10, 10),  # a chain: each needs the one before
    ],
    ids=["branches", "encoder-decoder", "chain"],
)
def test_in_exact_mode_quantizers_that_dont_depend_on_one_another_share_a_collective(make, quantizers, levels):
    model = exact_model(make)
    specs = [tf.TensorSpec([4, *each.shape[1:]], tf.float32) for each in model.inputs]
    step = tf.function(lambda *inputs: model(list(inputs), training=True))
    graph = step.get_concrete_function(*specs).graph
    assert len(model.range_sync.quantizers) == quantizers
    assert model.range_sync.collectives_per_step == len(collectives(graph)) == levels


@pytest.mark.parametrize("make", [three_inputs, encoder_and_decoder], ids=["branches", "encoder-decoder"])
def test_a_pass_in_levels_gives_what_one_layer_after_another_gives(make, rng, monkeypatch):
    def steps():
        keras.utils.set_random_seed(0)
        model = dqat.quantize_model(make(), range_sync="exact")
        values = np.random.default_rng(0)
        outputs = []
        for _ in range(3):
            inputs = [values.normal(size=(4, *each.shape[1:])).astype(np.float32) for each in model.inputs]
            with tf.GradientTape() as tape:
                y = model(inputs, training=True)
            outputs += [y, *tape.gradient(y, model.trainable_variables)]
        return [part.numpy() for part in outputs] + [end for pair in dqat.ranges(model).values() for end in pair]

    in_levels = steps()
    monkeypatch.setattr(range_sync.RangeSync, "orders_levels", lambda self, training: False)
    for found, expected in zip(in_levels, steps(), strict=True):
        np.testing.assert_array_equal(found, expected)
