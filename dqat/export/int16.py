"""Int16 activations with int8 weights (16x8): a float file with trained ranges into an integer file.

TensorFlow's quantizer with given ranges (`dqat.export.quantizer`) makes int8 alone, and its converter knows no
16-bit fake-quant. So the float graph marks a tensor with an 8-bit one of 256 times the scale, and here each mark
becomes the int16 tensor that it stands for, with zero point 0. Biases are int64 on the product of both scales.
"""

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dqat.export.flatbuffer import Flatbuffer
from dqat.export.quantizer import ExportError

#: Scale of an 8-bit mark over the scale of the int16 tensor that it stands for.
MARK = 256
#: Products: place of the weights, of the bias, and the axis of the weights' scales (None: one scale).
_PRODUCTS = {
    "FULLY_CONNECTED": (1, 2, None),
    "CONV_2D": (1, 2, 0),
    "DEPTHWISE_CONV_2D": (1, 2, 3),
    "TRANSPOSE_CONV": (1, 3, 0),
}
#: Operators that move or choose values: inputs and outputs have one scale.
MOVING = frozenset(
    {
        *("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "PAD", "PADV2", "MIRROR_PAD", "STRIDED_SLICE", "SLICE"),
        *("SPLIT", "SPLIT_V", "PACK", "UNPACK", "CONCATENATION", "TILE", "REVERSE_V2", "GATHER", "BROADCAST_TO"),
        *("MAX_POOL_2D", "AVERAGE_POOL_2D", "REDUCE_MAX", "MAXIMUM", "MINIMUM"),
        *("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"),
    }
)
#: The version of each operator from which its kernel takes int16, after TFLite's op_version.cc.
_VERSIONS = {
    **{"FULLY_CONNECTED": 7, "CONV_2D": 4, "DEPTHWISE_CONV_2D": 5, "TRANSPOSE_CONV": 3, "BATCH_MATMUL": 3},
    **{"ADD": 3, "SUB": 5, "MUL": 4, "MAXIMUM": 4, "MINIMUM": 4, "LEAKY_RELU": 2, "EXP": 2, "LOG": 2, "RSQRT": 3},
    **dict.fromkeys(("RELU", "RELU6", "TANH", "LOGISTIC", "SOFTMAX", "MEAN", "REDUCE_MAX", "PACK", "PAD"), 3),
    **dict.fromkeys(("PADV2", "MIRROR_PAD", "MAX_POOL_2D", "AVERAGE_POOL_2D", "CONCATENATION", "DEQUANTIZE"), 3),
    **dict.fromkeys(("SPLIT", "SLICE", "UNPACK", "GATHER", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), 4),
    **dict.fromkeys(("SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"), 4),
    **{"TRANSPOSE": 5, "QUANTIZE": 2},
}
_LARGEST = 2**15 - 1


def quantize_to_int16(flatbuffer: Flatbuffer) -> None:
    """Makes an integer file of a float one, in place.

    Args:
        flatbuffer: what the converter made: every tensor that an operation reads is marked, or moved from a marked one.

    Raises:
        ExportError: for a tensor that nothing marks, or tensors on several scales that need one.
    """
    _Whole(flatbuffer).run()


class _Whole:
    """A file under way, all of which gets 16 bits.

    Attributes:
        scales: of the int16 tensors, by index.
        stands_for: by index of a mark's result, the tensor with its integers.
    """

    def __init__(self, flatbuffer: Flatbuffer) -> None:
        self._file = flatbuffer
        self._producer = {
            index: operator for operator in flatbuffer.graph.operators for index in map(int, operator.outputs)
        }
        self.scales: dict[int, float] = {}
        self.stands_for: dict[int, int] = {}

    def run(self) -> None:
        graph = self._file.graph
        graph.operators = [operator for operator in graph.operators if self._find_scales(operator)]
        give_16_bits(self._file, graph.operators, self.scales)
        name_ends(self._file, self.stands_for)
        self._file.drop_unused()

    def _is_float(self, index: int) -> bool:
        return index >= 0 and self._file.tensor(index).type == schema.TensorType.FLOAT32

    def _resolved(self, index: int) -> int:
        return self.stands_for.get(int(index), int(index))

    def _find_scales(self, operator: Any) -> bool:
        """Finds the scales that an operator tells of; says whether it stays."""
        name = self._file.operator_name(operator)
        if name == "DEQUANTIZE":
            self.stands_for[int(operator.outputs[0])] = self._resolved(operator.inputs[0])
            return False
        operator.inputs = np.array([self._resolved(index) for index in operator.inputs], np.int32)
        if name == "QUANTIZE":
            (source,), (result,) = operator.inputs, map(int, operator.outputs)
            scale = self._file.parameters(result)[0] / MARK
            if self._spread(int(source), scale):
                self.stands_for[result] = int(source)
                return False
            self.scales[result] = scale  # another scale than that of what it reads
        elif name in MOVING:
            known = [self.scales[index] for index in operator.inputs if index in self.scales]
            for index in map(int, operator.outputs) if known else ():
                self._spread(index, known[0])
        return True

    def _spread(self, index: int, scale: float) -> bool:
        """Gives a tensor a scale, and those that an operator moves into it; says whether it has that scale now."""
        if index in self.scales:
            return bool(np.isclose(self.scales[index], scale, rtol=1e-6))
        if not self._is_float(index):
            return False
        self.scales[index] = scale
        operator = self._producer.get(index)
        if operator is not None and self._file.operator_name(operator) in MOVING:
            for other in map(int, (*operator.inputs, *operator.outputs)):
                if self._is_float(other) and other not in self.scales:
                    self._spread(other, scale)
        return True


def give_16_bits(flatbuffer: Flatbuffer, operators: list[Any], scales: dict[int, float]) -> None:
    """Makes operators of 16x8 of float ones, in place.

    Args:
        flatbuffer: the file.
        operators: those of its operators that are to compute so.
        scales: of their tensors, inputs and results, by index; constants get theirs here.

    Raises:
        ExportError: for an input without a scale, or tensors on several scales that need one.
    """
    rewriter = _Rewriter(flatbuffer, scales)
    for operator in operators:
        rewriter.rewrite(operator)
    for index, scale in rewriter.scales.items():
        rewriter.settle(index, scale)
    for operator in operators:
        code = copy.copy(flatbuffer.model.operatorCodes[operator.opcodeIndex])
        code.version = max(code.version, _VERSIONS.get(flatbuffer.code_name(code), 1))
        operator.opcodeIndex = flatbuffer.opcode_of(code)


def name_ends(flatbuffer: Flatbuffer, stands_for: dict[int, int]) -> None:
    """Makes the model's outputs what the marks stand for, under the names that the float ones had.

    Args:
        flatbuffer: the file.
        stands_for: by index of a mark's result, the tensor with its integers.
    """
    graph = flatbuffer.graph
    for place, old in enumerate(map(int, graph.outputs)):
        new = stands_for.get(old, old)
        if new != old and new not in graph.inputs:
            flatbuffer.tensor(new).name = flatbuffer.tensor(old).name
        graph.outputs[place] = new
    for signature in flatbuffer.model.signatureDefs or []:
        for entry in (*signature.inputs, *signature.outputs):
            entry.tensorIndex = stands_for.get(entry.tensorIndex, entry.tensorIndex)


class _Rewriter:
    """Float operators that get 16 bits."""

    def __init__(self, flatbuffer: Flatbuffer, scales: dict[int, float]) -> None:
        self._file, self.scales = flatbuffer, dict(scales)
        self._made: dict[tuple[Any, ...], int] = {}

    def _is_float(self, index: int) -> bool:
        return index >= 0 and self._file.tensor(index).type == schema.TensorType.FLOAT32

    def rewrite(self, operator: Any) -> None:
        name = self._file.operator_name(operator)
        if name in _PRODUCTS:
            self._rewrite_product(operator, *_PRODUCTS[name])
        for place, index in enumerate(map(int, operator.inputs)):
            if not self._is_float(index) or index in self.scales:
                continue
            values = self._file.constant(index)
            if values is None:
                raise ExportError(f"{self._file.tensor(index).name.decode()} goes into {name} without a range")
            scale = float(np.abs(values).max()) / _LARGEST or 1.0
            if name in MOVING:  # on the scale of what it meets
                met = (*operator.inputs, *operator.outputs)
                scale = next(self.scales[other] for other in met if other in self.scales)
            operator.inputs[place] = self._constant(index, values, scale)
        if name in MOVING:
            found = {np.float32(self.scales[index]) for index in operator.inputs if index in self.scales}
            if len(found) > 1 and not np.allclose(*[max(found), min(found)], rtol=1e-6):
                raise ExportError(f"the inputs of {name} have several scales, {sorted(map(float, found))}")
        if name in ("ADD", "SUB"):
            options = operator.builtinOptions
            if options is None:
                options = schema.AddOptionsT() if name == "ADD" else schema.SubOptionsT()
                operator.builtinOptions = options
                operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{name.capitalize()}Options")
            options.potScaleInt16 = False  # else the kernel wants powers of two

    def _constant(self, index: int, values: np.ndarray, scale: float) -> int:
        """An int16 constant with the values of a float one."""
        codes = np.clip(np.rint(values / np.float64(scale)), -_LARGEST - 1, _LARGEST).astype(np.int16)
        new = self._add(("int16", index, scale), index, codes, schema.TensorType.INT16, [scale])
        self.scales[new] = scale
        return new

    def _rewrite_product(self, operator: Any, place: int, bias_place: int, axis: int | None) -> None:
        inputs = [int(index) for index in operator.inputs]
        data = inputs[2] if self._file.operator_name(operator) == "TRANSPOSE_CONV" else inputs[0]
        weights = self._file.constant(inputs[place])
        if weights is None or data not in self.scales:
            return  # the caller says which
        others = None if axis is None else tuple(other for other in range(weights.ndim) if other != axis)
        largest = np.atleast_1d(np.abs(weights).max(others)).astype(np.float32)
        scales = np.where(largest == 0, np.float32(1), largest / np.float32(127)).astype(np.float32)
        shape = np.ones(weights.ndim, int)
        if axis is not None:
            shape[axis] = -1
        codes = np.rint(weights / scales.reshape(shape)).astype(np.int8)
        key = ("weights", inputs[place], axis)
        inputs[place] = self._add(key, inputs[place], codes, schema.TensorType.INT8, scales, axis or 0)
        if len(inputs) > bias_place and inputs[bias_place] >= 0:
            bias = self._file.constant(inputs[bias_place])
            products = np.float64(np.float32(self.scales[data])) * scales
            codes = np.rint(bias / products).astype(np.int64)
            key = ("bias", inputs[bias_place], self.scales[data], inputs[place])
            inputs[bias_place] = self._add(key, inputs[bias_place], codes, schema.TensorType.INT64, products)
        operator.inputs = np.array(inputs, np.int32)

    def _add(
        self, key: tuple[Any, ...], old: int, codes: np.ndarray, dtype: int, scales: Iterable[float], axis: int = 0
    ) -> int:
        """A constant in the place of a float one; the same one for the same key."""
        if key not in self._made:
            graph, tensor, buffer = self._file.graph, schema.TensorT(), schema.BufferT()
            floats = self._file.tensor(old)
            tensor.name, tensor.shape, tensor.hasRank = floats.name, floats.shape, floats.hasRank
            buffer.data = np.frombuffer(np.ascontiguousarray(codes).tobytes(), np.uint8)
            tensor.type, tensor.buffer = dtype, len(self._file.model.buffers)
            tensor.quantization = parameters_of(scales, axis)
            self._file.model.buffers.append(buffer)
            graph.tensors.append(tensor)
            self._made[key] = len(graph.tensors) - 1
        return self._made[key]

    def settle(self, index: int, scale: float) -> None:
        tensor, values = self._file.tensor(index), self._file.constant(index)
        if values is not None and tensor.type == schema.TensorType.FLOAT32:  # a table that is looked up
            codes = np.clip(np.rint(values / np.float64(scale)), -_LARGEST - 1, _LARGEST).astype(np.int16)
            self._file.model.buffers[tensor.buffer].data = np.frombuffer(codes.tobytes(), np.uint8)
        tensor.type, tensor.quantization = schema.TensorType.INT16, parameters_of([scale], 0)


def parameters_of(scales: Iterable[float], axis: int) -> Any:
    """Quantization of a tensor with zero point 0, with one scale or one a place of the axis."""
    found = schema.QuantizationParametersT()
    found.scale = np.array(list(scales), np.float32)
    found.zeroPoint = np.zeros(len(found.scale), np.int64)
    found.quantizedDimension = axis
    return found
