"""Published uses of TensorFlow Model Optimization's API, from its guide and its tests, written anew.

Only the import of `tfmot` is another one; what is asserted looks into dqat's models.
"""

import numpy as np
import pytest
import tensorflow as tf

import dqat
import dqat.tfmot as tfmot
from dqat.keras_api import keras

quantize_annotate_layer = tfmot.quantization.keras.quantize_annotate_layer
quantize_annotate_model = tfmot.quantization.keras.quantize_annotate_model
quantize_apply = tfmot.quantization.keras.quantize_apply
quantize_model = tfmot.quantization.keras.quantize_model
quantize_scope = tfmot.quantization.keras.quantize_scope
LastValueQuantizer = tfmot.quantization.keras.quantizers.LastValueQuantizer
MovingAverageQuantizer = tfmot.quantization.keras.quantizers.MovingAverageQuantizer

input_shape = [20]


@pytest.fixture
def x_train(rng):
    return rng.normal(size=(64, 20)).astype(np.float32)


@pytest.fixture
def y_train():
    return keras.utils.to_categorical(np.arange(64) % 20, num_classes=20)


def setup_model():
    return keras.Sequential([keras.layers.Dense(20, input_shape=input_shape), keras.layers.Flatten()])


def train(model, x_train, y_train):
    model.compile(loss=keras.losses.mean_squared_error, optimizer="adam", metrics=["accuracy"])
    model.fit(x_train, y_train, epochs=1, verbose=0)
    return model


def interpret(content, samples):
    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    outputs = []
    for sample in samples:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample[None].astype(np.float32))
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    return np.array(outputs), {str(detail["dtype"].__name__) for detail in interpreter.get_tensor_details()}


class DefaultDenseQuantizeConfig(tfmot.quantization.keras.QuantizeConfig):
    """The guide's: kernel and activation in 8 bits."""

    def get_weights_and_quantizers(self, layer):
        return [(layer.kernel, LastValueQuantizer(num_bits=8, symmetric=True, narrow_range=False, per_axis=False))]

    def get_activations_and_quantizers(self, layer):
        quantizer = MovingAverageQuantizer(num_bits=8, symmetric=False, narrow_range=False, per_axis=False)
        return [(layer.activation, quantizer)]

    def set_quantize_weights(self, layer, quantize_weights):
        layer.kernel = quantize_weights[0]

    def set_quantize_activations(self, layer, quantize_activations):
        layer.activation = quantize_activations[0]

    def get_output_quantizers(self, layer):
        return []

    def get_config(self):
        return {}


class CustomLayer(keras.layers.Dense):
    pass


def test_quantize_the_whole_model(x_train, y_train):
    base_model = setup_model()
    q_aware_model = quantize_model(base_model)
    assert q_aware_model.layers[2].name == "quant_" + base_model.layers[0].name
    np.testing.assert_array_equal(q_aware_model.trainable_weights[0], base_model.layers[0].kernel)
    train(q_aware_model, x_train, y_train)
    assert q_aware_model.evaluate(x_train, y_train, verbose=0)[0] > 0


def test_quantize_some_layers_with_clone_model(x_train, y_train):
    base_model = keras.Sequential(
        [
            keras.layers.Dense(20, input_shape=input_shape, activation="relu"),
            keras.layers.Dense(20),
            keras.layers.Flatten(),
        ]
    )

    def apply_quantization_to_dense(layer):
        return quantize_annotate_layer(layer) if isinstance(layer, keras.layers.Dense) else layer

    annotated_model = keras.models.clone_model(base_model, clone_function=apply_quantization_to_dense)
    q_aware_model = train(quantize_apply(annotated_model), x_train, y_train)
    assert [layer.name.startswith("quant_") for layer in q_aware_model.layers][2:] == [True, True, False]


def test_quantize_some_layers_by_name_in_a_functional_model(x_train, y_train):
    inputs = keras.Input(shape=(20,))
    x = quantize_annotate_layer(keras.layers.Dense(10))(inputs)
    outputs = keras.layers.Dense(20, activation="softmax")(x)
    annotated_model = keras.Model(inputs=inputs, outputs=outputs)
    q_aware_model = train(quantize_apply(annotated_model), x_train, y_train)
    assert len(np.unique(q_aware_model.layers[2](q_aware_model.layers[1](x_train)))) <= 256


def test_sequential_annotation(x_train, y_train):
    annotated_model = keras.Sequential(
        [
            quantize_annotate_layer(keras.layers.Dense(20, input_shape=input_shape)),
            keras.layers.Flatten(),
        ]
    )
    train(quantize_apply(annotated_model), x_train, y_train)


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "saved_model"])
def test_checkpoint_and_deserialize(x_train, y_train, tmp_path, name):
    q_aware_model = train(quantize_model(setup_model()), x_train, y_train)
    q_aware_model.save(str(tmp_path / name), **({} if "." in name else {"save_format": "tf"}))
    with quantize_scope():
        loaded_model = keras.models.load_model(str(tmp_path / name))
    np.testing.assert_array_equal(loaded_model.predict(x_train, verbose=0), q_aware_model.predict(x_train, verbose=0))


def test_create_and_deploy_a_quantized_model(rng):
    """The MNIST network of the overview, converted as there."""
    model = keras.Sequential(
        [
            keras.layers.InputLayer(input_shape=(28, 28)),
            keras.layers.Reshape(target_shape=(28, 28, 1)),
            keras.layers.Conv2D(filters=12, kernel_size=(3, 3), activation="relu"),
            keras.layers.MaxPooling2D(pool_size=(2, 2)),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    images = rng.uniform(size=(64, 28, 28)).astype(np.float32)
    q_aware_model = quantize_model(model)
    q_aware_model.compile(
        optimizer="adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    q_aware_model.fit(images, np.arange(64) % 10, batch_size=32, verbose=0)
    converter = tf.lite.TFLiteConverter.from_keras_model(q_aware_model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    outputs, dtypes = interpret(converter.convert(), images)
    assert "int8" in dtypes
    simulated = q_aware_model.predict(images, verbose=0)
    low, high = dqat.ranges(q_aware_model)[f"{q_aware_model.layers[-1].name}/output"]
    scale = (high - low) / 255
    assert np.mean(np.abs(outputs - simulated) < 1.5 * scale) > 0.99


def test_experiment_with_a_custom_keras_layer(x_train, y_train):
    model = quantize_annotate_model(
        keras.Sequential(
            [
                quantize_annotate_layer(CustomLayer(20, input_shape=(20,)), DefaultDenseQuantizeConfig()),
                keras.layers.Flatten(),
            ]
        )
    )
    with quantize_scope(
        {"DefaultDenseQuantizeConfig": DefaultDenseQuantizeConfig, "CustomLayer": CustomLayer},
    ):
        quant_aware_model = quantize_apply(model)
    train(quant_aware_model, x_train, y_train)
    wrapper = quant_aware_model.layers[2]
    assert isinstance(wrapper, tfmot.quantization.keras.QuantizeWrapper)
    assert isinstance(wrapper.layer, CustomLayer) and isinstance(wrapper.quantize_config, DefaultDenseQuantizeConfig)


def test_modify_quantization_parameters(x_train, y_train):
    class ModifiedDenseQuantizeConfig(DefaultDenseQuantizeConfig):
        def get_weights_and_quantizers(self, layer):
            return [(layer.kernel, LastValueQuantizer(num_bits=4, symmetric=True, narrow_range=False, per_axis=False))]

    model = quantize_annotate_model(
        keras.Sequential(
            [
                quantize_annotate_layer(keras.layers.Dense(20, input_shape=(20,)), ModifiedDenseQuantizeConfig()),
                keras.layers.Flatten(),
            ]
        )
    )
    with quantize_scope({"ModifiedDenseQuantizeConfig": ModifiedDenseQuantizeConfig}):
        quant_aware_model = quantize_apply(model)
    train(quant_aware_model, x_train, y_train)
    assert len(np.unique(quant_aware_model.layers[2].quantized_weights()["kernel"])) <= 16


def test_modify_parts_of_a_layer_to_quantize(x_train, y_train):
    class ModifiedDenseQuantizeConfig(DefaultDenseQuantizeConfig):
        def get_activations_and_quantizers(self, layer):
            return []

        def set_quantize_activations(self, layer, quantize_activations):
            pass

    model = quantize_annotate_model(
        keras.Sequential(
            [
                quantize_annotate_layer(keras.layers.Dense(20, input_shape=(20,)), ModifiedDenseQuantizeConfig()),
                keras.layers.Flatten(),
            ]
        )
    )
    with quantize_scope({"ModifiedDenseQuantizeConfig": ModifiedDenseQuantizeConfig}):
        quant_aware_model = quantize_apply(model)
    train(quant_aware_model, x_train, y_train)
    assert len(np.unique(quant_aware_model.predict(x_train, verbose=0))) > 256


def test_use_a_custom_quantization_algorithm(x_train, y_train, tmp_path):
    class FixedRangeQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
        def build(self, tensor_shape, name, layer):
            range_var = layer.add_weight(name + "_range", initializer=keras.initializers.Constant(0.5), trainable=False)
            return {"range_var": range_var}

        def __call__(self, inputs, training, weights, **kwargs):
            return keras.backend.clip(inputs, 0.0, weights["range_var"])

        def get_config(self):
            return {}

    class ModifiedDenseQuantizeConfig(DefaultDenseQuantizeConfig):
        def get_weights_and_quantizers(self, layer):
            return [(layer.kernel, FixedRangeQuantizer())]

    model = quantize_annotate_model(
        keras.Sequential(
            [
                quantize_annotate_layer(keras.layers.Dense(20, input_shape=(20,)), ModifiedDenseQuantizeConfig()),
                keras.layers.Flatten(),
            ]
        )
    )
    objects = {
        "FixedRangeQuantizer": FixedRangeQuantizer,
        "ModifiedDenseQuantizeConfig": ModifiedDenseQuantizeConfig,
    }
    with quantize_scope(objects):
        quant_aware_model = train(quantize_apply(model), x_train, y_train)
        quant_aware_model.save(str(tmp_path / "model.keras"))
        loaded_model = keras.models.load_model(str(tmp_path / "model.keras"))
    np.testing.assert_array_equal(
        loaded_model.predict(x_train, verbose=0), quant_aware_model.predict(x_train, verbose=0)
    )
    kernel = quant_aware_model.layers[2].layer.kernel
    expected = x_train @ np.clip(kernel, 0.0, 0.5)
    assert np.corrcoef(quant_aware_model.predict(x_train, verbose=0).ravel(), expected.ravel())[0, 1] > 0.99


def test_the_n_bit_scheme(x_train, y_train):
    scheme = tfmot.quantization.keras.experimental.default_n_bit.DefaultNBitQuantizeScheme(
        disable_per_axis=True, num_bits_weight=4, num_bits_activation=6
    )
    model = train(quantize_apply(quantize_annotate_model(setup_model()), scheme=scheme), x_train, y_train)
    assert len(np.unique(model.layers[2].quantized_weights()["kernel"])) <= 15
    assert len(np.unique(model.predict(x_train, verbose=0))) <= 64


def test_the_default_8_bit_scheme_and_its_configurations(x_train, y_train):
    default_8bit = tfmot.quantization.keras.default_8bit
    model = keras.Sequential(
        [
            quantize_annotate_layer(
                keras.layers.Dense(20, activation="relu", input_shape=(20,)),
                default_8bit.Default8BitQuantizeConfig(["kernel"], ["activation"], False),
            ),
            quantize_annotate_layer(keras.layers.Dense(20), default_8bit.NoOpQuantizeConfig()),
            quantize_annotate_layer(keras.layers.Flatten()),
        ]
    )
    quant_aware_model = quantize_apply(model, default_8bit.Default8BitQuantizeScheme())
    train(quant_aware_model, x_train, y_train)
    hidden = keras.Model(quant_aware_model.inputs, quant_aware_model.layers[2].output)
    assert len(np.unique(hidden.predict(x_train, verbose=0))) <= 256
    assert len(np.unique(quant_aware_model.layers[3].layer.kernel)) == 400


def test_fix_input_and_output_ranges_and_remove_the_input_range(x_train, y_train):
    with quantize_scope():
        model = quantize_apply(quantize_annotate_model(setup_model()))
        train(model, x_train, y_train)
        fixed = tfmot.quantization.keras.fix_input_output_range(
            model, num_bits=4, input_min=0, input_max=15, output_min=0, output_max=15, narrow_range=False
        )
        free = tfmot.quantization.keras.remove_input_range(model)
    samples = np.abs(10 * x_train)
    outputs = fixed.predict(samples, verbose=0)
    np.testing.assert_array_equal(outputs, np.round(outputs))
    assert outputs.min() >= 0 and outputs.max() <= 15
    train(fixed, samples, y_train)
    np.testing.assert_array_equal(fixed.predict(samples, verbose=0), np.round(fixed.predict(samples, verbose=0)))
    assert len(free.layers) == len(model.layers) - 1
    quantized_input = model.layers[1](x_train)
    # Without the input's scale, the file's grid for biases is not known: that decides a rounding here and there.
    apart = np.abs(free.predict(quantized_input, verbose=0) - model.predict(x_train, verbose=0))
    low, high = dqat.ranges(model)[f"{model.layers[2].name}/output"]
    assert (apart == 0).mean() > 0.98 and apart.max() < 1.01 * (high - low) / 255


def test_a_wrapper_made_by_hand(x_train, y_train):
    QuantizeWrapper = tfmot.quantization.keras.QuantizeWrapper
    model = keras.Sequential(
        [
            keras.Input((20,)),
            QuantizeWrapper(keras.layers.Dense(20, name="by_hand"), DefaultDenseQuantizeConfig()),
        ]
    )
    assert model.layers[0].name == "quant_by_hand"
    train(model, x_train, y_train)
    assert len(np.unique(model.predict(x_train, verbose=0))) <= 256


def test_names_without_a_counterpart_are_named():
    with pytest.raises(AttributeError, match="no counterpart of tfmot.quantization.keras.QuantizeRegistry"):
        _ = tfmot.quantization.keras.QuantizeRegistry
