"""An integer file in TFLite's interpreter: TensorFlow's, or that of the LiteRT package."""

import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from dqat import integer
from dqat.export import checksum
from dqat.export.flatbuffer import Flatbuffer
from dqat.export.inspection import TfliteFile, inspect_tflite
from dqat.export.trial import run_on_zeros

#: Which kernels run a file: the runtime's choice, or those built in alone. Where a cell is unrolled they may differ by
#: an LSB; TFLite's LSTM operator is the same in all.
KERNELS = {
    "default": ("default kernels (XNNPACK where it applies)", "AUTO"),
    "builtin": ("builtin kernels", "BUILTIN_WITHOUT_DEFAULT_DELEGATES"),
}
#: Who runs a file: TensorFlow's own interpreter, or the package `ai-edge-litert`.
RUNTIMES = ("tensorflow", "litert")


def _runtime(name: str) -> tuple[type, Any, str]:
    """Class of the interpreter, its kinds of kernels, and words for reports."""
    if name == "tensorflow":
        return tf.lite.Interpreter, tf.lite.experimental.OpResolverType, f"TensorFlow {tf.__version__} interpreter"
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        raise ImportError(f"runtime 'litert' needs LiteRT ({error}): pip install ai-edge-litert") from None
    return interpreter.Interpreter, interpreter.OpResolverType, f"LiteRT {importlib.metadata.version('ai-edge-litert')}"


def describe(kernels: str, runtime: str) -> str:
    """The words of a report for what ran a file.

    Raises:
        ValueError: for other kernels or another runtime.
        ImportError: for a runtime that is not installed.
    """
    for name, value, known in (("kernels", kernels, KERNELS), ("runtime", runtime, RUNTIMES)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return f"{_runtime(runtime)[2]}, {KERNELS[kernels][0]}"


def open_interpreter(
    path: str | os.PathLike,
    kernels: str = "default",
    runtime: str = "tensorflow",
    *,
    threads: int | None = None,
    content: bytes | None = None,
) -> Any:
    """An interpreter of a file, ready to run.

    Args:
        path: the file.
        kernels: "default" or "builtin".
        runtime: "tensorflow" or "litert".
        threads: of the kernels; None leaves it to the runtime.
        content: runs this in the file's stead.

    Raises:
        ValueError: for a file that is no model, or other kernels or another runtime.
        ImportError: for a runtime that is not installed.
    """
    describe(kernels, runtime)
    interpreter, resolvers, _ = _runtime(runtime)
    try:
        source = {"model_path": os.fspath(path)} if content is None else {"model_content": content}
        kind = getattr(resolvers, KERNELS[kernels][1])
        opened = interpreter(**source, experimental_op_resolver_type=kind, num_threads=threads)
        opened.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is no TFLite model that this interpreter can run: {error}") from error
    return opened


def try_once(path: str) -> None:
    """Runs a file once on zeros. In a process of its own it tells whether a file of unknown origin can be run."""
    run_on_zeros(open_interpreter(path))


def is_sealed(path: str | os.PathLike) -> bool:
    """Whether a file carries dqat's checksum (which `inspect_tflite` has checked)."""
    with open(path, "rb") as file:
        return checksum.is_there(file.read())


def numbers(values: Any) -> np.ndarray:
    """Samples as an interpreter takes them: int32 or float32.

    Raises:
        ValueError: for a NaN or an Inf, or what is no number.
    """
    values = np.asarray(values)
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise ValueError("samples must be finite, and a NaN or an Inf is among them: integers have none")
    return values.astype(np.int32 if np.issubdtype(values.dtype, np.integer) else np.float32)


@dataclass(frozen=True)
class _End:
    """An input or output: name, shape of a sample, place, type, and the type and parameters of its integers."""

    name: str
    shape: tuple[int, ...]
    index: int
    dtype: type
    integers: type
    scale: float
    zero_point: int


class Runner:
    """An integer file, fed with float samples.

    Args:
        path: a file with int8, int16, int32 or float32 inputs and outputs; one that takes any number of samples gets
            one.
        kernels: "default" or "builtin".
        runtime: "tensorflow" or "litert".
        watch: indices of tensors inside that `run` gives too.

    Attributes:
        batch_size: samples a call.

    Raises:
        ValueError: where the file is no such model.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        kernels: str = "default",
        runtime: str = "tensorflow",
        watch: Sequence[int] = (),
    ) -> None:
        file = inspect_tflite(path)
        content = _watchable(path, watch) if watch else None
        self._interpreter = open_interpreter(path, kernels, runtime, content=content)
        self._watch = watch
        self.watched: dict[int, list[np.ndarray]] = {index: [] for index in watch}
        results = self._interpreter.get_output_details()[: len(file.subgraphs[0].outputs)]
        details = self._interpreter.get_input_details(), results
        self._inputs, self._outputs = ([_end(path, file, one) for one in side] for side in details)
        self.batch_size = int(details[0][0]["shape"][0])

    @property
    def output_parameters(self) -> list[tuple[float, int]]:
        """Scale and zero point of each output; of its integers, where it is float32."""
        return [(end.scale, end.zero_point) for end in self._outputs]

    def run(self, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
        """int8 or int16 outputs [samples, ...] for float32 samples [samples, ...] of each input.

        Attribute `watched` gets, for each call, one array more of each tensor in `watch`.

        Raises:
            ValueError: where the number of inputs, or their shape, is not the file's.
        """
        if len(samples) != len(self._inputs):
            raise ValueError(f"the file has {len(self._inputs)} inputs, and samples were given for {len(samples)}")
        for part, end in zip(samples, self._inputs, strict=True):
            if part.shape[1:] != end.shape:
                raise ValueError(
                    f"the file's input {end.name!r} has the shape {list(end.shape)} for each sample, and the samples "
                    f"have {list(part.shape[1:])}"
                )
        codes = [self._codes(*pair) for pair in zip(samples, self._inputs, strict=True)]
        count, size = len(codes[0]), self.batch_size
        each = [
            self._run_batch([_padded(code[at : at + size], size) for code in codes]) for at in range(0, count, size)
        ]
        return [np.concatenate(parts)[:count] for parts in zip(*each, strict=True)]

    def _codes(self, samples: np.ndarray, end: _End) -> np.ndarray:
        if end.dtype not in (np.int8, np.int16):
            return samples.astype(end.dtype)
        return _to_codes(samples, end)

    def _run_batch(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        self._interpreter.reset_all_variables()  # else an LSTM goes on from the last sample's state
        for end, code in zip(self._inputs, codes, strict=True):
            self._interpreter.set_tensor(end.index, code)
        self._interpreter.invoke()
        for index in self._watch:
            self.watched[index].append(self._interpreter.get_tensor(index))
        found = [self._interpreter.get_tensor(end.index) for end in self._outputs]
        return [
            _to_codes(value, end) if end.dtype == np.float32 else value
            for value, end in zip(found, self._outputs, strict=True)
        ]


def _watchable(path: str | os.PathLike, watch: Sequence[int]) -> bytes:
    """The file with tensors inside as further outputs.

    The interpreter's own option to keep all tensors lets operators write over inputs that nobody reads later.
    """
    with open(path, "rb") as file:
        flatbuffer = Flatbuffer(file.read())
    ends = [int(index) for index in flatbuffer.graph.outputs]
    taken = {*ends, *map(int, flatbuffer.graph.inputs)}
    flatbuffer.graph.outputs = np.array([*ends, *(index for index in watch if index not in taken)], np.int32)
    return flatbuffer.to_bytes()


def _padded(codes: np.ndarray, size: int) -> np.ndarray:
    """The last samples again, where they are less than a batch."""
    return codes if len(codes) == size else np.concatenate([codes, np.repeat(codes[-1:], size - len(codes), axis=0)])


def _to_codes(values: np.ndarray, end: _End) -> np.ndarray:
    bits = np.iinfo(end.integers).bits
    return integer.quantize(values, scale=end.scale, zero_point=end.zero_point, num_bits=bits).astype(end.integers)


def _end(path: str | os.PathLike, file: TfliteFile, details: dict[str, Any]) -> _End:
    integers = dtype = details["dtype"]
    scale, zero_point = details["quantization"]
    if dtype == np.float32:
        # The file's own conversion says what its integers are.
        graph, index = file.subgraphs[0], details["index"]
        neighbours = [
            other
            for operator in graph.operators
            for name, ends, others in (
                ("QUANTIZE", operator.inputs, operator.outputs),
                ("DEQUANTIZE", operator.outputs, operator.inputs),
            )
            if operator.name == name and ends[0] == index
            for other in others
        ]
        if not neighbours:
            raise ValueError(f"{path}: tensor {details['name']!r} is float32 and nothing converts it to integers")
        tensor = graph.tensors[neighbours[0]]
        scale, zero_point = tensor.scales[0], tensor.zero_points[0]
        integers = np.dtype(tensor.dtype.lower()).type
    elif dtype not in (np.int8, np.int16, np.int32):
        raise ValueError(
            f"{path}: an end of the model is {np.dtype(dtype).name}, but int8, int16, int32 and float32 are expected"
        )
    shape = tuple(int(size) for size in details["shape"][1:])
    return _End(details["name"], shape, details["index"], dtype, integers, scale, zero_point)
