"""Plain post-training quantization with TensorFlow's converter: what a user has without training for it.

Run these functions through `dqat.child_process.run`: the converter ends the process at a GRU, for one.
"""

import pathlib

import numpy as np
import tensorflow as tf

from dqat.parity import Runner

keras = tf.keras


def convert(model_path: str, samples: np.ndarray, path: str) -> None:
    """Writes an integer-only file.

    Args:
        model_path: a float Keras model, as `model.save` wrote it.
        samples: training samples [samples, ...] of its input, from which the converter takes the ranges.
        path: where the file goes.
    """
    model = keras.models.load_model(model_path, compile=False)
    signature = tf.TensorSpec((1, *model.input_shape[1:]), model.input.dtype)
    # Batch size 1, so that LSTMs become one operator, as TensorFlow's guide has it.
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([sample[np.newaxis]] for sample in samples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    pathlib.Path(path).write_bytes(converter.convert())


def outputs(path: str, samples: np.ndarray) -> np.ndarray:
    """What an integer file with one input and one output gives: float32 [samples, ...], dequantized."""
    runner = Runner(path)
    (codes,) = runner.run([samples])
    ((scale, zero_point),) = runner.output_parameters
    return ((codes.astype(np.int32) - zero_point) * np.float32(scale)).astype(np.float32)
