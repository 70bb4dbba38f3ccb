"""What is quantized and how, and what is not and why."""

from dataclasses import dataclass

from dqat.keras_api import keras
from dqat.layers import QuantizedLayer
from dqat.model import require_quantized
from dqat.observers import Fixed
from dqat.quantizers import Quantizer, SharedQuantizer
from dqat.rules.table import keeps_range


@dataclass(frozen=True)
class CoverageRow:
    """One tensor of one layer.

    Attributes:
        layer: name of the layer.
        kind: class of the float layer.
        tensor: role, such as "kernel" or "output"; empty where nothing of the layer is quantized.
        how: bits, granularity, observer; or why it is not quantized.
        quantized: whether it is.
    """

    layer: str
    kind: str
    tensor: str
    how: str
    quantized: bool


@dataclass(frozen=True)
class Coverage:
    """The report on a model: `rows`, and tables of them, as Markdown (also when printed) and as text."""

    rows: tuple[CoverageRow, ...]

    @property
    def unquantized(self) -> tuple[CoverageRow, ...]:
        """The rows that are not quantized."""
        return tuple(row for row in self.rows if not row.quantized)

    def text(self) -> str:
        """A table in columns, for a terminal."""
        table = [("layer", "kind", "tensor", "quantized")]
        table += [(row.layer, row.kind, row.tensor or "-", row.how) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(line.rstrip() for line in lines)

    def __str__(self) -> str:
        """As `markdown`."""
        return self.markdown()

    def markdown(self) -> str:
        """A Markdown table."""
        lines = ["| layer | kind | tensor | quantized |", "|---|---|---|---|"]
        lines += [f"| {row.layer} | {row.kind} | {row.tensor} | {row.how} |" for row in self.rows]
        return "\n".join(lines)


def _kind(layer: keras.layers.Layer) -> str:
    """The layer's class, or the operation that Keras has recorded as a layer."""
    is_operation = type(layer).__name__ == "TFOpLambda"
    return f"tf.{layer.get_config()['function']}" if is_operation else type(layer).__name__


def _describe(quantizer: Quantizer) -> str:
    if isinstance(quantizer, SharedQuantizer):
        return f"{quantizer.spec}, shares the range of {quantizer.owner_path}"
    observer = quantizer.observer
    if isinstance(observer, Fixed):
        return f"{quantizer.spec}, fixed [{observer.min:g}, {observer.max:g}]"
    options = ", ".join(f"{name} {value:g}" for name, value in observer.get_config().items() if value is not None)
    described = f"{quantizer.spec}, {type(observer).__name__}" + (f" ({options})" if options else "")
    requested = type(quantizer.requested_observer).__name__
    return described + (f" instead of {requested}" if requested != type(observer).__name__ else "")


def coverage(model: keras.Model) -> Coverage:
    """What is quantized in a model, how, and what is not and why.

    Args:
        model: a model that `quantize_model` returned.

    Returns:
        A `Coverage`; printing it gives a table.

    Raises:
        TypeError: for a model that is not quantized.
    """
    require_quantized(model)
    rows = []
    folded = {layer.norm_name: layer.name for layer in model.layers if isinstance(layer, QuantizedLayer)}
    for layer in model.layers:
        if isinstance(layer, Quantizer):
            rows.append(CoverageRow(layer.name, "Quantizer", "output", _describe(layer), True))
        elif layer.name in folded:
            why = f"folded into {folded[layer.name]} at export; its statistics are Keras' own"
            rows.append(CoverageRow(layer.name, type(layer).__name__, "", why, True))
        elif isinstance(layer, keras.layers.BatchNormalization) and layer.name not in model.float_layers:
            why = "int8 per channel at export: a depthwise convolution of 1x1; present values"
            rows.append(CoverageRow(layer.name, type(layer).__name__, "gamma", why, True))
        elif isinstance(layer, QuantizedLayer):
            kind = _kind(layer.layer)
            for role, spec in layer.weight_specs().items():
                rows.append(CoverageRow(layer.name, kind, role, f"{spec}, present values", True))
            for role, quantizer in layer.quantizers().items():
                rows.append(CoverageRow(layer.name, kind, role, _describe(quantizer), True))
            if getattr(layer.layer, "use_bias", False):
                rows.append(CoverageRow(layer.name, kind, "bias", "int32 at export, float32 in training", True))
            if not any(role.endswith(("output", "hidden")) for role in layer.quantizers()):
                why = "goes on in float: TFLite fuses the next activation, or the range stays that of the input"
                rows.append(CoverageRow(layer.name, kind, "output", why, False))
        elif not isinstance(layer, keras.layers.InputLayer):
            moves = keeps_range(layer) and layer.name not in model.float_layers
            why = "moves or drops values only: the range stays that of the input" if moves else "stays in float"
            rows.append(CoverageRow(layer.name, _kind(layer), "", why, False))
    return Coverage(tuple(rows))
