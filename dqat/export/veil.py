"""Operators that TensorFlow's quantizer leaves alone: it sees custom ones in their place, which it knows nothing of."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dqat.export.flatbuffer import Flatbuffer

_NAME = b"dqat.veiled"


@dataclass(frozen=True)
class _Kind:
    """What an operator is."""

    code: Any
    options_type: int
    options: Any


class Veil:
    """Operators of a float file, hidden while it is quantized.

    Args:
        floats: the file; its operators are changed in place.
        operators: of it, to hide.
    """

    def __init__(self, floats: Flatbuffer, operators: Iterable[Any]) -> None:
        self._kinds = []
        codes = floats.model.operatorCodes
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
        code.customCode, code.version = _NAME, 1
        for number, operator in enumerate(operators):
            kind = _Kind(codes[operator.opcodeIndex], operator.builtinOptionsType, operator.builtinOptions)
            self._kinds.append(kind)
            operator.opcodeIndex = len(codes)
            operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.NONE, None
            operator.customOptions = np.frombuffer(np.uint32(number).tobytes(), np.uint8)
        if self._kinds:
            codes.append(code)

    def lift(self, quantized: Flatbuffer) -> list[Any]:
        """Makes the operators what they were, in the file that was made of the float one; gives them in order."""
        codes = quantized.model.operatorCodes
        found: list[Any] = [None] * len(self._kinds)
        for operator in quantized.graph.operators:
            if codes[operator.opcodeIndex].customCode != _NAME:
                continue
            (number,) = np.frombuffer(bytes(operator.customOptions), np.uint32)
            kind = self._kinds[number]
            operator.opcodeIndex = quantized.opcode_of(kind.code)
            operator.builtinOptionsType, operator.builtinOptions = kind.options_type, kind.options
            operator.customOptions = None
            found[number] = operator
        return found
