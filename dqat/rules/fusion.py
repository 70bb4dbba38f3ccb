"""What the layers of a graph have to do with one another: fusing, folding, and ranges that must be one."""

from collections.abc import Callable
from dataclasses import dataclass

from dqat.graph import Call, Graph, Tensor
from dqat.keras_api import keras
from dqat.rules.activations import activation_function, is_fused_activation
from dqat.rules.context import Context, SharedRange
from dqat.rules.products import folds
from dqat.rules.recurrent import states_in_output_range
from dqat.rules.shape import averages_nothing
from dqat.rules.table import keeps_range
from dqat.specs import Scheme


@dataclass(frozen=True, eq=False)
class Relations:
    """The contexts of all layers of a graph.

    Args:
        graph: the float model's.
        scheme_of: which quantizer each kind of tensor of a layer gets.
        names: of the layers, by id.
        is_chosen: whether a layer is to be quantized; others stay apart.
    """

    graph: Graph
    scheme_of: Callable[[keras.layers.Layer], Scheme]
    names: dict[int, str]
    is_chosen: Callable[[keras.layers.Layer], bool] = lambda layer: True

    def __post_init__(self) -> None:
        """Reads the graph once."""
        object.__setattr__(self, "_consumers", self.graph.consumers())
        object.__setattr__(self, "_shared", self._shared_ranges())

    def context(self, layer: keras.layers.Layer) -> Context:
        """What the layer's rule has to know."""
        calls = self.graph.calls_of(layer)
        after = [self._only_consumer(call) for call in calls]
        norm = self._foldable_norm(calls, after)
        fused = norm is not None or all(map(self._goes_into_activations, calls))
        return Context(
            self.scheme_of(layer),
            output_is_fused=fused,
            norm=None if norm is None else self.names[id(norm)],
            shared=self._shared.get(self._end_of(calls[0])),
            shared_states=tuple(self._shared.get(tensor) for tensor in calls[0].results[1:]),
            calls=tuple(calls),
        )

    def _only_consumer(self, call: Call) -> Call | None:
        consumers = [one for tensor in call.results for one in self._consumers[tensor]]
        only = consumers[0] if len(consumers) == 1 else None
        return only if only is not None and self.is_chosen(only.layer) else None

    def _goes_into_activations(self, call: Call) -> bool:
        """Whether all that happens to the call's result is one activation that TFLite fuses."""
        after = [consumer for tensor in call.results for consumer in self._consumers[tensor]]
        return bool(after) and self._is_one_activation(after)

    def _is_one_activation(self, calls: list[Call | None]) -> bool:
        """Whether all do the same, which TFLite fuses: several layers may, and the converter makes them one."""
        fusable = (one is not None and self.is_chosen(one.layer) and is_fused_activation(one.layer) for one in calls)
        return all(fusable) and len({activation_function(one.layer) for one in calls}) == 1

    def _foldable_norm(self, calls: list[Call], after: list[Call | None]) -> keras.layers.Layer | None:
        if len(calls) != 1 or after[0] is None:
            return None
        norm = after[0].layer
        return norm if folds(calls[0].layer, norm) and len(self.graph.calls_of(norm)) == 1 else None

    def _end_of(self, call: Call) -> Tensor:
        return call.results[0]

    def _keeps_range(self, call: Call) -> bool:
        if call.is_input or not self.is_chosen(call.layer):
            return False
        return keeps_range(call.layer) or averages_nothing(call.layer, call.inputs[0].shape)

    def _shared_ranges(self) -> dict[Tensor, SharedRange]:
        """By tensor, the range that it must be in; tensors with a range of their own are left out."""
        parent: dict[Tensor, Tensor] = {}

        def root(tensor: Tensor) -> Tensor:
            while parent.get(tensor, tensor) is not tensor:
                tensor = parent[tensor]
            return tensor

        calls = [call for call in self.graph.calls if self._keeps_range(call)]
        # All calls of a shared layer go through its one output quantizer.
        several = [self.graph.calls_of(layer) for layer in self.graph.layers()]
        together = [[*call.inputs, *call.results] for call in calls]
        together += [[call.results[0] for call in group] for group in several if len(group) > 1]
        readers = [group for group in self._consumers.values() if len(group) > 1 and self._is_one_activation(group)]
        together += [[self._end_of(one) for one in group] for group in readers]
        with_states = [(call, states_in_output_range(call)) for call in self.graph.calls]
        together += [[call.results[0], *states] for call, states in with_states if states]
        for first, *others in together:
            for other in others:
                parent[root(other)] = root(first)
        producer = {tensor: call.layer for call in self.graph.calls for tensor in call.results}
        ranges: dict[Tensor, SharedRange] = {}
        for tensor in {tensor for group in together for tensor in group}:
            shared = ranges.setdefault(root(tensor), SharedRange())
            name = self.names[id(producer[tensor])]
            if name not in shared.members:
                shared.members.append(name)
        return {tensor: ranges[root(tensor)] for group in together for tensor in group}
