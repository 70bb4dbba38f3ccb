"""The networks of train_image.py: those of keras.applications, and the small residual network of its paper."""

import sys
from collections.abc import Callable

import tensorflow as tf

keras = tf.keras


def residual_20(size: int, classes: int, width: float) -> keras.Model:
    """ResNet-20 of He et al., "Deep Residual Learning for Image Recognition", 2015, section 4.2, with its logits.

    Three stages of three blocks, with 16, 32 and 64 channels times `width`; shortcuts between stages are
    convolutions (the paper's option B).
    """
    layers = keras.layers

    def convolution(inputs: tf.Tensor, channels: int, kernel: int, strides: int, activation: bool = True) -> tf.Tensor:
        outputs = layers.Conv2D(channels, kernel, strides, padding="same", use_bias=False)(inputs)
        outputs = layers.BatchNormalization()(outputs)
        return layers.ReLU()(outputs) if activation else outputs

    inputs = keras.Input((size, size, 3))
    outputs = convolution(inputs, max(1, round(16 * width)), 3, 1)
    for stage in range(3):
        channels = max(1, round(16 * width)) << stage
        for block in range(3):
            strides = 2 if stage and not block else 1
            branch = convolution(outputs, channels, 3, strides)
            branch = convolution(branch, channels, 3, 1, activation=False)
            if strides > 1:
                outputs = convolution(outputs, channels, 1, strides, activation=False)
            outputs = layers.ReLU()(layers.Add()([outputs, branch]))
    outputs = layers.GlobalAveragePooling2D()(outputs)
    return keras.Model(inputs, layers.Dense(classes, name="predictions")(outputs), name="resnet20")


#: Networks beside those of keras.applications.
OWN = {"ResNet20": residual_20}


def build(name: str, *, size: int, classes: int, width: float = 1.0, weights: str | None = None) -> keras.Model:
    """A network that gives logits.

    Args:
        name: in keras.applications, or in `OWN`.
        size: of the images, in pixels.
        classes: number of logits.
        width: channels over the network's usual ones; MobileNets' alpha, and `OWN` networks.
        weights: None to start at random; "imagenet" or a file, as keras.applications takes it.

    Raises:
        ValueError: for a network that is not there, or that can't have this width or these weights.
    """
    if name in OWN:
        if weights:
            raise ValueError(f"{name} has no weights {weights!r}: it starts at random")
        model = OWN[name](size, classes, width)
    else:
        builder = getattr(keras.applications, name, None)
        if builder is None:
            raise ValueError(f"keras.applications has no {name!r}, and beside it there is {', '.join(OWN)}")
        narrower = {} if width == 1.0 else {"alpha": width}
        try:
            model = builder(
                weights=weights,
                input_shape=(size, size, 3),
                classes=classes,
                classifier_activation=None,
                **narrower,
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name} can't be built with size {size}, width {width:g}, weights {weights}: {error}"
            ) from error
    if weights is None:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                # With the networks' own 0.99 to 0.999 the statistics have not arrived after a few hundred steps.
                layer.momentum = min(layer.momentum, 0.9)
    return model


def preprocessing(name: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """What brings float32 images of 0 to 255 to the values that the network was made for."""
    if name in OWN:
        return lambda images: images / 127.5 - 1.0
    return sys.modules[getattr(keras.applications, name).__module__].preprocess_input
