"""docs/layers.md, written from the table of layers that the tests loop over: python tests/layer_page.py"""

import pathlib

from layer_table import LEAST_EQUAL, ROWS, Row

from dqat.keras_api import keras
from dqat.rules import absent

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "layers.md"
_HEAD = """# Layers

What `dqat.quantize_model` takes, each row a test that goes the whole way (`tests/layer_table.py`, from which
`python tests/layer_page.py` writes this page; `tests/test_layers.py` fails where it doesn't fit). A layer that is not
here is refused by name.

- *quantizes, trains*: three steps of training, finite losses, every output on a grid of 256 levels.
- *saves*: saved and loaded, the model has the same outputs, ranges and coverage, bit for bit.
- *exports*: the file has no float tensor.
- *parity*: how many of the outputs' integers the file has in common with the simulation, by the interpreter's default
  kernels on 32 samples; the others are one level apart, or as many as are said.
- *16 bits*: `scheme="w8a16"` and `int16_layers` take it too; else the operator that has no such kernel.

Recurrent layers and cells have [a page of their own](recurrent.md). Models may be Sequential, functional or
subclassed, nest, share layers, and have several inputs and outputs. Keras' `Wrapper` layers are TimeDistributed and
Bidirectional; a wrapper of your own, or another library's, is refused.

| layer | quantizes | trains | saves | exports | parity | 16 bits |
|---|---|---|---|---|---|---|
"""
_ABSENT = """
## What TFLite can't run in integers

`quantize_model` refuses these, with the reason.

| layer | quantizes | reason | way out |
|---|---|---|---|
"""


def _in_16_bits(row: Row) -> str:
    """The operators without an int16 kernel that the row's layers need, or yes."""
    found = set()
    for layer in row.model().layers:
        activation = getattr(layer, "activation", None)
        name = getattr(activation, "__name__", "")
        found |= {absent.INT8_ONLY.get(type(layer)), absent.INT8_ONLY_ACTIVATIONS.get(name)} - {None}
    return f"no {', '.join(sorted(found))}" if found else "yes"


def _parity(name: str) -> str:
    if name not in LEAST_EQUAL:
        return "all"
    apart = ROWS[name].largest
    return f"over {LEAST_EQUAL[name]:.0%}" + (f", at most {apart} apart" if apart > 1 else "")


def _class_name(cls: type) -> str:
    return f"{cls.__name__} of a recurrent layer" if cls is keras.layers.TimeDistributed else cls.__name__


def text() -> str:
    """The page."""
    bits = {name: _in_16_bits(row) for name, row in ROWS.items()}
    bits |= {"hard-swish": f"no {absent.INT8_ONLY[absent.HardSwish]}"}  # a pattern of layers
    rows = [f"| {name} | yes | yes | yes | yes | {_parity(name)} | {bits[name]} |" for name in ROWS]
    reasons = {_class_name(cls): found for cls, found in absent.LAYERS.items()}
    reasons |= {f"activation {name}": found for name, found in absent.ACTIVATIONS.items()}
    refused = [f"| {name} | no | {reason} | {way_out} |" for name, (reason, way_out) in reasons.items()]
    return _HEAD + "\n".join(rows) + "\n" + _ABSENT + "\n".join(refused) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text())
