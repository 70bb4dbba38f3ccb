"""A first run of a file that TFLite might not survive, in a process of its own."""

from typing import Any

import numpy as np
import tensorflow as tf

from dqat import child_process
from dqat.export.quantizer import ExportError


def require_that_it_runs(content: bytes) -> None:
    """Runs a file once on zeros.

    Ranges that exploded in a recurrence, or collapsed, give operators factors at which TFLite's kernels abort.

    Args:
        content: a TFLite file.

    Raises:
        ExportError: where the interpreter refuses the file or ends its process; gives its last words.
    """
    try:
        child_process.run(_run_once, content, timeout=120.0)
    except (child_process.ChildDiedError, ValueError, RuntimeError) as error:
        raise ExportError(
            f"TFLite's interpreter can't run what the model became: {error}. Look for ranges that exploded or "
            "collapsed in training (`dqat.callbacks.RangeWatch` stops at such)"
        ) from None


def _run_once(content: bytes) -> None:
    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    run_on_zeros(interpreter)


def run_on_zeros(interpreter: Any) -> None:
    """Runs an allocated interpreter once, of TensorFlow or LiteRT."""
    for details in interpreter.get_input_details():
        interpreter.set_tensor(details["index"], np.zeros(details["shape"], details["dtype"]))
    interpreter.invoke()
