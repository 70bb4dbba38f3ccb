"""Quantization-aware training for TensorFlow: exact ranges, recurrent nets, faithful int8 export."""

from dqat import distribute, layers, observers, ops, quantizers
from dqat.coverage import Coverage, coverage
from dqat.export import ExportError, ExportReport, export_tflite
from dqat.model import ranges
from dqat.native import module as _native
from dqat.quantize import quantize_model
from dqat.rules import UnsupportedLayerError
from dqat.specs import QuantizerSpec, Scheme
from dqat.verify import ParityReport, verify


def build_info() -> dict:
    """What this build is: versions, compiler, instruction sets, CUDA.

    Returns:
        "dqat", "tensorflow" and "compiler" versions; "instruction_sets" that are compiled in and that this
        processor has, and the "instruction_set" in use; "cuda", whether CUDA kernels were compiled.
    """
    return _native.build_info()


__all__ = [
    "Coverage",
    "ExportError",
    "ExportReport",
    "ParityReport",
    "QuantizerSpec",
    "Scheme",
    "UnsupportedLayerError",
    "build_info",
    "coverage",
    "distribute",
    "export_tflite",
    "layers",
    "observers",
    "ops",
    "quantize_model",
    "quantizers",
    "ranges",
    "verify",
]
