"""Subclassed models go the whole way: quantize, train, save and load, export, verify."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import compiled

import dqat
from dqat.keras_api import keras

layers = keras.layers


class ResidualBlock(layers.Layer):
    """Holds its layers in a dictionary, and adds with an operation."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.parts = {
            "conv": layers.Conv2D(filters, 3, padding="same"),
            "norm": layers.BatchNormalization(),
            "again": layers.Conv2D(filters, 3, padding="same"),
        }

    def call(self, x, training=None):
        y = tf.nn.relu(self.parts["norm"](self.parts["conv"](x), training=training))
        return tf.nn.relu(x + self.parts["again"](y))


class ResidualNetwork(keras.Model):
    """Blocks in a list, a Sequential head in an attribute."""

    def __init__(self, blocks=2, **kwargs):
        super().__init__(**kwargs)
        self.stem = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")
        self.blocks = [ResidualBlock(8) for _ in range(blocks)]
        self.head = keras.Sequential([layers.Flatten(), layers.Dense(9)])

    def call(self, images, training=None):
        x = self.stem(images)
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(x)


class EncoderDecoder(keras.Model):
    """Summarises a sequence and decodes the summary into another one."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.encoder = layers.LSTM(16)
        self.bridge = layers.RepeatVector(6)
        self.decoder = layers.LSTM(12, return_sequences=True)
        self.label = layers.Dense(9)

    def call(self, frames):
        return self.label(self.decoder(self.bridge(self.encoder(frames))))


class EncoderBlock(layers.Layer):
    """Attention and two Dense layers, each added to what went in and normalized."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, width // 2)
        self.feed_forward = [layers.Dense(2 * width, activation="relu"), layers.Dense(width)]
        self.norms = [layers.LayerNormalization() for _ in range(2)]

    def call(self, x):
        x = self.norms[0](x + self.attention(x, x))
        hidden, out = self.feed_forward
        return self.norms[1](x + out(hidden(x)))


class TransformerEncoder(keras.Model):
    """Frames and their places, two blocks, the mean over time."""

    def __init__(self, width=16, blocks=2, **kwargs):
        super().__init__(**kwargs)
        self.projection = layers.Dense(width)
        rng = np.random.default_rng(5)
        self.places = rng.normal(size=(8, width)).astype(np.float32)
        self.blocks = [EncoderBlock(width) for _ in range(blocks)]
        self.mean, self.label = layers.GlobalAveragePooling1D(), layers.Dense(9)

    def call(self, frames):
        x = self.projection(frames) + self.places
        for block in self.blocks:
            x = block(x)
        return self.label(self.mean(x))


def images_of(rng, count):
    """Nine classes of images: the brighter row tells the class."""
    labels = np.arange(count) % 9
    images = 0.3 * rng.normal(size=(count, 18, 18, 1)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 1.0
    return images, labels


def sequences_of(rng, count):
    """The answer is the class of the first frames, six times."""
    labels = np.arange(count) % 9
    frames = 0.2 * rng.normal(size=(count, 8, 9)).astype(np.float32)
    frames[np.arange(count), :4, labels] += 1.0
    return frames, np.repeat(labels[:, None], 6, axis=1)


def orders_of(rng, count):
    """The answer is the class of the first half and of the second half, as one of nine."""
    halves = np.stack([np.arange(count) % 3, np.arange(count) // 3 % 3], axis=1)
    frames = 0.2 * rng.normal(size=(count, 8, 9)).astype(np.float32)
    for half in range(2):
        frames[np.arange(count), 4 * half : 4 * half + 4, halves[:, half]] += 1.0
    return frames, 3 * halves[:, 0] + halves[:, 1]


CASES = {
    "residual CNN": (ResidualNetwork, images_of),
    "encoder-decoder LSTM": (EncoderDecoder, sequences_of),
    "transformer encoder": (TransformerEncoder, orders_of),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A model trained in float, its quantized copy, trained too, and data."""
    make, data_of = CASES[request.param]
    keras.utils.set_random_seed(0)
    samples, labels = data_of(np.random.default_rng(0), 270)
    model = compiled(make(), 5e-3)
    model.fit(samples, labels, batch_size=30, epochs=20, verbose=0)
    quantized = compiled(dqat.quantize_model(model), 5e-4)
    quantized.fit(samples, labels, batch_size=30, epochs=2, verbose=0)
    return make, model, quantized, samples, labels


def test_it_trains_and_stays_as_good_as_in_float(case):
    _, model, quantized, samples, labels = case
    floats, simulated = (one.evaluate(samples, labels, verbose=0)[1] for one in (model, quantized))
    assert floats > 0.9
    assert simulated > floats - 0.02


def test_all_its_layers_are_quantized_and_the_operations_between_them(case):
    _, model, quantized, *_ = case
    report = dqat.coverage(quantized)
    kernels = {row.layer for row in report.rows if row.tensor == "kernel"}
    inside = (layers.LSTM, layers.MultiHeadAttention)  # their rows are their own
    leaves = {
        layer.name
        for layer in model._flatten_layers(recursive=True, include_self=False)
        if hasattr(layer, "kernel") and not isinstance(layer, layers.LSTM)
    }
    parts = {part.name for layer in model._flatten_layers() if isinstance(layer, inside) for part in layer.submodules}
    assert kernels >= leaves - parts
    assert {row.layer for row in report.rows} >= {
        layer.name for layer in model._flatten_layers() if isinstance(layer, inside)
    }
    assert not [row for row in report.unquantized if "stays in float" in row.how]


def test_weights_are_saved_and_loaded_to_the_bit(case, tmp_path):
    make, _, quantized, samples, _ = case
    quantized.save(tmp_path / "whole.keras")
    quantized.save_weights(tmp_path / "weights.h5")
    fresh = make()
    fresh(samples[:1])
    restored = dqat.quantize_model(fresh)
    restored.load_weights(tmp_path / "weights.h5")
    for other in (restored, keras.models.load_model(tmp_path / "whole.keras")):
        np.testing.assert_array_equal(other.predict(samples, verbose=0), quantized.predict(samples, verbose=0))


def test_it_is_exported_in_integers_and_gives_what_the_simulation_gives(case, tmp_path):
    _, _, quantized, samples, _ = case
    dqat.export_tflite(quantized, tmp_path / "model.tflite")
    parity = dqat.verify(quantized, tmp_path / "model.tflite", samples[:90])
    assert parity.within_1_lsb > 0.99


def test_the_float_model_stays_as_it_is(case):
    _, model, _, _, _ = case
    before = [weight.copy() for weight in model.get_weights()]
    calls = {layer.name: len(layer._inbound_nodes) for layer in model._flatten_layers()}
    dqat.quantize_model(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert {layer.name: len(layer._inbound_nodes) for layer in model._flatten_layers()} == calls


class Network(keras.Model):
    """A model whose call is given."""

    def __init__(self, call, **parts):
        super().__init__()
        self.dense = layers.Dense(4)
        self.parts = parts
        self.body = call

    def call(self, x, training=None):
        return self.body(self, x, training)


class Scaled(layers.Layer):
    def build(self, shape):
        self.factor = self.add_weight("factor", shape=())

    def call(self, x):
        return x * self.factor


def called(model):
    model(np.ones((2, 4), np.float32))
    return model


def branching(model, x, training):
    return model.dense(x) if tf.reduce_sum(x) > 0 else x


def training_only(model, x, training):
    return model.dense(tf.nn.relu(x) if training else x)


def of_constants(model, x, training):
    return x + model.dense(tf.ones([1, 4]))


@pytest.mark.parametrize(
    "body, words",
    [
        (branching, ["can't be traced", "test_subclassed.py", "if tf.reduce_sum(x) > 0", "control flow"]),
        (training_only, ["does something else while training", "layer 'dense"]),
        (of_constants, ["weights that its call does not use through a layer", "kernel"]),
        (lambda model, x, training: model.dense(tf.math.erfc(x)), ["math.erfc"]),
    ],
    ids=["control flow", "training", "constants", "operation"],
)
def test_what_cannot_be_traced_or_quantized_is_named(body, words):
    model = called(Network(body))
    with pytest.raises(ValueError) as error:
        dqat.quantize_model(model)
    for word in words:
        assert word in str(error.value)


def test_a_layer_with_weights_of_its_own_is_named():
    model = called(Network(lambda model, x, training: model.dense(model.parts["scaled"](x)), scaled=Scaled()))
    with pytest.raises(dqat.UnsupportedLayerError, match="Scaled"):
        dqat.quantize_model(model)


def test_a_model_without_input_shape_is_told_what_to_do():
    with pytest.raises(ValueError, match="has no input shape yet: call it once on a batch"):
        dqat.quantize_model(EncoderDecoder())


def test_a_model_that_was_built_is_enough():
    model = ResidualNetwork()
    model.build((None, 18, 18, 1))
    assert dqat.quantize_model(model)(np.zeros((2, 18, 18, 1))).shape == (2, 9)


class TwoInputs(keras.Model):
    def __init__(self):
        super().__init__()
        self.left, self.right = layers.Dense(3), layers.Dense(3)

    def call(self, inputs):
        return {"sum": self.left(inputs["a"]) + self.right(inputs["b"]), "left": self.left(inputs["b"])}


def test_dictionaries_of_inputs_and_outputs_keep_their_keys(rng):
    model, batch = TwoInputs(), {key: rng.normal(size=(5, 4)).astype(np.float32) for key in "ab"}
    expected = model(batch)
    quantized = dqat.quantize_model(model)
    found = quantized(batch)
    assert set(found) == {"sum", "left"}
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=0.05)


def test_a_marked_layer_in_a_subclassed_model_is_quantized_alone():
    class Marked(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = dqat.quantize_annotate_layer(layers.Dense(4, name="first"))
            self.second = layers.Dense(4, name="second")

        def call(self, x):
            return self.second(self.first(x))

    quantized = dqat.quantize_apply(called(Marked()))
    assert {name for name in dqat.ranges(quantized) if "second" in name} == set()
    assert "first/kernel" in dqat.ranges(quantized)


def test_a_point_in_call_quantizes_there(rng):
    class Pointed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.point = layers.Dense(4), dqat.layers.QuantizePoint(name="here")

        def call(self, x):
            return self.point(self.dense(x))

    quantized = dqat.quantize_model(called(Pointed()))
    assert "here/output" in dqat.ranges(quantized)
