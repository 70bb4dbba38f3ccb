"""Parity: the simulation against the exported file, in LSBs of the output."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from dqat.export.inspection import inspect_tflite
from dqat.keras_api import keras
from dqat.model import float32_model, require_quantized

#: Which kernels of the interpreter run a file: TensorFlow's choice, or those built in alone. Where a cell is unrolled
#: they may differ by an LSB; TFLite's LSTM operator is the same in all.
KERNELS = {
    "default": ("default kernels (XNNPACK where it applies)", tf.lite.experimental.OpResolverType.AUTO),
    "builtin": ("builtin kernels", tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES),
}


def open_interpreter(path: str | os.PathLike, kernels: str) -> tf.lite.Interpreter:
    """An interpreter of a file, ready to run.

    Raises:
        ValueError: for a file that is no model, or kernels other than "default" and "builtin".
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be one of {', '.join(KERNELS)}, got {kernels!r}")
    try:
        interpreter = tf.lite.Interpreter(model_path=os.fspath(path), experimental_op_resolver_type=KERNELS[kernels][1])
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is no TFLite model that this interpreter can run: {error}") from error
    return interpreter


def to_codes(values: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """int8 codes of float32 values, rounded as fake-quant rounds: half up."""
    codes = np.floor(values / np.float32(scale) + np.float32(0.5)) + zero_point
    return np.clip(codes, -128, 127).astype(np.int8)


@dataclass(frozen=True)
class OutputParity:
    """Parity of one tensor.

    Attributes:
        name: of the layer or output.
        equal: share of the values with the same integer, 0 to 1.
        within_1_lsb: share of the values at most one integer apart.
        max_lsb: largest difference in integers.
    """

    name: str
    equal: float
    within_1_lsb: float
    max_lsb: int


@dataclass(frozen=True)
class ParityReport:
    """What `verify` found.

    Attributes:
        equal: share of the output values with the same integer, 0 to 1.
        within_1_lsb: share at most one integer apart.
        max_lsb: largest difference in integers.
        same_class: share of samples whose largest output stands at the same place.
        layers: parity by output so far; by layer is to come.
        simulation: float32 [samples, ...], what the quantization-aware model gives; a list where it has several
            outputs.
        integer: the same from the file, dequantized.
        kernels: which kernels of which interpreter the figures are for.
    """

    equal: float
    within_1_lsb: float
    max_lsb: int
    same_class: float
    layers: tuple[OutputParity, ...]
    simulation: np.ndarray | list[np.ndarray]
    integer: np.ndarray | list[np.ndarray]
    kernels: str


class Runner:
    """An integer file in the TFLite interpreter, fed with float samples one by one.

    Args:
        path: an int8 file, batch size 1.
        kernels: "default" or "builtin".

    Raises:
        ValueError: where the file is no such model.
    """

    def __init__(self, path: str | os.PathLike, kernels: str = "default") -> None:
        self._interpreter = open_interpreter(path, kernels)
        self._inputs, self._outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        for side, all_details in (("input", self._inputs), ("output", self._outputs)):
            for details in all_details:
                if details["dtype"] not in (np.int8, np.int32):
                    raise ValueError(f"{path}: an {side} is {np.dtype(details['dtype']).name}, int8 is expected")

    @property
    def output_parameters(self) -> list[tuple[float, int]]:
        """Scale and zero point of each output."""
        return [details["quantization"] for details in self._outputs]

    def run(self, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
        """int8 outputs [samples, ...] for float32 samples [samples, ...] of each input.

        Raises:
            ValueError: where the number of inputs is not the file's.
        """
        if len(samples) != len(self._inputs):
            raise ValueError(f"the file has {len(self._inputs)} inputs, and samples were given for {len(samples)}")
        codes = [self._codes(*pair) for pair in zip(samples, self._inputs, strict=True)]
        each = [self._run_one([code[index : index + 1] for code in codes]) for index in range(len(codes[0]))]
        return [np.concatenate(parts) for parts in zip(*each, strict=True)]

    def _codes(self, samples: np.ndarray, details: dict[str, Any]) -> np.ndarray:
        if details["dtype"] == np.int32:  # such as the indices of an embedding
            return samples.astype(np.int32)
        return to_codes(samples, *details["quantization"])

    def _run_one(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        self._interpreter.reset_all_variables()  # else an LSTM goes on from the last sample's state
        for details, code in zip(self._inputs, codes, strict=True):
            self._interpreter.set_tensor(details["index"], code)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(details["index"]) for details in self._outputs]


def _numbers(values: Any) -> np.ndarray:
    values = np.asarray(values)
    return values.astype(np.int32 if np.issubdtype(values.dtype, np.integer) else np.float32)


def _in_order(samples: Any, names: list[str]) -> list[np.ndarray]:
    """The samples of each input, in the model's order."""
    if isinstance(samples, dict):
        return [_numbers(samples[name]) for name in names]
    several = len(names) > 1 and isinstance(samples, (list, tuple))
    return [_numbers(part) for part in (samples if several else [samples])]


def _batches(data: object, names: list[str]) -> Iterator[list[np.ndarray]]:
    if isinstance(data, tf.data.Dataset):
        for batch in data:
            yield _in_order(batch[0] if isinstance(batch, tuple) else batch, names)
        return
    samples = _in_order(data, names)
    for begin in range(0, len(samples[0]), 64):
        yield [part[begin : begin + 64] for part in samples]


def verify(model: keras.Model, path: str | os.PathLike, data: object, *, kernels: str = "default") -> ParityReport:
    """Runs simulation and exported file on the same samples and compares their outputs.

    Args:
        model: the quantization-aware model that was exported; one in mixed precision is simulated in float32.
        path: the file that `export_tflite` wrote.
        data: float32 samples [samples, ...], or a `tf.data.Dataset` of batches, with labels or without. For a
            model with several inputs: a list in the model's order, or a dict by input name, of such.
        kernels: of the interpreter, "default" or "builtin" (without XNNPACK).

    Returns:
        A `ParityReport`.

    Raises:
        TypeError: for a model that is not quantized.
        TfliteFileError: for a damaged file.
        ValueError: for a file that is no int8 model, no samples, or samples of another number of inputs.
    """
    require_quantized(model)
    model = float32_model(model)
    inspect_tflite(path)
    runner = Runner(path, kernels)
    simulated, integers = [], []
    for batch in _batches(data, model.input_names):
        outputs = model(_as_inputs(model, batch), training=False)
        simulated.append([output.numpy() for output in tf.nest.flatten(outputs)])
        integers.append(runner.run(batch))
    if not simulated:
        raise ValueError("data has no samples")
    simulation, integer = (
        [np.concatenate(parts) for parts in zip(*all_, strict=True)] for all_ in (simulated, integers)
    )
    apart, same_class, dequantized = [], [], []
    for floats, codes, (scale, zero_point) in zip(simulation, integer, runner.output_parameters, strict=True):
        codes = codes.astype(np.int32)
        expected = np.rint(floats / scale).astype(np.int32) + zero_point
        apart.append(np.abs(expected - codes).reshape(-1))
        same_class.append((expected.argmax(-1) == codes.argmax(-1)).mean())
        dequantized.append(((codes - zero_point) * np.float32(scale)).astype(np.float32))
    one = len(simulation) == 1
    total = _parity("", np.concatenate(apart))
    return ParityReport(
        equal=total.equal,
        within_1_lsb=total.within_1_lsb,
        max_lsb=total.max_lsb,
        same_class=float(np.mean(same_class)),
        layers=tuple(_parity(*pair) for pair in zip(model.output_names, apart, strict=True)),
        simulation=simulation[0] if one else simulation,
        integer=dequantized[0] if one else dequantized,
        kernels=f"TensorFlow {tf.__version__} interpreter, {KERNELS[kernels][0]}",
    )


def _as_inputs(model: keras.Model, batch: list[np.ndarray]) -> Any:
    return batch[0] if len(batch) == 1 else tf.nest.pack_sequence_as(model._nested_inputs, batch)


def _parity(name: str, apart: np.ndarray) -> OutputParity:
    return OutputParity(name, float((apart == 0).mean()), float((apart <= 1).mean()), int(apart.max()))
