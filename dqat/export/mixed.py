"""Layers of 16 bits amid layers of 8, in a file.

TensorFlow's quantizer makes int8 alone. So the operators of 16 bits are found by their marks (`dqat.export.int16`),
hidden while the others are quantized, and quantized then. At the borders stand operators that compute in integers:
QUANTIZE from int16 to int8; the other way, which that operator has not, CAST from int8 to int32, whose integers and
scale are the same, and QUANTIZE from there.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dqat.export.flatbuffer import Flatbuffer
from dqat.export.int16 import MARK, MOVING, give_16_bits, name_ends
from dqat.export.quantizer import ExportError


@dataclass
class _Plan:
    """What one operator's tensors become.

    Attributes:
        results: scale by place.
        inputs: scale, and the name of its tensor of 16 bits, by place, of what is computed outside.
        narrowed: the name of the tensor of 8 bits that a result becomes, by the result's place.
    """

    results: dict[int, float] = field(default_factory=dict)
    inputs: dict[int, tuple[float, bytes]] = field(default_factory=dict)
    narrowed: dict[int, bytes] = field(default_factory=dict)


class MixedBits:
    """The operators of 16 bits of a file under way.

    Args:
        floats: what the converter made; the marks of 16 bits are taken out of it.
        marks: QUANTIZE operators of it that mark tensors of 16 bits.

    Attributes:
        operators: of the float file, those that get 16 bits.
    """

    def __init__(self, floats: Flatbuffer, marks: list[Any]) -> None:
        self._file = floats
        self._marks = {id(mark) for mark in marks}
        self._stands_for: dict[int, int] = {}
        self._scales: dict[int, float] = {}
        self._names: dict[int, bytes] = {}
        self.operators: list[Any] = []
        self._inside: set[int] = set()
        staying = [operator for operator in floats.graph.operators if self._take(operator)]
        self._pass_scales_on()
        floats.graph.operators = staying
        name_ends(floats, self._stands_for)
        self._plans = [self._plan(operator) for operator in self.operators]
        floats.drop_unused()

    def _take(self, operator: Any) -> bool:
        """Finds what an operator is; says whether it stays."""
        name, before = self._file.operator_name(operator), list(map(int, operator.inputs))
        operator.inputs = np.array([self._stands_for.get(index, index) for index in before], np.int32)
        result = int(operator.outputs[0])
        if id(operator) in self._marks:
            source, scale = int(operator.inputs[0]), self._file.parameters(result)[0] / MARK
            if np.isclose(self._scales.setdefault(source, scale), scale, rtol=1e-6):
                self._stands_for[result] = source
                return False
            # The converter has left nothing between two quantizations: a QUANTIZE from 16 bits to 16 bits.
            tensor = self._file.tensor(result)
            tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
            self._scales[result], self._stands_for[result] = scale, result
            self.operators.append(operator)
            self._inside.add(result)
            return True
        if name == "DEQUANTIZE" and before[0] in self._stands_for:
            self._stands_for[result] = self._stands_for[before[0]]
            return False
        if name == "QUANTIZE":
            if before[0] in self._stands_for:  # the name that tells what comes out of it
                self._names[int(operator.inputs[0])] = self._file.tensor(before[0]).name
            return True
        reads_16 = any(index in self._stands_for for index in before)
        if reads_16 or any(index in self._inside for index in before) or self._looks_up(operator):
            self.operators.append(operator)
            self._inside.update(map(int, operator.outputs))
        return True

    def _looks_up(self, operator: Any) -> bool:
        """Whether the operator reads constants and indices alone, and its result is marked."""
        is_computed = (
            index >= 0 and self._file.is_float(index) and self._file.constant(index) is None
            for index in map(int, operator.inputs)
        )
        if self._file.operator_name(operator) == "DEQUANTIZE" or any(is_computed):
            return False
        after = [one for one in self._file.graph.operators if operator.outputs[0] in one.inputs]
        return any(id(one) in self._marks for one in after)

    def _pass_scales_on(self) -> None:
        """Gives what operators move the scale of what it is moved from or to."""
        moving = [operator for operator in self.operators if self._file.operator_name(operator) in MOVING]
        for operator in (*moving, *reversed(moving)):
            tensors = [*self._computed(operator), *map(int, operator.outputs)]
            known = [self._scales[index] for index in tensors if index in self._scales]
            for index in tensors if known else ():
                if index in self._inside:
                    self._scales.setdefault(index, known[0])

    def _computed(self, operator: Any) -> list[int]:
        indices = [int(index) for index in operator.inputs if index >= 0]
        return [i for i in indices if self._file.is_float(i) and self._file.constant(i) is None]

    def _plan(self, operator: Any) -> _Plan:
        plan = _Plan()
        for place, index in enumerate(map(int, operator.outputs)):
            if index in self._scales:
                plan.results[place] = self._scales[index]
            if index in self._names:
                plan.narrowed[place] = self._names[index]
        outside = set(self._computed(operator)) - self._inside
        for place, index in enumerate(map(int, operator.inputs)):
            if index in outside and index in self._scales:
                plan.inputs[place] = self._scales[index], self._file.tensor(index).name
        return plan

    def quantize(self, quantized: Flatbuffer, operators: list[Any]) -> None:
        """Quantizes the operators in the file whose others are quantized.

        Args:
            quantized: that file.
            operators: of it, in the order of `operators`.

        Raises:
            ExportError: for a tensor without a scale.
        """
        _Widened(quantized, dict(zip(map(id, operators), self._plans, strict=True))).run(operators)


class _Widened:
    """A file whose operators of 16 bits are still float."""

    def __init__(self, quantized: Flatbuffer, plans: dict[int, _Plan]) -> None:
        self._file, self._plans = quantized, plans
        self._producer = {int(index): one for one in quantized.graph.operators for index in one.outputs}
        self._scales: dict[int, float] = {}
        self._widened: dict[tuple[int, float], int] = {}

    def run(self, wide: list[Any]) -> None:
        graph, operators, narrowed = self._file.graph, [], {}
        for operator in graph.operators:
            plan = self._plans.get(id(operator))
            if plan is not None:
                for place, (scale, name) in plan.inputs.items():
                    operator.inputs[place] = self._input(int(operator.inputs[place]), scale, name, operators)
                self._scales |= {int(operator.outputs[place]): scale for place, scale in plan.results.items()}
                narrowed |= {int(operator.outputs[place]): name for place, name in plan.narrowed.items()}
            elif self._file.operator_name(operator) == "QUANTIZE" and operator.outputs[0] not in graph.outputs:
                tensor = self._file.tensor(operator.outputs[0])
                tensor.name = narrowed.get(int(operator.inputs[0]), tensor.name)
            operators.append(operator)
        graph.operators = operators
        give_16_bits(self._file, wide, self._scales)
        self._file.drop_unused()

    def _input(self, index: int, scale: float, name: bytes, operators: list[Any]) -> int:
        """The tensor of 16 bits for a float one; appends the operators that compute it."""
        producer = self._producer.get(index)
        if producer is None:  # an input of the model
            self._scales[index] = scale
            return index
        if self._file.operator_name(producer) != "DEQUANTIZE":
            raise ExportError(f"{name.decode()} goes into a layer of 16 bits as float")
        source = int(producer.inputs[0])
        if (source, scale) not in self._widened:
            options = schema.CastOptionsT()
            options.inDataType, options.outDataType = schema.TensorType.INT8, schema.TensorType.INT32
            there = self._file.tensor(source).quantization
            same = self._file.add_tensor_like(name + b"_int32", source, schema.TensorType.INT32, there)
            wide = self._file.add_tensor_like(name, source, schema.TensorType.FLOAT32)  # int16 with all others
            self._scales[wide] = scale
            operators.append(self._file.make_operator("CAST", [source], [same], options, version=2))
            operators.append(self._file.make_operator("QUANTIZE", [same], [wide], version=2))
            self._widened[source, scale] = wide
        return self._widened[source, scale]
