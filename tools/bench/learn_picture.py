"""The picture of `learn`: held-out bits per byte against tokens, and against seconds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# 4 layers, 256 wide, Muon, 8,192 words, such text; measured elsewhere on two cores: tokens, bits a byte; the last after
# REFERENCE_SECONDS.
REFERENCE = ((0.8e6, 1.81), (1.6e6, 1.44), (2.46e6, 1.35))
REFERENCE_SECONDS = 295.0
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe & Ito's, which all eyes tell apart


def draw(path: Path, found: Mapping[str, Sequence[Mapping[str, Any]]], kind: str) -> None:
    """Write an SVG. found: name → what its trainings told, one a seed; kind: of the budget, tokens or seconds."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    # The same picture in the same bytes, with text as text.
    with mpl.rc_context({"svg.hashsalt": "headwater", "svg.fonttype": "none"}):
        figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
        for (name, told), colour in zip(found.items(), COLOURS, strict=False):
            for panel, column in zip(panels, (0, 1), strict=True):
                _curve(panel, [one["points"] for one in told], column, name, colour)
        panels[0].plot(*zip(*REFERENCE, strict=True), "x", color="0.4", label="reference, elsewhere")
        panels[1].plot([REFERENCE_SECONDS], [REFERENCE[-1][1]], "x", color="0.4")
        panels[0].set(xlabel="tokens", ylabel="held-out bits per byte", title=f"equal {kind}, against tokens")
        panels[1].set(xlabel="seconds of training", title=f"equal {kind}, against seconds")
        panels[0].legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _curve(panel: Any, runs: Sequence[Sequence[Sequence[float]]], column: int, name: str, colour: str) -> None:
    """The mean of all seeds, and the band between the least and the most."""
    points = [list(zip(*at, strict=True)) for at in zip(*runs, strict=True)]  # per point: tokens, seconds, bits
    along = [statistics.fmean(at[column]) for at in points]
    panel.plot(along, [statistics.fmean(at[2]) for at in points], "o-", markersize=3, color=colour, label=name)
    panel.fill_between(along, [min(at[2]) for at in points], [max(at[2]) for at in points], color=colour, alpha=0.2)
