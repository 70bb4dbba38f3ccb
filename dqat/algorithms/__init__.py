"""Algorithms that look at more than one layer, or change a model while it trains.

There are three kinds, and each is plain code on public parts of dqat, as one of your own would be:

- **From model to model**, before or after quantization; they follow one another in the order that a script writes:

      model = dqat.algorithms.equalize(model)                             # float to float
      quantized = dqat.quantize_model(model)
      dqat.algorithms.calibrate(quantized, batches)                       # ranges without training
      quantized = dqat.algorithms.correct_biases(quantized, samples)      # quantized to quantized

  They read a model with `dqat.graph.read(model)`: its layer calls in order, and who reads what; and `graph.run` runs
  it call by call.
- **From model to figures**, such as `sensitivity`. `dqat.switching.in_float(model, tensors)` is the model with some
  tensors, or all, unquantized; paths are those of `dqat.ranges`.
- **Between training steps**, such as `BitSchedule`: Keras callbacks. What they do follows from
  `model.range_sync.schedule.steps`, the count that every checkpoint holds and all replicas share, so that a run that
  resumes does the same; and `set_least_bits` is how they change what the model quantizes.

What works inside every step stands in the layers: ranges that several layers share (`dqat.rules`), observers
(`dqat.observers`: a class with one method), and weights with a structure of their own (`dqat.layers.kept`).
"""

from dqat.algorithms.bias_correction import correct_biases, mean_shifts
from dqat.algorithms.bit_schedule import BitSchedule, set_least_bits
from dqat.algorithms.calibration import calibrate
from dqat.algorithms.equalization import equalize
from dqat.algorithms.sensitivities import LayerSensitivity, Sensitivity, sensitivity

__all__ = [
    "BitSchedule",
    "LayerSensitivity",
    "Sensitivity",
    "calibrate",
    "correct_biases",
    "equalize",
    "mean_shifts",
    "sensitivity",
    "set_least_bits",
]
