"""Layers that simulate integer inference while they train."""

from dqat.layers.arithmetic import Arithmetic
from dqat.layers.lstm import QuantizedLSTM
from dqat.layers.steps import QuantizedSteps
from dqat.layers.wrapper import QuantizedLayer, QuantizeWrapper

__all__ = ["Arithmetic", "QuantizeWrapper", "QuantizedLSTM", "QuantizedLayer", "QuantizedSteps"]
