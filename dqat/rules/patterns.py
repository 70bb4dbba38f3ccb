"""Several layers that are one operator of TFLite's."""

import math
from dataclasses import replace

from dqat.graph import Call, Graph, Tensor
from dqat.keras_api import keras
from dqat.layers import Arithmetic, HardSwish
from dqat.rules.activations import activation_function, is_fused_activation


def with_one_operator(graph: Graph) -> Graph:
    """The graph with x * relu6(x + 3) / 6, as keras.applications writes it, as a `HardSwish`."""
    consumers = graph.consumers()
    producers = {tensor: call for call in graph.calls for tensor in call.results}
    inside: set[Call] = set()

    def before(tensor: Tensor) -> Call | None:
        """The call that makes a tensor, which nobody else reads."""
        return producers[tensor] if len(consumers[tensor]) == 1 else None

    def gate(tensor: Tensor) -> tuple[Tensor, set[Call]] | None:
        """Where the tensor is relu6(x + 3) / 6: x, and the calls that make it."""
        sixth = before(tensor)
        if sixth is None or not _multiplies_with(sixth, 1 / 6):
            return None
        relu = before(sixth.inputs[0])
        if relu is None or not is_fused_activation(relu.layer) or activation_function(relu.layer) != "relu6":
            return None
        shifted = before(relu.inputs[0])
        if shifted is None or not _is_arithmetic(shifted, "add", 3.0):
            return None
        return shifted.inputs[0], {sixth, relu, shifted}

    def rewrite(call: Call) -> Call:
        if type(call.layer) is not keras.layers.Multiply or len(call.inputs) != 2:
            return call
        for x, other in (call.inputs, call.inputs[::-1]):
            found = gate(other)
            if found is not None and found[0] is x:
                inside.update(found[1])
                return replace(call, layer=HardSwish(name=call.layer.name), args=(x,), kwargs={})
        return call

    rewritten = graph.rewritten(rewrite)
    return replace(rewritten, calls=tuple(call for call in rewritten.calls if call not in inside))


def _is_arithmetic(call: Call, operation: str, constant: float) -> bool:
    layer = call.layer
    return (
        isinstance(layer, Arithmetic)
        and layer.operation == operation
        and layer.constant.size == 1
        and math.isclose(layer.constant.item(), constant, rel_tol=1e-6)
    )


def _multiplies_with(call: Call, factor: float) -> bool:
    return _is_arithmetic(call, "multiply", factor) or (
        _is_arithmetic(call, "divide", 1 / factor) and not call.layer.constant_first
    )
