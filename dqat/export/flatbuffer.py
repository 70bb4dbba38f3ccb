"""A TFLite flatbuffer, read and changed through TensorFlow's own schema modules."""

from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

_OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
_TYPE_NAMES = {code: name for name, code in vars(schema.TensorType).items() if not name.startswith("_")}
_NUMPY_TYPES = {
    schema.TensorType.INT8: np.int8,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.INT64: np.int64,
    schema.TensorType.FLOAT32: np.float32,
}
_FLOAT_TYPES = (
    schema.TensorType.FLOAT16,
    schema.TensorType.FLOAT32,
    schema.TensorType.FLOAT64,
)

#: The largest code that fits the field which old interpreters read.
_MOST_SMALL_CODE = 127


class LstmTensors:
    """Places of tensors in a UNIDIRECTIONAL_SEQUENCE_LSTM, after TFLite's lstm_shared.h."""

    INPUT = 0
    INPUT_WEIGHTS = (1, 2, 3, 4)  # input, forget, cell, output gate: Keras' order
    RECURRENT_WEIGHTS = (5, 6, 7, 8)
    PEEPHOLES = (9, 10, 11)  # input, forget, output gate
    HIDDEN_STATE = 18
    CELL_STATE = 19
    EFFECTIVE_HIDDEN_SCALE = 4  # of the intermediates


class Flatbuffer:
    """One model.

    Attributes:
        model: all of it.
        graph: the subgraph that is called, which other methods speak of; most files have no other.
    """

    def __init__(self, content: bytes) -> None:
        self.model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
        self.graph = self.model.subgraphs[0]

    def to_bytes(self) -> bytes:
        """The serialised model."""
        return bytes(flatbuffer_utils.convert_object_to_bytearray(self.model))

    def operator_names(self) -> list[str]:
        """Names of the operators, in order of execution; those of a loop come behind all others."""
        return [self.operator_name(operator) for graph in self.model.subgraphs for operator in graph.operators]

    def operator_name(self, operator: Any) -> str:
        """The name of one operator, such as FULLY_CONNECTED."""
        return self.code_name(self.model.operatorCodes[operator.opcodeIndex])

    @staticmethod
    def code_name(code: Any) -> str:
        """The name of an entry of the file's list of operators."""
        # Files of before 2020 keep small codes in a field of one byte.
        return _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]

    @staticmethod
    def type_name(code: int) -> str:
        """The name of a tensor's type, such as INT8."""
        return _TYPE_NAMES[code]

    def lstms(self) -> list[Any]:
        """The fused LSTM operators."""
        return self._operators("UNIDIRECTIONAL_SEQUENCE_LSTM")

    def tensor(self, index: int) -> Any:
        """A tensor by index."""
        return self.graph.tensors[index]

    def constant(self, index: int) -> np.ndarray | None:
        """The values of a constant tensor; None for one that is computed."""
        tensor = self.tensor(index)
        data = self.model.buffers[tensor.buffer].data
        if data is None or tensor.type not in _NUMPY_TYPES:
            return None
        return np.frombuffer(bytes(data), _NUMPY_TYPES[tensor.type]).reshape(tensor.shape)

    def set_constant(self, index: int, values: np.ndarray) -> None:
        """Replaces the values of a constant tensor; others that share its buffer keep theirs."""
        if np.array_equal(self.constant(index), values):
            return
        tensor = self.tensor(index)
        tensor.buffer = len(self.model.buffers)
        self.model.buffers.append(schema.BufferT())
        self.model.buffers[-1].data = np.frombuffer(values.astype(_NUMPY_TYPES[tensor.type]).tobytes(), np.uint8)

    def constants(self) -> list[np.ndarray]:
        """The values of all constant tensors."""
        values = (self.constant(index) for index in range(len(self.graph.tensors)))
        return [value for value in values if value is not None]

    def set_range(self, index: int, low: float, high: float) -> None:
        """Gives a float tensor the range that the quantizer reads."""
        tensor = self.tensor(index)
        if tensor.quantization is None:
            tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.min = np.array([low], np.float32)
        tensor.quantization.max = np.array([high], np.float32)

    def pass_ranges_on(self) -> None:
        """Gives what REVERSE_V2 and CONCATENATION move the range of their inputs, where all inputs have one range.

        In a float file with QUANTIZE and DEQUANTIZE pairs, whose operators stand in order of execution.
        """
        known = {op.outputs[0]: self._level_range(op.inputs[0]) for op in self._operators("DEQUANTIZE")}
        for operator in self.graph.operators:
            sources = {"REVERSE_V2": operator.inputs[:1], "CONCATENATION": operator.inputs}
            ranges = {known.get(index) for index in sources.get(self.operator_name(operator), ())}
            if len(ranges) == 1 and None not in ranges:
                (known[operator.outputs[0]],) = ranges
                self.set_range(operator.outputs[0], *known[operator.outputs[0]])

    def _level_range(self, index: int) -> tuple[float, float] | None:
        """The values of the lowest and the highest level of an 8-bit tensor that is quantized per tensor."""
        found = self.parameters(index)
        if found is None:
            return None
        scale, zero_point = found
        lowest = 0 if self.tensor(index).type == schema.TensorType.UINT8 else -128
        return scale * (lowest - zero_point), scale * (lowest + 255 - zero_point)

    def _operators(self, name: str) -> list[Any]:
        return [operator for operator in self.graph.operators if self.operator_name(operator) == name]

    def parameters(self, index: int) -> tuple[float, int] | None:
        """Scale and zero point of a tensor that is quantized per tensor; else None."""
        quantization = self.tensor(index).quantization
        if quantization is None or quantization.scale is None or len(quantization.scale) != 1:
            return None
        return float(quantization.scale[0]), int(quantization.zeroPoint[0])

    def float_tensors(self) -> list[str]:
        """Names of all tensors of a floating-point type, even unused ones."""
        return [tensor.name.decode() for tensor in self.graph.tensors if tensor.type in _FLOAT_TYPES]

    def is_float(self, index: int) -> bool:
        """Whether a tensor has a floating-point type."""
        return self.tensor(index).type in _FLOAT_TYPES

    def drop_float_intermediates(self) -> None:
        """Types the unused layer-norm intermediates of integer LSTMs as what they stand for.

        The quantizer leaves four empty float tensors per LSTM. The kernel never touches them without layer
        norm; with it they are the int16 gate pre-activations in Q3.12.
        """
        for lstm in self.lstms():
            for index in lstm.intermediates[: LstmTensors.EFFECTIVE_HIDDEN_SCALE]:
                tensor = self.tensor(index)
                tensor.type = schema.TensorType.INT16
                tensor.quantization = schema.QuantizationParametersT()
                tensor.quantization.scale = np.array([2.0**-12], np.float32)
                tensor.quantization.zeroPoint = np.array([0], np.int64)

    def set_peephole(self, lstm: Any, place: int, codes: np.ndarray, scale: float) -> None:
        """Gives an integer LSTM a vector through which a gate sees the cell state.

        Args:
            lstm: one of `lstms()`.
            place: one of `LstmTensors.PEEPHOLES`.
            codes: int16 [units].
            scale: of the codes.
        """
        parameters = schema.QuantizationParametersT()
        parameters.scale, parameters.zeroPoint = np.array([scale], np.float32), np.array([0], np.int64)
        name = f"{self.tensor(lstm.outputs[0]).name.decode()}/peephole{place}"
        lstm.inputs[place] = self.add_tensor(
            self.graph, name, list(codes.shape), schema.TensorType.INT16, parameters, codes.astype(np.int16)
        )

    def add_tensor(
        self,
        graph: Any,
        name: str,
        shape: list[int],
        dtype: int,
        quantization: Any = None,
        values: np.ndarray | None = None,
    ) -> int:
        """Adds a tensor to a subgraph; a constant where `values` are given. Returns its index there."""
        tensor, buffer = schema.TensorT(), schema.BufferT()
        tensor.name, tensor.shape, tensor.hasRank = name.encode(), np.array(shape, np.int32), True
        tensor.type, tensor.quantization, tensor.buffer = dtype, quantization, len(self.model.buffers)
        if values is not None:
            buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def make_operator(
        self, name: str, inputs: list[int], outputs: list[int], options: Any = None, *, version: int
    ) -> Any:
        """An operator, not in a graph yet.

        Args:
            name: such as "ADD".
            inputs: indices of tensors.
            outputs: likewise.
            options: such as `schema.AddOptionsT()`.
            version: of the operator that its types need.
        """
        operator = schema.OperatorT()
        operator.opcodeIndex = self._opcode(name, version)
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        return operator

    def set_scale(self, index: int, scale: float) -> None:
        """Replaces the scale of a tensor that is quantized per tensor."""
        self.tensor(index).quantization.scale = np.array([scale], np.float32)

    def set_metadata(self, name: str, content: bytes) -> None:
        """Sets an entry that interpreters ignore."""
        self.model.metadata = self.model.metadata or []
        place = next((entry.buffer for entry in self.model.metadata if entry.name == name.encode()), None)
        if place is None:
            place = len(self.model.buffers)
            self.model.buffers.append(schema.BufferT())
            entry = schema.MetadataT()
            entry.name, entry.buffer = name.encode(), place
            self.model.metadata.append(entry)
        self.model.buffers[place].data = np.frombuffer(content, np.uint8)

    def metadata(self) -> dict[str, bytes]:
        """The file's metadata, by name."""
        buffers = self.model.buffers
        return {
            entry.name.decode(): b"" if buffers[entry.buffer].data is None else bytes(buffers[entry.buffer].data)
            for entry in self.model.metadata or []
        }

    def close_islands(self, names: tuple[str, ...]) -> None:
        """Lets operators that stand between DEQUANTIZE and QUANTIZE read and write the integers themselves.

        Args:
            names: operators whose kernels know int8, but which the quantizer leaves in float.
        """
        operators = self.graph.operators
        producer = {index: operator for operator in operators for index in operator.outputs}
        consumers: dict[int, list[Any]] = {}
        for operator in operators:
            for index in operator.inputs:
                consumers.setdefault(index, []).append(operator)
        for operator in operators:
            if self.operator_name(operator) not in names:
                continue
            before, after = producer.get(operator.inputs[0]), consumers.get(operator.outputs[0], [])
            if before is None or len(after) != 1:
                continue
            if (self.operator_name(before), self.operator_name(after[0])) == ("DEQUANTIZE", "QUANTIZE"):
                operator.inputs = np.array([before.inputs[0], *operator.inputs[1:]], np.int32)
                (result,) = after[0].outputs
                if result not in self.graph.outputs:  # the integers are known by the name that the floats had
                    self.tensor(result).name = self.tensor(operator.outputs[0]).name
                operator.outputs, after[0].outputs = after[0].outputs, []
        self.drop_unused()

    def close_splits(self) -> None:
        """Lets SPLITs split the integers that the quantizer leaves in float, since nobody reads one of their parts."""
        operators = self.graph.operators
        producer = {index: operator for operator in operators for index in operator.outputs}
        for operator in operators:
            before = producer.get(operator.inputs[1]) if self.operator_name(operator) == "SPLIT" else None
            if before is None or self.operator_name(before) != "DEQUANTIZE":
                continue
            source, results = before.inputs[0], list(operator.outputs)
            readers = [[one for one in operators if part in one.inputs] for part in results]
            after = [one for part in readers for one in part]
            same = all(self.parameters(one.outputs[0]) == self.parameters(source) for one in after)
            if {self.operator_name(one) for one in after} != {"QUANTIZE"} or any(len(part) > 1 for part in readers):
                continue
            if not same or {*results} & {*self.graph.outputs}:
                continue
            for place, part in enumerate(readers):
                if part:
                    results[place], part[0].outputs = part[0].outputs[0], []
                else:
                    unread = self.tensor(results[place])
                    unread.type, unread.quantization = self.tensor(source).type, self.tensor(source).quantization
            operator.inputs = np.array([operator.inputs[0], source], np.int32)
            operator.outputs = np.array(results, np.int32)
        self.drop_unused()

    def drop_unused(self) -> None:
        """Removes operators without an output that anyone reads, and tensors that nobody mentions."""
        graph = self.graph
        while True:
            read = {index for operator in graph.operators for index in operator.inputs} | set(graph.outputs)
            kept = [operator for operator in graph.operators if read & set(operator.outputs)]
            if len(kept) == len(graph.operators):
                break
            graph.operators = kept
        lists = [(owner, name) for owner in graph.operators for name in ("inputs", "outputs", "intermediates")]
        lists += [(graph, "inputs"), (graph, "outputs")]
        mentioned = sorted({index for owner, name in lists for index in self._indices(owner, name) if index >= 0})
        renumbered = {old: new for new, old in enumerate(mentioned)} | {-1: -1}
        graph.tensors = [graph.tensors[index] for index in mentioned]
        for owner, name in lists:
            if len(self._indices(owner, name)):
                setattr(owner, name, np.array([renumbered[i] for i in self._indices(owner, name)], np.int32))
        for signature in self.model.signatureDefs or []:
            for entry in (*signature.inputs, *signature.outputs):
                entry.tensorIndex = renumbered[entry.tensorIndex]

    @staticmethod
    def _indices(owner: Any, name: str) -> Any:
        indices = getattr(owner, name)
        return [] if indices is None else indices

    def order_by_name(self) -> None:
        """Puts inputs and outputs into the order of their names in the signature."""
        if not self.model.signatureDefs:  # the quantizer loses it where an input is of integers
            if max(len(self.graph.inputs), len(self.graph.outputs)) > 1:
                raise ValueError("the file has no signature, so the order of its inputs and outputs is not known")
            return
        signature = self.model.signatureDefs[0]
        for entries, indices in ((signature.inputs, self.graph.inputs), (signature.outputs, self.graph.outputs)):
            entries.sort(key=lambda entry: entry.name)
            indices[:] = [entry.tensorIndex for entry in entries]

    def _add_signature(self) -> None:
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
        signature.inputs, signature.outputs = (
            [self._entry(index) for index in ends] for ends in (self.graph.inputs, self.graph.outputs)
        )
        self.model.signatureDefs = [signature]

    def _entry(self, index: int) -> Any:
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = self.tensor(index).name, int(index)
        return entry

    def name_signature(self, inputs: list[str], outputs: list[str]) -> None:
        """Gives the signature's entries, in their order, other names."""
        if not self.model.signatureDefs:  # see `order_by_name`
            self._add_signature()
        signature = self.model.signatureDefs[0]
        for entries, names in ((signature.inputs, inputs), (signature.outputs, outputs)):
            for entry, name in zip(entries, names, strict=True):
                entry.name = name.encode()

    def add_float_ends(self) -> None:
        """Puts a QUANTIZE operator behind each quantized input, a DEQUANTIZE operator before each quantized output."""
        graph = self.graph
        before = [self._conversion("QUANTIZE", graph.inputs, place) for place in self._quantized(graph.inputs)]
        after = [self._conversion("DEQUANTIZE", graph.outputs, place) for place in self._quantized(graph.outputs)]
        graph.operators = [*before, *graph.operators, *after]

    def _quantized(self, indices: Any) -> list[int]:
        types = schema.TensorType.INT8, schema.TensorType.INT16
        return [place for place, index in enumerate(indices) if self.tensor(index).type in types]

    def add_tensor_like(self, name: bytes, like: int, dtype: int, quantization: Any = None) -> int:
        """Adds a tensor that is computed, of the shape of another one; gives its index."""
        tensor, other = schema.TensorT(), self.tensor(like)
        tensor.name, tensor.type, tensor.quantization = name, dtype, quantization
        tensor.shape, tensor.shapeSignature, tensor.hasRank = other.shape, other.shapeSignature, other.hasRank
        tensor.buffer = len(self.model.buffers)
        self.model.buffers.append(schema.BufferT())
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _conversion(self, name: str, ends: Any, place: int) -> Any:
        """An operator between an end of the graph and a new float tensor, which becomes that end."""
        old = int(ends[place])
        integers = self.tensor(old)
        new = self.add_tensor_like(integers.name, old, schema.TensorType.FLOAT32)
        integers.name = integers.name + f"_{self.type_name(integers.type).lower()}".encode()
        ends[place] = new
        for signature in self.model.signatureDefs or []:
            for entry in signature.inputs if name == "QUANTIZE" else signature.outputs:
                entry.tensorIndex = new if entry.tensorIndex == old else entry.tensorIndex
        pair = ([new], [old]) if name == "QUANTIZE" else ([old], [new])
        # int16 needs version 3 of DEQUANTIZE.
        return self.make_operator(name, *pair, version=3 if name == "DEQUANTIZE" else 2)

    def _opcode(self, name: str, version: int) -> int:
        number = getattr(schema.BuiltinOperator, name)
        for index, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number and code.version >= version:
                return index
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, _MOST_SMALL_CODE), version
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def opcode_of(self, code: Any) -> int:
        """The place of an entry of another file's list of operators, added where this file has none like it."""
        for index, known in enumerate(self.model.operatorCodes):
            if self.code_name(known) == self.code_name(code) and known.version == code.version:
                return index
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def shorten_names(self) -> None:
        """Numbers the tensors inside: in a long graph their names weigh more than anything else."""
        ends = {*self.graph.inputs, *self.graph.outputs}
        for index, tensor in enumerate(self.graph.tensors):
            if index not in ends:
                tensor.name = str(index).encode()

    def share_buffers(self) -> None:
        """Stores equal constants once: the quantizer makes one for each operator that uses it."""
        first: dict[bytes, int] = {}
        for tensor in self.graph.tensors:
            data = self.model.buffers[tensor.buffer].data
            if data is not None and len(data) and not tensor.isVariable:
                tensor.buffer = first.setdefault(bytes(data), tensor.buffer)

    def drop_unused_buffers(self) -> None:
        """Empties buffers that no tensor refers to: the quantizer leaves some, with undefined contents."""
        used = {tensor.buffer for tensor in self.graph.tensors}
        used |= {entry.buffer for entry in self.model.metadata or []}
        for index, buffer in enumerate(self.model.buffers):
            if index not in used:
                buffer.data = None
