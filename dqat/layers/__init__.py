"""Layers that simulate integer inference while they train."""

from dqat.layers.arithmetic import Arithmetic
from dqat.layers.bidirectional import QuantizedBidirectional
from dqat.layers.cells import point
from dqat.layers.lstm import QuantizedLSTM
from dqat.layers.quantize_point import QuantizePoint
from dqat.layers.recurrent import QuantizedRNN
from dqat.layers.steps import QuantizedSteps
from dqat.layers.wrapper import QuantizedLayer, QuantizeWrapper

__all__ = [
    "Arithmetic",
    "QuantizePoint",
    "QuantizeWrapper",
    "QuantizedBidirectional",
    "QuantizedLSTM",
    "QuantizedLayer",
    "QuantizedRNN",
    "QuantizedSteps",
    "point",
]
