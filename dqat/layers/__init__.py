"""Layers that simulate integer inference while they train."""

from dqat.layers.arithmetic import Arithmetic
from dqat.layers.average_pooling import QuantizedAveragePooling
from dqat.layers.bidirectional import QuantizedBidirectional
from dqat.layers.cells import point
from dqat.layers.hard_swish import HardSwish
from dqat.layers.lstm import QuantizedLSTM
from dqat.layers.multi_head_attention import QuantizedMultiHeadAttention
from dqat.layers.quantize_point import QuantizePoint
from dqat.layers.quantized_layer import QuantizedLayer
from dqat.layers.recurrent import QuantizedRNN
from dqat.layers.requantization import ChangeBits, Requantization
from dqat.layers.steps import QuantizedSteps
from dqat.layers.time_as_batch import MergeTime, SplitTime
from dqat.layers.wrapper import QuantizeWrapper

__all__ = [
    "Arithmetic",
    "ChangeBits",
    "HardSwish",
    "MergeTime",
    "QuantizePoint",
    "QuantizeWrapper",
    "QuantizedAveragePooling",
    "QuantizedBidirectional",
    "QuantizedLSTM",
    "QuantizedLayer",
    "QuantizedMultiHeadAttention",
    "QuantizedRNN",
    "QuantizedSteps",
    "Requantization",
    "SplitTime",
    "point",
]
