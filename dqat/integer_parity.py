"""Whether a file computes what its integers must give: its layers against their integer references.

A reference (`dqat.simulation`) is TFLite's builtin kernels to the bit, made from the model's weights and ranges. Where
it gives the file's values from the file's inputs, what lies between file and float simulation is rounding. Where it
does not, the file is not what was trained.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from dqat import graph
from dqat.keras_api import keras
from dqat.layers import QuantizedLSTM, QuantizedRNN, QuantizeWrapper
from dqat.model import named_quantizers
from dqat.quantizers import Quantizer
from dqat.simulation import Codes, NoReferenceError, require_8_bits, run_layer

#: Gives the file's tensors for the calls of a quantizer, in order; an empty list where it has none of them, or not all.
FileTensors = Callable[[str, str | None, int], list[Codes]]


def reference_shares(model: keras.Model, inputs: list[np.ndarray], tensors: FileTensors) -> dict[str, float]:
    """Runs each layer that has a reference on the file's inputs.

    Args:
        model: the quantization-aware model, of float32.
        inputs: samples of each input.
        tensors: takes a quantizer's path, a scope (see `dqat.export.points`) where it has several, and how many calls
            it has there.

    Returns:
        By quantizer, the share of the file's values that the reference gives too: 1 where the file is right. Within
        cells it is that of the cell's output. Empty for models that are not of 8 bits.
    """
    try:
        require_8_bits(model)
    except NoReferenceError:
        return {}
    return _Comparison(model, tensors).run(inputs)


class _Comparison:
    def __init__(self, model: keras.Model, tensors: FileTensors) -> None:
        self._source, self._tensors = graph.read(model), tensors
        self._paths = {id(quantizer): path for path, quantizer in named_quantizers(model)}
        self._equal: dict[str, list[np.ndarray]] = {}

    def run(self, inputs: list[np.ndarray]) -> dict[str, float]:
        values = dict(zip(graph.tensors_in(self._source.inputs), inputs, strict=True))
        for call in self._source.calls:
            if call.is_input:
                continue
            known = [values[tensor] for tensor in call.inputs if tensor in values]
            # A layer that is called twice has two tensors in the file for each of its quantizers.
            once = len(self._source.calls_of(call.layer)) == 1
            try:
                if not once or len(known) < len(call.inputs):
                    raise NoReferenceError
                results = tf.nest.flatten(run_layer(call.layer, known, self._settle))
            except NoReferenceError:
                results = self._of_file(call.layer) if once else []
            if len(results) == len(call.results):
                values |= zip(call.results, results, strict=True)
        return {path: float(np.concatenate(parts).mean()) for path, parts in self._equal.items()}

    def _settle(self, quantizer: Quantizer, found: Codes, layer: QuantizedRNN | None) -> Codes:
        """Compares what a reference gives, and goes on with the file's values."""
        path, values = self._paths[id(quantizer)], found.values.copy()
        there = self._tensors(path, *_scope_and_calls(layer, values.shape))
        if not there:
            return found
        compared = values
        if layer is not None and len(there) > 1:  # timestep by timestep
            for step, one in enumerate(there):
                values[:, step] = one.values.reshape(values[:, step].shape)
        else:
            if layer is not None and not layer.layer.return_sequences:
                compared = values[:, -1:]
            compared[:] = there[0].values.reshape(compared.shape)
        expected = found.values[:, -1:] if compared is not values else found.values
        equal = (compared == expected).reshape(-1)
        # What goes on within a cell is judged by what comes out.
        for one in {path, *(self._paths[id(point)] for point in (layer.points if layer else {}).values())}:
            self._equal.setdefault(one, []).append(equal)
        return Codes(values, there[0].scale, there[0].zero_point)

    def _of_file(self, layer: keras.layers.Layer) -> list[Codes]:
        """What a layer without a reference gives in the file, as far as it is there."""
        quantizer = layer if isinstance(layer, Quantizer) else None
        if isinstance(layer, QuantizeWrapper):
            quantizer = layer.output_quantizer
        there = [] if quantizer is None else self._tensors(self._paths[id(quantizer)], None, 1)
        shape = [-1, *layer.output_shape[1:]] if there else []
        return [Codes(one.values.reshape(shape), one.scale, one.zero_point) for one in there]


def _scope_and_calls(layer: QuantizedRNN | None, shape: tuple[int, ...]) -> tuple[str | None, int]:
    """Where the file has what a layer's output quantizer gives [batch, time, units], and in how many tensors."""
    if layer is None:
        return None, 1
    return (f"{layer.name}_output", 1) if isinstance(layer, QuantizedLSTM) else (layer.name, shape[1])
