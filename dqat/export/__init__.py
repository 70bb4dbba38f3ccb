"""From a trained quantization-aware model to an integer-only TFLite file."""

from dqat.export.quantizer import ExportError
from dqat.export.tflite import ExportReport, export_tflite

__all__ = ["ExportError", "ExportReport", "export_tflite"]
