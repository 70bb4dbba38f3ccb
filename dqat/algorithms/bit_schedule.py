"""Bit widths that fall in the course of training, down to those of the target.

Few bits change a network so much at once that training may not find back. Going down step by step, each from the
weights of the step before, is the progressive quantization of Zhuang et al., Towards Effective Low-bitwidth
Convolutional Neural Networks (2018, arXiv:1711.00205), section 3.2.
"""

from collections.abc import Mapping

from dqat.keras_api import keras
from dqat.layers import QuantizedLayer
from dqat.model import QuantizedModel, named_quantizers, require_quantized
from dqat.observers import LearnedStep


def set_least_bits(model: keras.Model, *, weights: int = 0, activations: int = 0) -> None:
    """Quantizes a model's tensors with so many bits at least, from now on, in place.

    A tensor whose own number of bits is higher keeps it. Ranges stay as they are, since they don't depend on bits. The
    numbers are no part of a saved model: it is saved, compared and loaded with its own.

    Args:
        model: what `dqat.quantize_model` returned. Functions that Keras has traced of it are traced again.
        weights: bits, at most 16; 0 for each tensor's own.
        activations: the same for activations and states.

    Raises:
        TypeError: for a model that is not quantized.
        ValueError: for a number of bits out of bounds, or a model with `LearnedStep` quantizers, whose steps belong to
            their bits.
    """
    require_quantized(model)
    for name, least in (("weights", weights), ("activations", activations)):
        if not 0 <= least <= 16:
            raise ValueError(f"{name} must be 0 to 16 bits, got {least}")
    learned = [path for path, one in named_quantizers(model) if isinstance(one.observer, LearnedStep)]
    if learned:
        raise ValueError(f"a learned step belongs to its number of bits, and {', '.join(learned)} have one")
    for _, quantizer in named_quantizers(model):
        quantizer.set_least_bits(activations)
    for layer in model.layers:
        if isinstance(layer, QuantizedLayer):
            layer.set_least_weight_bits(weights)
    _trace_again(model)


def _trace_again(model: QuantizedModel) -> None:
    model.test_function = model.predict_function = None
    if model.optimizer is not None:
        model.make_train_function(force=True)


class BitSchedule(keras.callbacks.Callback):
    """Trains with many bits first, and with fewer from certain steps on.

    Steps are counted over the model's whole life, in the model's own count, which every checkpoint holds: a run that
    resumes goes on with the bits of its step, and all replicas change in the same step. A change traces the training
    step again.

        fit(..., callbacks=[BitSchedule(weights={0: 8, 300: 6, 600: 4})])    # a model of scheme="w4a8"

    Args:
        weights: by first step, the least number of bits from there on; step 0 must be among them. A tensor whose own
            number of bits is higher keeps it, so that the last entry may be 0 or the target's. None changes nothing.
        activations: the same for activations and states.

    Attributes:
        bits: (weights, activations), the least numbers in use; None before training.

    Raises:
        ValueError: for a schedule without step 0, a negative step, bits out of bounds or that rise; when training
            begins, see `set_least_bits`.
        TypeError: when training begins, for a model that is not quantized.
    """

    def __init__(self, weights: Mapping[int, int] | None = None, activations: Mapping[int, int] | None = None) -> None:
        super().__init__()
        self.weights, self.activations = (
            _checked(*pair) for pair in (("weights", weights), ("activations", activations))
        )
        self.bits: tuple[int, int] | None = None
        self._steps = 0

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Sets the bits of the model's step."""
        require_quantized(self.model)
        self._steps, self.bits = self.model.range_sync.schedule.steps, None
        self._set()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Sets the bits of the next step, where they change."""
        self._steps += 1
        self._set()

    def _set(self) -> None:
        bits = _at(self.weights, self._steps), _at(self.activations, self._steps)
        if bits != self.bits:
            set_least_bits(self.model, weights=bits[0], activations=bits[1])
            self.bits = bits


def _checked(name: str, schedule: Mapping[int, int] | None) -> dict[int, int]:
    found = dict(sorted((schedule or {0: 0}).items()))
    bits = list(found.values())
    if 0 not in found or min(found) < 0:
        raise ValueError(f"{name} must say how many bits step 0 has, and no step before it, got {schedule}")
    if any(one != 0 and not 2 <= one <= 16 for one in bits) or bits != sorted(bits, reverse=True):
        raise ValueError(f"{name} must have 2 to 16 bits that never rise, or 0 for the model's own, got {schedule}")
    return found


def _at(schedule: dict[int, int], step: int) -> int:
    return schedule[max(first for first in schedule if first <= step)]
