"""From a trained quantization-aware model to an integer-only TFLite file."""

from dqat.export.tflite import ExportError, ExportReport, export_tflite

__all__ = ["ExportError", "ExportReport", "export_tflite"]
