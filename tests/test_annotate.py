"""Usage of tfmot's guide, written anew with dqat's names."""

import numpy as np
import pytest
import tensorflow as tf

import dqat
from dqat import quantizers
from dqat.keras_api import keras, register

layers = keras.layers


@register("test")
class KernelConfig(dqat.QuantizeConfig):
    """The guide's configuration of a Dense layer, with 4 bits for the kernel."""

    def get_weights_and_quantizers(self, layer):
        return [(layer.kernel, quantizers.LastValueQuantizer(4, False, symmetric=True, narrow_range=True))]

    def get_activations_and_quantizers(self, layer):
        return [(layer.activation, quantizers.MovingAverageQuantizer(8, False, symmetric=False, narrow_range=False))]

    def set_quantize_weights(self, layer, quantize_weights):
        layer.kernel = quantize_weights[0]

    def set_quantize_activations(self, layer, quantize_activations):
        layer.activation = quantize_activations[0]

    def get_output_quantizers(self, layer):
        return []

    def get_config(self):
        return {}


@register("test")
class Halves(dqat.QuantizerFactory):
    """The guide's quantizer of one's own: clips to a range that is a weight."""

    def build(self, tensor_shape, name, layer):
        initializer = keras.initializers.Constant(0.5)
        return {"range": layer.add_weight(f"{name}_range", initializer=initializer, trainable=False)}

    def __call__(self, inputs, training, weights, **kwargs):
        return tf.clip_by_value(inputs, 0.0, weights["range"])

    def get_config(self):
        return {}


@register("test")
class OutputConfig(KernelConfig):
    def get_weights_and_quantizers(self, layer):
        return []

    def set_quantize_weights(self, layer, quantize_weights):
        pass

    def get_activations_and_quantizers(self, layer):
        return []

    def set_quantize_activations(self, layer, quantize_activations):
        pass

    def get_output_quantizers(self, layer):
        return [Halves()]


def samples(rng):
    return rng.normal(size=(64, 20)).astype(np.float32)


def annotated(config=None):
    return keras.Sequential(
        [
            layers.Dense(16, activation="relu", input_shape=(20,), name="first"),
            dqat.quantize_annotate_layer(layers.Dense(8, activation="relu", name="second"), config),
            layers.Flatten(name="flat"),
        ]
    )


def trained(model, x):
    model.compile("adam", "mse")
    model.fit(x, np.ones((len(x), *model.output_shape[1:])), epochs=2, verbose=0)
    return model


def test_only_marked_layers_are_quantized(rng):
    model = dqat.quantize_apply(annotated())
    trained(model, samples(rng))
    assert set(dqat.ranges(model)) == {"first_quantizer", "second/kernel", "second/output"}
    assert [row.layer for row in dqat.coverage(model).unquantized] == ["first", "flat"]
    assert type(model.get_layer("first")) is layers.Dense


def test_a_model_that_is_marked_as_a_whole_is_quantized_as_quantize_model_does(rng):
    plain = keras.Sequential([layers.Dense(16, activation="relu", input_shape=(20,)), layers.Dense(3)])
    marked = dqat.quantize_annotate_model(plain)
    marked.set_weights(plain.get_weights())
    one, other = dqat.quantize_apply(marked), dqat.quantize_model(plain)
    x = samples(rng)
    for model in (one, other):
        model(x, training=True)
    np.testing.assert_array_equal(one(x), other(x))


def test_marking_changes_nothing_before_quantization(rng):
    inner = layers.Dense(4, input_shape=(20,))
    model = keras.Sequential([dqat.quantize_annotate_layer(inner)])
    x = samples(rng)
    np.testing.assert_array_equal(model(x), inner(x))


def test_a_configuration_decides_bits_and_what_is_quantized(rng):
    model = dqat.quantize_apply(annotated(KernelConfig()))
    x = samples(rng)
    trained(model, x)
    layer = model.get_layer("second")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x))
    assert tape.gradient(loss, layer.layer.kernel) is not None
    assert layer.layer.kernel in model.trainable_variables  # the configuration's tensors were put back
    assert 10 < len(np.unique(layer.quantized_weights()["kernel"])) <= 15
    assert len(np.unique(model(x))) <= 256


def test_a_quantizer_of_ones_own_keeps_its_state_in_the_layer(rng, tmp_path):
    model = dqat.quantize_apply(annotated(OutputConfig()))
    x = samples(rng)
    trained(model, x)
    assert float(tf.reduce_max(model(x))) <= 0.5
    model.save(tmp_path / "model.keras")
    with dqat.quantize_scope():
        loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.mark.parametrize("per_axis", [False, True])
def test_the_four_quantizers_have_tfmots_arguments(per_axis):
    for cls in (quantizers.LastValueQuantizer, quantizers.MovingAverageQuantizer, quantizers.AllValuesQuantizer):
        made = cls(num_bits=4, per_axis=per_axis, symmetric=True, narrow_range=True)
        assert made == cls.from_config(made.get_config())
        state = made.build((3, 5), "x", None)
        state["quantizer"](tf.ones((3, 5)), training=True)
        assert state["quantizer"].range()[1].shape == ([5] if per_axis else [])


def test_a_fixed_quantizer_honours_its_bits():
    made = quantizers.FixedQuantizer(num_bits=4, init_min=-1.0, init_max=1.0, narrow_range=False)
    state = made.build((7,), "x", None)
    values = made(tf.linspace(-2.0, 2.0, 1000), True, state)
    assert len(np.unique(values)) == 16


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: dqat.quantize_annotate_layer(keras.Sequential()), "can only be a `keras.layers.Layer`"),
        (lambda: dqat.quantize_annotate_layer(layers.Dense(2), "int8"), "can only be a `QuantizeConfig`, got str"),
        (lambda: dqat.quantize_annotate_model(layers.Dense(2)), "can only be a Sequential or functional"),
        (
            lambda: dqat.quantize_apply(keras.Sequential([layers.Dense(2, input_shape=(3,))])),
            "has no layer that quantize_annotate_layer",
        ),
    ],
)
def test_what_cannot_be_marked_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
