"""Weights are fake-quantized once a step: not once a call of their layer, and not once a timestep."""

import numpy as np
import pytest
import tensorflow as tf

import dqat
from dqat.keras_api import keras

layers = keras.layers


def called_twice(layer, *shape):
    a, b = keras.Input(shape), keras.Input(shape)
    return keras.Model([a, b], layers.Add()([layer(a), layer(b)]))


def nested_three_times():
    x = keras.Input((8,))
    inner = keras.Sequential([layers.Dense(8, input_shape=(8,)), layers.Dense(8)])
    return keras.Model(x, inner(inner(inner(x))))


def recurrent(layer):
    x = keras.Input((6, 3))
    return keras.Model(x, layers.Dense(2)(layer(x)))


MODELS = {
    "shared Dense": lambda: called_twice(layers.Dense(4), 5),
    "shared Conv2D": lambda: called_twice(layers.Conv2D(4, 3), 8, 8, 2),
    "shared LSTM": lambda: called_twice(layers.LSTM(4), 6, 3),
    "nested model, called three times": nested_three_times,
    "LSTM": lambda: recurrent(layers.LSTM(4)),
    "LSTM with dropout within": lambda: recurrent(layers.LSTM(4, recurrent_dropout=0.1)),
    "GRU": lambda: recurrent(layers.GRU(4)),
    "bidirectional GRU": lambda: recurrent(layers.Bidirectional(layers.GRU(4))),
}


def operations(graph):
    """The kinds of all operations of a graph, those in its loops included."""
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    # The largest value that a range can hold is asked by quantizing the range's end: one number, and no weight.
    return [node.op for node in nodes if node.op != "Dqat>FakeQuant" or node.input[0] != node.input[2]]


def inputs_of(model):
    return [
        tf.constant(np.random.default_rng(0).normal(size=[2, *each.shape[1:]]), tf.float32) for each in model.inputs
    ]


@pytest.mark.parametrize("name", MODELS)
def test_each_weight_is_quantized_by_one_operation_a_step(name):
    model = dqat.quantize_model(MODELS[name]())

    @tf.function
    def step(values):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(values, training=True))
        return tape.gradient(loss, model.trainable_variables)

    values = inputs_of(model)
    found = operations(step.get_concrete_function(values if len(values) > 1 else values[0]).graph)
    weights = sum(len(layer.weight_specs()) for layer in model.layers if hasattr(layer, "weight_specs"))
    # Activations are quantized and recorded in one, by another operation.
    assert found.count("Dqat>FakeQuant") == weights > 0


@pytest.mark.parametrize("eager", [True, False])
def test_a_shared_layer_has_the_gradient_of_both_calls(eager):
    shared = dqat.quantize_model(called_twice(layers.Dense(4, name="dense"), 5))
    values = inputs_of(shared)
    shared(values, training=True)  # ranges

    def gradient(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(shared(x)))
        return tape.gradient(loss, shared.trainable_variables)[0]

    got = (gradient if eager else tf.function(gradient))(values)
    again = (gradient if eager else tf.function(gradient))(values)
    np.testing.assert_array_equal(got, again)
    # The weights of the next pass are quantized anew.
    kernel = shared.trainable_variables[0]
    kernel.assign(2.0 * kernel)
    changed = (gradient if eager else tf.function(gradient))(values)
    assert np.abs(changed - got).max() > 0.1 * np.abs(got).max()
