"""Rows of a benchmark as a table, as JSON and as a plot."""

import json
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

#: {"case", "what", "seconds", "peer", "ratio"}, `ratio` being peer time over ours; further keys say how sure it is.
Row = dict[str, Any]

#: The peer that does the least there is to do; against it tables give our time over the peer's.
PASS = "plain pass"


def _grouped(rows: Sequence[Row], *keys: str) -> dict[tuple, list[Row]]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _cell(row: Row) -> str:
    ratio, target, fastest = row["ratio"], row["target"], row["ratio_of_fastest"]
    sign, colour = "≥", "" if target is None else "green" if ratio >= target else "red"
    if row["peer"] == PASS:
        ratio, fastest, target, sign = 1 / ratio, 1 / fastest, target and 1 / target, "≤"
    text = f"{ratio:.3g} ({fastest:.3g})"
    if target is not None:
        text = f"[{colour}]{text} {sign}{target:.3g}[/]"
    return text


def caption(rows: Sequence[Row], machine: dict[str, Any]) -> str:
    """Where the figures are from and how far they scatter."""
    scatter = statistics.median((row["ratio_quartiles"][1] - row["ratio_quartiles"][0]) / row["ratio"] for row in rows)
    dqat = machine["dqat"]
    gpus = "".join(f"{name}, " for name in machine.get("gpus", []))
    return (
        f"{gpus}{machine['cpu']}, {machine['cores']} cores, {machine['date']}, TensorFlow {machine['tensorflow']}, "
        f"dqat {dqat['dqat']} ({dqat['instruction_set']}, g++ {dqat['compiler']}); "
        f"the middle half of the rounds spans {scatter:.0%} of the ratio, typically"
    )


def print_ratios(rows: Sequence[Row], machine: dict[str, Any]) -> None:
    """Prints one line a case and one column a comparison."""
    columns = list(_grouped(rows, "what", "peer"))
    table = Table(
        title="Peer time over ours; against the plain pass, our time over its. Median of rounds (of fastest) target",
        caption=caption(rows, machine),
    )
    table.add_column("case")
    for what, peer in columns:
        table.add_column(f"{what}\n{'over' if peer == PASS else 'vs'} {peer}", justify="right")
    for (case,), group in _grouped(rows, "case").items():
        cells = {(row["what"], row["peer"]): _cell(row) for row in group}
        table.add_row(case, *(cells.get(column, "") for column in columns))
    console = Console()
    # A log has no width: columns are kept whole there.
    Console(width=None if console.is_terminal else 280).print(table)


def write_json(rows: Sequence[Row], machine: dict[str, Any], path: pathlib.Path) -> None:
    """Writes {"machine", "rows"}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "rows": list(rows)}, indent=1) + "\n")


def plot_ratios(rows: Sequence[Row], machine: dict[str, Any], path: pathlib.Path) -> None:
    """Draws one panel a comparison and one bar a case, from 1 to the ratio, with targets as black marks."""
    # Not at the top: matplotlib is for those who plot.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = [case for (case,) in _grouped(rows, "case")]
    panels = _grouped(rows, "what", "peer")
    columns = 4
    figure, axes = pyplot.subplots(
        math.ceil(len(panels) / columns),
        columns,
        figsize=(19, 1.2 + math.ceil(len(panels) / columns) * (0.8 + 0.2 * len(cases))),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, ((what, peer), group) in zip(axes.flat, panels.items(), strict=False):
        for row in group:
            y, ratio = cases.index(row["case"]), row["ratio"]
            target = row["target"]
            colour = "tab:blue" if target is None else "tab:green" if ratio >= target else "tab:red"
            axis.barh(y, ratio - 1, left=1, height=0.7, color=colour)
            axis.plot(row["ratio_quartiles"], [y, y], color="0.35", linewidth=1.5)
            if target is not None:
                axis.plot([target] * 2, [y - 0.5, y + 0.5], color="black", linewidth=2.5)
            axis.annotate(
                f"{ratio:.3g}",
                (max(1, ratio, target or 1, row["ratio_quartiles"][1]), y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        largest = max(max(row["ratio_quartiles"][1], row["target"] or 1) for row in group)
        smallest = min(min(row["ratio_quartiles"][0], row["target"] or 1) for row in group)
        axis.set_xlim(min(0.7, smallest * 0.9), max(1.6, largest) * (1.3 if largest < 10 else 2))
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if axis.get_xlim()[0] <= t]
        axis.set_xticks([t for t in ticks if t <= axis.get_xlim()[1]])
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.minorticks_off()
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.set_title(f"{what} vs {peer}", fontsize=11)
        axis.set_yticks(range(len(cases)), cases, fontsize=8)
    axes.flat[0].invert_yaxis()
    figure.suptitle(
        "dqat's ops: peer time over ours. Right of 1, dqat is faster.\n"
        "Black mark: target (green reached, red missed, blue none). Grey line: the middle half of the rounds."
    )
    figure.supxlabel(caption(rows, machine), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
