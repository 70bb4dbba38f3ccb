"""TensorFlow's own quantizer of float TFLite files, which ends the process at some graphs it can't do."""

import inspect

import tensorflow as tf
from tensorflow.lite.python import convert as tflite_convert

from dqat import child_process


class ExportError(RuntimeError):
    """The file would not be what was trained; nothing is written."""


def quantize(content: bytes, *, in_child: bool) -> bytes:
    """Makes an integer file from a float one that has its ranges.

    Args:
        content: a TFLite file.
        in_child: works in a process of its own, whose first start costs the import of TensorFlow (2 to 4
            seconds). For graphs of other operators than those that this quantizer is known to survive.

    Returns:
        The integer file.

    Raises:
        ExportError: where the child ended; gives its last words.
    """
    if not in_child:
        return _quantize(content)
    try:
        return child_process.run(_quantize, content)
    except (child_process.ChildDiedError, ValueError, RuntimeError) as error:
        raise ExportError(f"TensorFlow's quantizer can't do this model's graph: {error}") from None


def _quantize(content: bytes) -> bytes:
    # Newer versions quantize Dense kernels per channel, unless they are told not to.
    per_tensor = "disable_per_channel_for_dense_layers"
    known = inspect.signature(tflite_convert.mlir_quantize).parameters
    options = {per_tensor: True} if per_tensor in known else {}
    return tflite_convert.mlir_quantize(content, input_data_type=tf.int8, output_data_type=tf.int8, **options)
