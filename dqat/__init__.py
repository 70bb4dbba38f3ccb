"""Quantization-aware training for TensorFlow: exact ranges, recurrent nets, faithful int8 export."""

import importlib
from typing import TYPE_CHECKING, Any

from dqat import native

if TYPE_CHECKING:
    from dqat import algorithms, callbacks, distribute, integer, layers, observers, ops, quantizers, streaming
    from dqat.annotate import quantize_annotate_layer, quantize_annotate_model, quantize_scope
    from dqat.configured_layer import QuantizeConfig
    from dqat.coverage_report import Coverage, coverage
    from dqat.end_ranges import fix_input_output_range, remove_input_range
    from dqat.export import ExportError, ExportReport, export_tflite
    from dqat.export.inspection import TfliteFile, TfliteFileError, compare_tflite, inspect_tflite
    from dqat.layers import QuantizeWrapper
    from dqat.model import ranges
    from dqat.parity import ParityReport, verify
    from dqat.quantize import quantize_apply, quantize_model
    from dqat.quantizer_factories import QuantizerFactory
    from dqat.rules import UnsupportedLayerError
    from dqat.simulation import simulate
    from dqat.specs import QuantizerSpec, Scheme

# Loaded at first use: TensorFlow takes seconds to import, and `dqat.integer` works without it.
_MODULES = ("algorithms", "callbacks", "distribute", "integer", "layers", "observers", "ops", "quantizers", "streaming")
_NAMES = {
    "Coverage": "coverage_report",
    "ExportError": "export",
    "ExportReport": "export",
    "ParityReport": "parity",
    "TfliteFile": "export.inspection",
    "TfliteFileError": "export.inspection",
    "QuantizeConfig": "configured_layer",
    "QuantizeWrapper": "layers",
    "QuantizerFactory": "quantizer_factories",
    "QuantizerSpec": "specs",
    "Scheme": "specs",
    "UnsupportedLayerError": "rules",
    "compare_tflite": "export.inspection",
    "coverage": "coverage_report",
    "fix_input_output_range": "end_ranges",
    "remove_input_range": "end_ranges",
    "inspect_tflite": "export.inspection",
    "export_tflite": "export",
    "quantize_annotate_layer": "annotate",
    "quantize_annotate_model": "annotate",
    "quantize_apply": "quantize",
    "quantize_model": "quantize",
    "quantize_scope": "annotate",
    "ranges": "model",
    "simulate": "simulation",
    "verify": "parity",
}


def build_info() -> dict[str, Any]:
    """What this build is: versions, compiler, instruction sets, CUDA.

    Returns:
        "dqat", "tensorflow" and "compiler" versions; "instruction_sets" that are compiled in and that this
        processor has, and the "instruction_set" in use; "cuda", whether CUDA kernels were compiled.
    """
    return native.module.build_info()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"dqat.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"dqat.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'dqat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


__all__ = [
    "Coverage",
    "ExportError",
    "ExportReport",
    "ParityReport",
    "QuantizeConfig",
    "QuantizeWrapper",
    "QuantizerFactory",
    "QuantizerSpec",
    "Scheme",
    "TfliteFile",
    "TfliteFileError",
    "UnsupportedLayerError",
    "algorithms",
    "build_info",
    "callbacks",
    "compare_tflite",
    "coverage",
    "distribute",
    "export_tflite",
    "fix_input_output_range",
    "inspect_tflite",
    "integer",
    "layers",
    "observers",
    "ops",
    "quantize_annotate_layer",
    "quantize_annotate_model",
    "quantize_apply",
    "quantize_model",
    "quantize_scope",
    "quantizers",
    "ranges",
    "remove_input_range",
    "simulate",
    "streaming",
    "verify",
]
