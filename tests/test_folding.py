"""BatchNormalization trains as it is and is folded into the file."""

import pytest

import dqat
from dqat.keras_api import keras

layers = keras.layers


#: Layers that a BatchNormalization is folded into, and the operators that the file has for them.
NETWORKS = {
    "Conv2D, DepthwiseConv2D, Dense": (
        lambda: [
            layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False),
            layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False),
            layers.Flatten(),
            layers.Dense(32),
        ],
        ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "FULLY_CONNECTED"],
    ),
    "seven in a row": (
        lambda: [
            layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False),
            *(
                layer
                for _ in range(3)
                for layer in (
                    layers.DepthwiseConv2D(3, padding="same", use_bias=False),
                    layers.Conv2D(8, 1, use_bias=False),
                )
            ),
            layers.Flatten(),
        ],
        [*["CONV_2D"] * 4, *["DEPTHWISE_CONV_2D"] * 3, "FULLY_CONNECTED"],
    ),
    "SeparableConv2D, Conv2DTranspose": (
        lambda: [
            layers.SeparableConv2D(8, 3, strides=2, padding="same"),
            layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
            layers.Flatten(),
        ],
        ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"],
    ),
    "Conv1D, Conv3D": (
        lambda: [
            layers.Reshape((28, 28)),
            layers.Conv1D(32, 3, strides=2, padding="same"),
            layers.Reshape((2, 7, 16, 2)),
            layers.Conv3D(8, (2, 3, 3), strides=(1, 2, 2)),
            layers.Flatten(),
        ],
        ["CONV_2D", "CONV_2D", "FULLY_CONNECTED"],
    ),
}
_MOVING = {"RESHAPE", "STRIDED_SLICE", "CONCATENATION"}


def network(made):
    inputs = outputs = keras.Input((28, 28, 1))
    for layer in made:
        outputs = layer(outputs)
        if layer.weights:
            outputs = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(outputs))
    return keras.Model(inputs, layers.Dense(10)(outputs))


def trained(model, samples, rate, epochs):
    model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*samples, batch_size=32, epochs=epochs, verbose=0)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_after_training_the_folded_file_is_the_unfolded_simulation(digits, tmp_path, name):
    training, (images, labels) = digits
    keras.utils.set_random_seed(0)
    make, operators = NETWORKS[name]
    model = trained(network(make()), training, 3e-3, 2)
    quantized = trained(dqat.quantize_model(model), training, 3e-4, 1)
    assert any(isinstance(layer, layers.BatchNormalization) for layer in quantized.layers), "the simulation is unfolded"
    report = dqat.export_tflite(quantized, tmp_path / "digits.tflite")
    assert sorted(one for one in report.operators if one not in _MOVING) == operators
    parity = dqat.verify(quantized, report.path, images)
    assert parity.equal >= 0.99
    assert parity.within_1_lsb >= 0.999
    assert parity.same_class >= 0.999
    assert (parity.integer.argmax(-1) == labels).mean() > 0.8
