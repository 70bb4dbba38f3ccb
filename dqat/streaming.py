"""A streaming file, as a device runs it: one call a frame."""

import os

import numpy as np

from dqat import integer
from dqat.interpreter import open_interpreter

#: What `export_tflite(streaming=True)` calls a state that goes in, and the same state where it comes out.
STATE, NEXT_STATE = "_state_", "_next_state_"


class Stream:
    """Runs a file that `export_tflite(..., streaming=True)` wrote, and keeps its states from frame to frame.

    The states of TFLite's LSTM operator stay in the interpreter's variables; those of unrolled cells are int8
    inputs and outputs of the file, handed on here.

    Args:
        path: the file.
        kernels: of the interpreter, "default" or "builtin".

    Attributes:
        states: names of the states that are inputs of the file.

    Raises:
        ValueError: where the file is no such model.
    """

    def __init__(self, path: str | os.PathLike, kernels: str = "default") -> None:
        self._interpreter = open_interpreter(path, kernels)
        runner = self._interpreter.get_signature_runner()
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        self.states = tuple(sorted(name for name in inputs if STATE in name))
        frames = [name for name in inputs if name not in self.states]
        results = [name for name in outputs if NEXT_STATE not in name]
        if len(frames) != 1 or len(results) != 1 or inputs[frames[0]]["shape"][1] != 1:
            raise ValueError(f"{path} is no streaming file: it takes {frames} and gives {results}")
        self._frame, self._result = inputs[frames[0]], outputs[results[0]]
        self._pairs = [(inputs[name], outputs[name.replace(STATE, NEXT_STATE)]) for name in self.states]
        self.reset()

    @property
    def output_parameters(self) -> tuple[float, int]:
        """Scale and zero point of the output."""
        return self._result["quantization"]

    def reset(self) -> None:
        """Begins a new sequence: all states are zero."""
        self._interpreter.reset_all_variables()
        for entry, _ in self._pairs:
            zero = np.full(entry["shape"], entry["quantization"][1], np.int8)
            self._interpreter.set_tensor(entry["index"], zero)

    def step(self, frame: np.ndarray) -> np.ndarray:
        """The output after one more frame.

        Args:
            frame: float32 [features].

        Returns:
            int8, the file's output for this frame.
        """
        scale, zero_point = self._frame["quantization"]
        codes = integer.quantize(frame, scale=scale, zero_point=zero_point).astype(np.int8)
        self._interpreter.set_tensor(self._frame["index"], codes.reshape(self._frame["shape"]))
        self._interpreter.invoke()
        result = self._interpreter.get_tensor(self._result["index"])[0]
        new = [self._interpreter.get_tensor(leave["index"]) for _, leave in self._pairs]
        for (entry, _), value in zip(self._pairs, new, strict=True):
            self._interpreter.set_tensor(entry["index"], value)
        return result
