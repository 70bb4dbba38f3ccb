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


def require_islands(quantized: Flatbuffer, operators: list[Any]) -> None:
    """Raises ExportError where other operators than these compute in float, or one of these does not."""
    left = []
    for operator in quantized.graph.operators:
        if quantized.operator_name(operator) in _BRIDGES:
            continue
        is_float = any(quantized.is_float(index) for index in (*operator.inputs, *operator.outputs) if index >= 0)
        if is_float and not any(operator is one for one in operators):
            left += [quantized.tensor(index).name.decode() for index in operator.outputs]
    if left:
        raise ExportError(f"float tensors are left in the file: {', '.join(left)}")
    if None in operators:
        raise ExportError("layers were left in float, and TensorFlow's quantizer has dropped an operator of theirs")
