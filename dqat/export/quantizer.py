"""TensorFlow's own quantizer of float TFLite files, which ends the process at some graphs it can't do."""

import subprocess
import sys
import tempfile
from pathlib import Path

import tensorflow as tf
from tensorflow.lite.python import convert as tflite_convert


class ExportError(RuntimeError):
    """The file would not be what was trained; nothing is written."""


def quantize(content: bytes, *, in_child: bool) -> bytes:
    """Makes an integer file from a float one that has its ranges.

    Args:
        content: a TFLite file.
        in_child: works in a process of its own, which costs the import of TensorFlow (2 to 4 seconds). For graphs
            of other operators than those that this quantizer is known to survive.

    Returns:
        The integer file.

    Raises:
        ExportError: where the child ended; gives its last words.
    """
    if not in_child:
        return tflite_convert.mlir_quantize(content, input_data_type=tf.int8, output_data_type=tf.int8)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.tflite"), Path(folder, "integer.tflite")
        source.write_bytes(content)
        command = [sys.executable, "-m", "dqat.export.quantizer", str(source), str(target)]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if ended.returncode or not target.exists():
            words = ended.stderr.strip().splitlines()[-3:]
            raise ExportError(
                f"TensorFlow's quantizer ended with status {ended.returncode} at this model's graph, in a process of "
                f"its own: {' / '.join(words)}"
            )
        return target.read_bytes()


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(quantize(Path(sys.argv[1]).read_bytes(), in_child=False))
