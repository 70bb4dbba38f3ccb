"""Algorithms that look at more than one layer.

Each is a function of a model that gives another model of the same kind, so that they follow one another in the order
that a script writes:

    model = dqat.algorithms.equalize(model)     # float to float
    quantized = dqat.quantize_model(model)

What they share is `dqat.graph`: `graph.read(model)` gives the calls of a model in order, and who reads what.
"""

from dqat.algorithms.equalization import equalize

__all__ = ["equalize"]
