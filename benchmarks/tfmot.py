"""tfmot 0.8 as a peer, on the Keras that dqat uses."""

import os
import pathlib
from types import ModuleType

import tensorflow as tf

keras = tf.keras


def load() -> ModuleType:
    """`tensorflow_model_optimization`, working on models of tf.keras.

    With TensorFlow 2.15 it tells TensorFlow to take the package tf_keras from then on. Two packages of Keras in one
    process take each other's layers for their own when models are copied; so all of tf.keras is loaded first, and
    what tfmot has told is taken back.

    Raises:
        ImportError: where it is not installed.
    """
    for lazily_loaded in (
        tf.keras,
        tf.compat.v1.keras,
        tf.compat.v2.keras,
        tf.losses,
        tf.optimizers,
        tf.initializers,
        tf.metrics,
    ):
        dir(lazily_loaded)
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    import tensorflow_model_optimization

    if before is None:
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
    else:
        os.environ["TF_USE_LEGACY_KERAS"] = before
    return tensorflow_model_optimization


def train_and_convert(model: keras.Model, rate: float, epochs: int, dataset: tf.data.Dataset, path: str) -> None:
    """Trains as launch/train_image.py does quantization-aware, and writes the integer file.

    Args:
        model: the float network; stays as it is.
        rate: first learning rate of Adam; it falls to 0 as a cosine.
        epochs: number of them.
        dataset: batches of the training set.
        path: where the file goes.
    """
    quantized = load().quantization.keras.quantize_model(model)
    schedule = keras.optimizers.schedules.CosineDecay(rate, int(dataset.cardinality()) * epochs)
    quantized.compile(
        keras.optimizers.Adam(schedule),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    quantized.fit(dataset, epochs=epochs, verbose=2)
    converter = tf.lite.TFLiteConverter.from_keras_model(quantized)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    pathlib.Path(path).write_bytes(converter.convert())
