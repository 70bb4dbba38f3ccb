"""What TFLite can't run in integers, with the reason: error messages, tests and documentation read this table."""

from dqat.keras_api import keras
from dqat.layers import HardSwish

layers = keras.layers

#: By class of layer: why, and what to do instead.
LAYERS: dict[type, tuple[str, str]] = {
    layers.Conv3DTranspose: (
        "TFLite's CONV_3D_TRANSPOSE computes in float only",
        "Use UpSampling3D and a Conv3D",
    ),
    layers.ConvLSTM1D: ("TFLite has no operator for its cell", "Use TimeDistributed convolutions and an LSTM"),
    layers.ConvLSTM2D: ("TFLite has no operator for its cell", "Use TimeDistributed convolutions and an LSTM"),
    layers.ConvLSTM3D: ("TFLite has no operator for its cell", "Use TimeDistributed convolutions and an LSTM"),
    layers.LocallyConnected1D: ("TFLite has no convolution with a kernel a place", "Use Conv1D"),
    layers.LocallyConnected2D: ("TFLite has no convolution with a kernel a place", "Use Conv2D"),
    layers.ThresholdedReLU: (
        "TFLite has no operator for it, and its comparisons give no int8 to multiply with",
        "Use ReLU",
    ),
    layers.TimeDistributed: (
        "around a recurrent layer it has two times, and TFLite's operators one",
        "Reshape the outer time into the batch before the model",
    ),
    layers.Lambda: (
        "what its function computes is not known",
        "Use layers or TensorFlow operations in the functional model, which are quantized one by one",
    ),
}
#: What TFLite runs with int8 activations, but not with int16 ones ("w8a16"): by class of layer, its operator.
INT8_ONLY: dict[type, str] = {
    layers.ELU: "ELU",
    layers.PReLU: "PRELU",
    layers.RepeatVector: "TILE",
    layers.UnitNormalization: "L2_NORMALIZATION",
    HardSwish: "HARD_SWISH",
}
#: Likewise, by Keras' name of the activation.
INT8_ONLY_ACTIVATIONS = {"elu": "ELU", "gelu": "GELU"}
#: By Keras' name of the activation.
ACTIVATIONS: dict[str, tuple[str, str]] = {
    "softplus": (
        "TFLite has no operator for it, and int8 can't hold its logarithm for inputs beyond 5.5",
        "Use relu, elu or gelu",
    ),
    "softsign": ("it divides, and TFLite's DIV computes in float only", "Use tanh"),
    "selu": ("TFLite has no operator for it, and ELU has no other slope", "Use elu"),
}
