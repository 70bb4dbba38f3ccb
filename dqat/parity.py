"""Parity: the simulation against the exported file, in LSBs of the output."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from dqat.export.inspection import inspect_tflite
from dqat.keras_api import keras
from dqat.model import require_quantized


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
        simulation: float32 [samples, ...], what the quantization-aware model gives.
        integer: the same from the file, dequantized.
        kernels: which kernels of which interpreter the figures are for.
    """

    equal: float
    within_1_lsb: float
    max_lsb: int
    same_class: float
    layers: tuple[OutputParity, ...]
    simulation: np.ndarray
    integer: np.ndarray
    kernels: str


class Runner:
    """An integer file in the TFLite interpreter, fed with float samples one by one.

    Args:
        path: an int8 file with one input and one output, batch size 1.

    Raises:
        ValueError: where the file is no such model.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        try:
            self._interpreter = tf.lite.Interpreter(model_path=os.fspath(path))
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is no TFLite model that this interpreter can run: {error}") from error
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if len(inputs) != 1 or len(outputs) != 1:
            raise ValueError(f"{path} has {len(inputs)} inputs and {len(outputs)} outputs; one of each is expected")
        self._input, self._output = inputs[0], outputs[0]
        for side, details in (("input", self._input), ("output", self._output)):
            if details["dtype"] != np.int8:
                raise ValueError(f"{path}: the {side} is {np.dtype(details['dtype']).name}, int8 is expected")

    @property
    def output_parameters(self) -> tuple[float, int]:
        """Scale and zero point of the output."""
        return self._output["quantization"]

    def run(self, samples: np.ndarray) -> np.ndarray:
        """int8 outputs [samples, ...] for float32 samples [samples, ...]."""
        scale, zero_point = self._input["quantization"]
        # The rounding of fake-quant: half up.
        codes = np.floor(samples / np.float32(scale) + np.float32(0.5)) + zero_point
        codes = np.clip(codes, -128, 127).astype(np.int8)
        return np.concatenate([self._run_one(code[np.newaxis]) for code in codes])

    def _run_one(self, code: np.ndarray) -> np.ndarray:
        self._interpreter.reset_all_variables()  # else an LSTM goes on from the last sample's state
        self._interpreter.set_tensor(self._input["index"], code)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output["index"])


def _batches(data: object) -> Iterator[np.ndarray]:
    if isinstance(data, tf.data.Dataset):
        for batch in data:
            yield np.asarray(batch[0] if isinstance(batch, tuple) else batch, np.float32)
        return
    samples = np.asarray(data, np.float32)
    for begin in range(0, len(samples), 64):
        yield samples[begin : begin + 64]


def verify(model: keras.Model, path: str | os.PathLike, data: object) -> ParityReport:
    """Runs simulation and exported file on the same samples and compares their outputs.

    Args:
        model: the quantization-aware model that was exported.
        path: the file that `export_tflite` wrote.
        data: float32 samples [samples, ...], or a `tf.data.Dataset` of batches, with labels or without.

    Returns:
        A `ParityReport`.

    Raises:
        TypeError: for a model that is not quantized.
        TfliteFileError: for a damaged file.
        ValueError: for a file that is no int8 model with one input and one output, or no samples.
    """
    require_quantized(model)
    inspect_tflite(path)
    runner = Runner(path)
    simulated, integers = [], []
    for batch in _batches(data):
        simulated.append(model(batch, training=False).numpy())
        integers.append(runner.run(batch))
    if not simulated:
        raise ValueError("data has no samples")
    simulation, integer = np.concatenate(simulated), np.concatenate(integers).astype(np.int32)
    scale, zero_point = runner.output_parameters
    expected = np.rint(simulation / scale).astype(np.int32) + zero_point
    apart = np.abs(expected - integer)
    same_class = (expected.argmax(-1) == integer.argmax(-1)).mean()
    output = OutputParity(
        model.output_names[0], float((apart == 0).mean()), float((apart <= 1).mean()), int(apart.max())
    )
    return ParityReport(
        equal=output.equal,
        within_1_lsb=output.within_1_lsb,
        max_lsb=output.max_lsb,
        same_class=float(same_class),
        layers=(output,),
        simulation=simulation,
        integer=((integer - zero_point) * np.float32(scale)).astype(np.float32),
        kernels=f"TensorFlow {tf.__version__} interpreter, default kernels (XNNPACK where it applies)",
    )
