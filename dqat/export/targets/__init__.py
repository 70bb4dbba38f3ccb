"""What a device's runtime can run: a data file a target, with its source and date."""

import importlib.resources
import tomllib
from dataclasses import dataclass

from dqat.export.inspection import TfliteFile
from dqat.export.targets.conditions import CONDITIONS

#: "tflite" is the interpreter itself, which runs whatever the export writes.
TARGETS = ("tflite", "edgetpu", "nnapi", "microcontroller")


@dataclass(frozen=True)
class Fallback:
    """An operator that the target runs elsewhere, or not at all, or only under a condition.

    Attributes:
        operator: its name.
        places: of such operators in the order of execution, in the subgraph that is called or in a loop of it.
        certain: False where it depends on `reason`, which is not checked.
        reason: why.
        way_out: what to change; empty where nothing is known.
    """

    operator: str
    places: tuple[int, ...]
    certain: bool
    reason: str
    way_out: str

    def __str__(self) -> str:
        """One line."""
        verb = "is not supported" if self.certain else "is supported under a condition"
        line = f"{self.operator} ({len(self.places)} times, first at {self.places[0]}) {verb}: {self.reason}"
        return f"{line}; {self.way_out}" if self.way_out else line


def fallbacks(file: TfliteFile, target: str) -> tuple[Fallback, ...]:
    """The operators of a file that a target does not run as they are.

    Args:
        file: what `inspect_tflite` read.
        target: one of `TARGETS`.

    Returns:
        Those that certainly fall back first.

    Raises:
        ValueError: for another target.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    if target == "tflite":
        return ()
    data = tomllib.loads(importlib.resources.files(__name__).joinpath(f"{target}.toml").read_text())
    found: dict[tuple[str, bool, str], list[int]] = {}
    placed = ((graph, *pair) for graph in file.subgraphs for pair in enumerate(graph.operators))
    for graph, place, operator in placed:
        entry = data["operators"].get(operator.name)
        tensors = [graph.tensors[index] for index in (*operator.inputs, *operator.outputs) if index >= 0]
        foreign = sorted({tensor.dtype for tensor in tensors} - set(data["dtypes"]))
        # The state of an integer LSTM is the operator's own affair.
        if operator.name == "UNIDIRECTIONAL_SEQUENCE_LSTM":
            foreign = [dtype for dtype in foreign if dtype != "INT16"]
        if entry is None:
            key = (operator.name, True, f"{data['title']} has no such operator ({data['source']}, {data['date']})")
        elif foreign:
            key = (operator.name, True, f"{data['title']} does not take {' or '.join(foreign)}")
        elif "checks" in entry:
            if all(CONDITIONS[check](operator, graph) for check in entry["checks"]):
                continue
            key = (operator.name, True, f"{data['title']} takes it with {entry['limit']}")
        elif "limit" in entry:
            key = (operator.name, False, entry["limit"])
        else:
            continue
        found.setdefault(key, []).append(place)
    rows = [
        Fallback(name, tuple(places), certain, reason, data["instead"].get(name, "") if certain else "")
        for (name, certain, reason), places in found.items()
    ]
    return tuple(sorted(rows, key=lambda row: not row.certain))
