"""Layers that the caller left in float: their operators stay float, between DEQUANTIZE and QUANTIZE."""

from typing import Any

from dqat.export.flatbuffer import Flatbuffer
from dqat.export.quantizer import ExportError
from dqat.keras_api import keras
from dqat.model import QuantizedModel

_RECURRENT = (keras.layers.RNN, keras.layers.Bidirectional)
_BRIDGES = ("QUANTIZE", "DEQUANTIZE")


def float_operators(floats: Flatbuffer, model: QuantizedModel) -> list[Any]:
    """The operators of the layers that stay in float, in a file whose tensors still have the converter's names.

    The names begin with those of model and layer, as TensorFlow's scopes do (and go on, behind a semicolon, with what
    else the operator was made of, constants of other layers included). All else in the file is bound to become
    an integer operator: TensorFlow's quantizer quantizes whatever stands between two quantized tensors.

    Raises:
        ExportError: for a recurrent layer among them.
    """
    recurrent = [name for name in model.float_layers if isinstance(model.get_layer(name), _RECURRENT)]
    if recurrent:
        raise ExportError(f"recurrent layers have no float operator amid integer ones: quantize {', '.join(recurrent)}")
    scopes = tuple(f"{model.name}/{layer}/" for layer in model.float_layers)
    return [
        operator
        for operator in floats.graph.operators
        if floats.operator_name(operator) not in _BRIDGES
        and any(floats.tensor(index).name.decode().startswith(scopes) for index in operator.outputs)
    ]


def result_names(floats: Flatbuffer, operators: list[Any]) -> set[str]:
    """The names by which TensorFlow's quantizer knows operators: those of their results."""
    return {floats.tensor(index).name.decode() for operator in operators for index in operator.outputs}


def require_islands(quantized: Flatbuffer, names: set[str]) -> None:
    """Raises ExportError where other operators than those with these results compute in float, or these do not."""
    missing, left = set(names), []
    for operator in quantized.graph.operators:
        if quantized.operator_name(operator) in _BRIDGES:
            continue
        results = [quantized.tensor(index) for index in operator.outputs]
        is_float = [quantized.is_float(index) for index in (*operator.inputs, *operator.outputs) if index >= 0]
        if any(is_float) and not any(result.name.decode() in names for result in results):
            left += [result.name.decode() for result in results]
        missing -= {result.name.decode() for result in results} if any(is_float) else set()
    if left:
        raise ExportError(f"float tensors are left in the file: {', '.join(left)}")
    if missing:
        raise ExportError(f"layers were left in float, but the file computes {', '.join(missing)} in integers")
