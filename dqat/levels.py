"""The forward pass of exact mode, in the order that asks for the fewest collectives.

A quantizer whose range must be reduced before it is used makes what depends on it wait. Layer after layer, each
quantizer would cost a collective of its own. Here a layer that ends with a quantizer leaves its record and its output
waiting, and the pass goes on with all layers that don't depend on it; when nothing else can run, the records that wait
are reduced in one collective. That makes as many collectives as quantizers follow one another on the longest way
through the model, and no order makes fewer.
"""

from typing import Any

import tensorflow as tf

from dqat.keras_api import keras
from dqat.layers import QuantizedLayer
from dqat.quantizers import Quantizer
from dqat.range_sync import RangeSync


def _quantizes(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, Quantizer) or (isinstance(layer, QuantizedLayer) and bool(layer.quantizers()))


def _last_quantizer(layer: keras.layers.Layer) -> Quantizer | None:
    if isinstance(layer, Quantizer):
        return layer
    return layer.last_quantizer() if isinstance(layer, QuantizedLayer) else None


@tf.autograph.experimental.do_not_convert  # no condition here depends on a tensor
def run_in_levels(model: keras.Model, inputs: Any, mask: Any, sync: RangeSync) -> Any:
    """What a functional model's own `call` does, with quantizers that wait for one another.

    Args:
        model: functional.
        inputs: as of its call.
        mask: as of its call, or None.
        sync: of the model's quantizers, within a step.

    Returns:
        As its call.
    """
    inputs = model._flatten_to_reference_inputs(inputs)
    masks = [None] * len(inputs) if mask is None else model._flatten_to_reference_inputs(mask)
    values: dict[str, tf.Tensor] = {}
    for reference, value, its_mask in zip(model.inputs, inputs, masks, strict=True):
        value._keras_mask = its_mask
        values[str(id(reference))] = model._conform_to_reference_input(value, ref_input=reference)

    depths = sorted(model._nodes_by_depth, reverse=True)
    nodes = [node for depth in depths for node in model._nodes_by_depth[depth] if not node.is_input]
    while nodes:
        later, waiting = [], []
        for node in nodes:  # those that a node depends on stand before it
            if not all(key in values for key in node.flat_input_ids):
                later.append(node)
                continue
            uses = len(node.flat_input_ids)
            arguments, options = node.map_arguments({key: [values[key]] * uses for key in node.flat_input_ids})
            with sync.may_wait(_last_quantizer(node.layer)) as held:
                outputs = tf.nest.flatten(node.layer(*arguments, **options))
            for key, output in zip(node.flat_output_ids, outputs, strict=True):
                if any(output is each for each in held):
                    waiting.append((key, output))
                else:
                    values[key] = output
            if len(held) != sum(output is each for output in outputs for each in held):
                raise RuntimeError(
                    f"layer {node.layer.name!r} does not end with the quantizer that it says it ends with"
                )
        if waiting:
            quantized = sync.release(last=not any(_quantizes(node.layer) for node in later))
            for key, output in waiting:
                values[key] = quantized[id(output)]
                if hasattr(output, "_keras_mask"):
                    values[key]._keras_mask = output._keras_mask
        elif len(later) == len(nodes):
            break  # no way leads there from the inputs, as in Keras' own loop
        nodes = later
    return tf.nest.pack_sequence_as(model._nested_outputs, [values[str(id(output))] for output in model.outputs])
