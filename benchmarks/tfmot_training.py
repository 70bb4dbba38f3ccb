"""tfmot's quantization-aware training of an image network, as the peer of ours."""

import os
import pathlib

# tfmot looks at this when it is imported, and takes models of tf_keras then.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import networks
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
import train_image


def train_and_convert(
    weights: list[np.ndarray], options: train_image.Options, classes: int, dataset: tf.data.Dataset, path: str
) -> None:
    """Trains as launch/train_image.py does quantization-aware, and writes the integer file.

    Args:
        weights: of the float network.
        options: which network, and its recipe.
        classes: of the data set.
        dataset: batches of the training set.
        path: where the file goes.
    """
    model = networks.build(options.network, size=options.size, classes=classes, width=options.width, api=tf_keras)
    model.set_weights(weights)
    quantized = tfmot.quantization.keras.quantize_model(model)
    steps = int(dataset.cardinality()) * options.qat_epochs
    schedule = tf_keras.optimizers.schedules.CosineDecay(options.rate / 10, steps)
    quantized.compile(
        tf_keras.optimizers.Adam(schedule),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    quantized.fit(dataset, epochs=options.qat_epochs, verbose=2)
    converter = tf.lite.TFLiteConverter.from_keras_model(quantized)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    pathlib.Path(path).write_bytes(converter.convert())
