"""Which quantizers stand before a layer and behind it: what the integers of its operation in the file depend on."""

from dqat.graph import Call, Graph, Tensor
from dqat.keras_api import keras
from dqat.layers import QuantizedLayer, QuantizeWrapper
from dqat.layers.relu import relu_of
from dqat.quantizers import Quantizer, SharedQuantizer

#: Layers that make values which are not those of their inputs.
_MAKING = (Quantizer, QuantizedLayer, keras.layers.BatchNormalization)


class Neighbours:
    """The quantizers around each layer of a quantized model.

    Args:
        graph: of the model, whose shared quantizers know their owners.
    """

    def __init__(self, graph: Graph) -> None:
        self._makers = {result: call for call in graph.calls for result in call.results}
        self._consumers = graph.consumers()
        self._calls: dict[int, list[Call]] = {}
        for call in graph.calls:
            self._calls.setdefault(id(call.layer), []).append(call)

    def before(self, layer: keras.layers.Layer) -> list[Quantizer | None]:
        """What quantizes each input; None for what is not quantized, or not by the same in all calls."""
        each = [[self._made_by(tensor) for tensor in call.inputs] for call in self._calls[id(layer)]]
        return [_one(found) for found in zip(*each, strict=False)]

    def behind(self, layer: keras.layers.Layer) -> Quantizer | None:
        """What quantizes the output, be it that of an activation that the file fuses; None likewise."""
        return _one([self._read_by(call) for call in self._calls[id(layer)]])

    def reads_alone(self, layer: keras.layers.Layer) -> bool:
        """Whether no other layer reads what the layer reads."""
        return all(len(self._consumers[tensor]) == 1 for call in self._calls[id(layer)] for tensor in call.inputs)

    def _made_by(self, tensor: Tensor) -> Quantizer | None:
        maker = self._makers[tensor]
        while maker.inputs and not isinstance(maker.layer, _MAKING):  # it passes values on
            maker = self._makers[maker.inputs[0]]
        if len(maker.results) > 1:
            return None
        return _own_quantizer(maker.layer)

    def _read_by(self, call: Call) -> Quantizer | None:
        own = _own_quantizer(call.layer)
        if own is not None or len(call.results) != 1:
            return own
        return _one([None if one is None else self._behind_fused(one) for one in self._consumers[call.results[0]]])

    def _behind_fused(self, call: Call) -> Quantizer | None:
        layer = call.layer
        if isinstance(layer, keras.layers.BatchNormalization):
            return self._read_by(call)
        if isinstance(layer, QuantizeWrapper) and relu_of(layer.layer) is None:
            return None
        return _own_quantizer(layer)


def _own_quantizer(layer: keras.layers.Layer) -> Quantizer | None:
    """That of the layer's output, if it has one."""
    quantizer = layer if isinstance(layer, Quantizer) else getattr(layer, "output_quantizer", None)
    return quantizer.owner if isinstance(quantizer, SharedQuantizer) else quantizer


def _one(found: list[Quantizer | None]) -> Quantizer | None:
    return found[0] if found and all(one is found[0] for one in found) else None
