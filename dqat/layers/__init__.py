"""Layers that simulate integer inference while they train."""

from dqat.layers.lstm import QuantizedLSTM
from dqat.layers.wrapper import QuantizedLayer, QuantizeWrapper

__all__ = ["QuantizeWrapper", "QuantizedLSTM", "QuantizedLayer"]
