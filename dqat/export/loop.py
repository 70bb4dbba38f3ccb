"""A file that runs its recurrent cells in TFLite's WHILE: what computes one frame becomes the loop's body.

The body is the streaming file's graph, which takes a frame and the states. Around it stand a counter, the choice of the
counter's frame, and the states of zero that the loop begins with; all are int8 but the counter.
"""

from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dqat.export.flatbuffer import Flatbuffer
from dqat.export.quantizer import ExportError
from dqat.export.recurrent import fused_lstms, is_unrolled
from dqat.keras_api import keras

_COND, _BODY = 1, 2  # places of the subgraphs


def require_loop(model: keras.Model) -> None:
    """Raises ExportError for a model that is not one input of frames, cells without an operator, last outputs."""
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][1] is None:
        raise ExportError(f"a loop runs over one input [batch, timesteps, features] of known length, not {shapes}")
    if any(len(tensor.shape) != 2 for tensor in model.outputs):
        raise ExportError("a loop gives what follows from the last frame, and an output of the model has all frames")
    fused = list(fused_lstms(model))
    if fused or not any(is_unrolled(layer) for layer in model.layers):
        found = f"{', '.join(fused)} is one already" if fused else "there is no such layer"
        raise ExportError(
            f"a loop is for recurrent layers that have no operator of TFLite's, and {found}: leave it out"
        )


def put_into_loop(file: Flatbuffer, timesteps: int, results: int) -> None:
    """Makes a file for whole sequences of one for single frames.

    Args:
        file: integers, for one frame a call: the frame first among its inputs, then the states, and its outputs
            first, then the new states, in that order.
        timesteps: of a sequence.
        results: number of outputs that are no states.
    """
    body, signature = file.graph, file.model.signatureDefs[0]
    frame, *states = (int(index) for index in body.inputs)
    outputs, after = body.outputs[:results], body.outputs[results:]
    shape = [timesteps, int(body.tensors[frame].shape[-1])]
    carried = [body.tensors[index] for index in (frame, *states, *outputs)]
    shapes = [shape, *(list(tensor.shape) for tensor in carried[1:])]

    def carry(graph: Any, name: str) -> list[int]:
        """The counter, the sequence, the states and the outputs."""
        counter = file.add_tensor(graph, f"{name}_counter", [1], schema.TensorType.INT32)
        return [
            counter,
            *(
                file.add_tensor(graph, f"{name}_{number}", size, like.type, like.quantization)
                for number, (size, like) in enumerate(zip(shapes, carried, strict=True))
            ),
        ]

    cond, main = schema.SubGraphT(), schema.SubGraphT()
    for graph, name in ((cond, b"cond"), (main, b"main")):
        graph.tensors, graph.operators, graph.name = [], [], name
    _condition(file, cond, carry(cond, "cond"), timesteps)
    _one_timestep(file, body, frame, states, shape)
    # The outputs of the timestep before, which nobody reads.
    body.inputs = np.array([*body.inputs, *carry(body, "before")[2 + len(states) :]], np.int32)
    body.outputs = np.array([*body.outputs[:2], *after, *outputs], np.int32)

    whole = [1, *shape]
    source = file.add_tensor(main, "sequence", whole, carried[0].type, carried[0].quantization)
    before, ended = carry(main, "before"), carry(main, "after")
    begin = [file.add_tensor(main, "zero", [1], schema.TensorType.INT32, values=np.zeros(1, np.int32)), before[1]]
    for size, tensor in zip(shapes[1:], carried[1:], strict=True):
        zero = np.full(size, int(tensor.quantization.zeroPoint[0]), np.int8)
        begin.append(file.add_tensor(main, "zeros", size, tensor.type, tensor.quantization, zero))
    loop = schema.WhileOptionsT()
    loop.condSubgraphIndex, loop.bodySubgraphIndex = _COND, _BODY
    main.operators = [
        _reshape(file, main, source, before[1], shape),
        file.make_operator("WHILE", begin, ended, loop, version=1),
    ]
    main.inputs = np.array([source], np.int32)
    main.outputs = np.array(ended[2 + len(states) :], np.int32)
    file.model.subgraphs, file.graph = [main, cond, body], main
    signature.inputs, signature.outputs = signature.inputs[:1], signature.outputs[:results]
    for entries, indices in ((signature.inputs, main.inputs), (signature.outputs, main.outputs)):
        for entry, index in zip(entries, indices, strict=True):
            entry.tensorIndex = int(index)
            main.tensors[index].name = entry.name


def _condition(file: Flatbuffer, cond: Any, carried: list[int], timesteps: int) -> None:
    """The counter is less than the number of timesteps."""
    end = file.add_tensor(cond, "timesteps", [1], schema.TensorType.INT32, values=np.array([timesteps], np.int32))
    result = file.add_tensor(cond, "goes_on", [1], schema.TensorType.BOOL)
    cond.operators = [file.make_operator("LESS", [carried[0], end], [result], schema.LessOptionsT(), version=1)]
    cond.inputs, cond.outputs = np.array(carried, np.int32), np.array([result], np.int32)


def _one_timestep(file: Flatbuffer, body: Any, frame: int, states: list[int], shape: list[int]) -> None:
    """The counter's frame goes into what computes a frame, and the counter on."""
    like = body.tensors[frame]
    counter, new = (file.add_tensor(body, name, [1], schema.TensorType.INT32) for name in ("counter", "next_counter"))
    sequence = file.add_tensor(body, "sequence", shape, like.type, like.quantization)
    row = file.add_tensor(body, "row", [1, shape[1]], like.type, like.quantization)
    one = file.add_tensor(body, "one", [1], schema.TensorType.INT32, values=np.ones(1, np.int32))
    gather, add = schema.GatherOptionsT(), schema.AddOptionsT()
    gather.axis, add.potScaleInt16 = 0, False
    body.operators = [
        file.make_operator("GATHER", [sequence, counter], [row], gather, version=2),
        _reshape(file, body, row, frame, list(like.shape)),
        *body.operators,
        file.make_operator("ADD", [counter, one], [new], add, version=2),
    ]
    body.inputs = np.array([counter, sequence, *states], np.int32)
    body.outputs = np.array([new, sequence], np.int32)


def _reshape(file: Flatbuffer, graph: Any, source: int, result: int, shape: list[int]) -> Any:
    options = schema.ReshapeOptionsT()
    options.newShape = np.array(shape, np.int32)
    size = file.add_tensor(graph, "shape", [len(shape)], schema.TensorType.INT32, values=options.newShape)
    return file.make_operator("RESHAPE", [source, size], [result], options, version=1)
