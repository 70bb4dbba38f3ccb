"""The plots of a report, each as SVG text to be put into HTML."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
except ImportError:
    raise ImportError("a report needs Jinja and matplotlib: pip install 'dqat[report]'") from None

from dqat.layer_parity import LEAST_AGREEING
from dqat.parity import ParityReport

if TYPE_CHECKING:
    from dqat.report import Histogram

_OURS, _WHOLE, _BAD, _GRAY = "#2b6cb0", "#a3bffa", "#c53030", "#718096"
#: So many panels at most: a network has hundreds of tensors.
MOST_PANELS = 48
_COLUMNS = 4
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "dqat",  # the same figures, the same bytes
    "svg.fonttype": "path",
}


def _svg(figure: Any) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    content = stream.getvalue()
    return content[content.index("<svg") :]


def parity(report: ParityReport) -> str:
    """One bar a layer: the share within 1 LSB alone, and with all that has gathered; below, signal over noise."""
    with pyplot.rc_context(_STYLE):
        layers = report.layers
        figure, (shares, ratios) = pyplot.subplots(
            1, 2, figsize=(11, 1.0 + 0.27 * len(layers)), sharey=True, layout="constrained"
        )
        places = np.arange(len(layers))
        colours = [_BAD if layer.parts else _OURS for layer in layers]
        alone = [100 * layer.own_within_1_lsb for layer in layers]
        shares.barh(places - 0.2, alone, 0.38, color=colours, label="alone")
        whole = [100 * layer.within_1_lsb for layer in layers]
        shares.barh(places + 0.2, whole, 0.38, color=_WHOLE, label="all that has gathered")
        shares.axvline(100 * LEAST_AGREEING, color=_GRAY, linewidth=0.8, linestyle="--")
        shares.set_xlabel("values within 1 LSB, %")
        least = min([*whole, *alone, 99.0])
        shares.set_xlim(max(0.0, least - 0.1 * (100 - least) - 0.2), 100.0 + 0.02 * (100 - least))
        shares.set_yticks(places, [layer.name for layer in layers])
        shares.set_ylim(len(layers) - 0.5, -0.5)
        shares.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=8)
        finite = [layer.snr_db for layer in layers if math.isfinite(layer.snr_db)]
        top = 1.1 * max([*finite, 10.0])
        ratios.barh(places, [min(layer.snr_db, top) for layer in layers], 0.6, color=_OURS)
        for place, layer in zip(places, layers, strict=True):
            if layer.snr_db == math.inf:
                ratios.text(top, place, "all equal ", va="center", ha="right", color="white", fontsize=8)
        ratios.set_xlim(min([0.0, *finite]), top)
        ratios.set_xlabel("signal over noise of the file's values, dB")
        return _svg(figure)


def development(rows: Sequence[dict[str, Any]]) -> str:
    """One panel a quantizer: the range over the training steps."""
    names = list(dict.fromkeys(name for row in rows for name in row["ranges"]))[:MOST_PANELS]
    with pyplot.rc_context(_STYLE):
        figure, panels = _panels(len(names), 1.9)
        for panel, name in zip(panels, names, strict=False):
            points = [(row["step"], *row["ranges"][name]) for row in rows if name in row["ranges"]]
            steps, low, high = zip(*points, strict=True)
            panel.fill_between(steps, low, high, color=_WHOLE, alpha=0.5, linewidth=0)
            panel.plot(steps, low, color=_OURS, linewidth=1.2)
            panel.plot(steps, high, color=_OURS, linewidth=1.2)
            panel.set_title(name, fontsize=8)
            panel.margins(x=0)
        figure.supxlabel("training step", fontsize=9)
        return _svg(figure)


def histograms(found: "Sequence[Histogram]") -> str:
    """One panel a tensor: its values, and the range as a band; counts on a logarithmic scale."""
    with pyplot.rc_context(_STYLE):
        figure, panels = _panels(len(found[:MOST_PANELS]), 1.9)
        for panel, one in zip(panels, found, strict=False):
            panel.axvspan(one.low, one.high, color=_WHOLE, alpha=0.35, linewidth=0)
            panel.stairs(np.maximum(one.counts, 0.5), one.edges, fill=True, color=_OURS, baseline=0.5)
            panel.set_yscale("log")
            panel.locator_params(axis="x", nbins=4)  # more labels would touch each other
            panel.set_yticks([])
            panel.minorticks_off()
            panel.spines["left"].set_visible(False)
            panel.set_title(f"{one.name}\n{one.outside:.2%} outside", fontsize=8)
        return _svg(figure)


def _panels(count: int, height: float) -> tuple[Any, list[Any]]:
    rows = math.ceil(count / _COLUMNS)
    size = (11, height * rows)
    figure, axes = pyplot.subplots(rows, _COLUMNS, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    flat = list(axes.flat)
    for axis in flat[count:]:
        axis.set_visible(False)
    return figure, flat[:count]
