"""Pictures of a report: matplotlib figures as SVG that stands in a page, with text as text (any script, any font)."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.report.read import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, GREY, PALE, INK = "#1f5fa8", "#d1691b", "#2e8b57", "#8a94a0", "#dfe5ec", "#1d2733"
WIDTH = 5.4  # inches: a phone's width at the page's text size
MOST_POINTS = 400  # of a curve; more are averaged in bins
MOST_BARS = 16
MOST_RULES = 40  # of a funnel
MOST_CLASSES = 24
WIDEST_OF_TWO = 28  # characters of names that stand in two columns
MOST_NAMED = 12  # trainings in one picture: four colours, three kinds of line
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a "$" in a label is a dollar
    "font.size": 9.5,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": PALE,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def curves(title: str, unit: str, lines: Mapping[str, Curve], cut: bool = False, zero: bool = False) -> str:
    """Lines over training steps. lines: name → (steps, values); a name that starts with "held-out" gets dots.

    cut: leave the highest 3 % of the values (a loss's first steps) above the picture's edge. zero: the scale begins
    at 0, so that noise looks as small as it is.
    """
    figure, axes = _axes(title, 2.7)
    colours = dict(zip(lines, (BLUE, ORANGE, GREEN, GREY), strict=False))
    for name, curve in lines.items():
        steps, values = _thinned(curve)
        marker = "o" if name.startswith("held-out") else ""
        axes.plot(steps, values, color=colours.get(name, GREY), label=name, marker=marker, markersize=3, linewidth=1.4)
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.grid(axis="y")
    low, high = _limits([value for _, values in lines.values() for value in values], 0.97 if cut else 1.0)
    axes.set_ylim(min(low, 0.0) if zero else low, high)
    if len(lines) > 1:
        axes.legend(loc="best", frameon=False)
    return _svg(figure, title)


def curves_of_many(title: str, unit: str, lines: Mapping[str, Curve]) -> str:
    """A number over the steps of many trainings: name → (steps, values), the most important first."""
    columns = 2 if max(map(len, lines)) <= WIDEST_OF_TWO else 1
    figure, axes = _axes(title, 2.7 + 0.16 * math.ceil(min(len(lines), MOST_NAMED + 1) / columns))
    for number, (name, curve) in enumerate(lines.items()):
        steps, values = _thinned(curve)
        colour = (BLUE, ORANGE, GREEN, GREY)[number % 4] if number < MOST_NAMED else PALE
        style = ("-", "--", ":")[number // 4 % 3]
        label = name if number < MOST_NAMED else "the others" if number == MOST_NAMED else "_"
        axes.plot(steps, values, color=colour, linestyle=style, label=label, marker="o", markersize=2.5, linewidth=1.4)
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=8)
    return _svg(figure, title)


def points_over(
    title: str, setting: str, unit: str, lines: Mapping[str, Sequence[tuple[float, float]]], logarithmic: bool
) -> str:
    """A measured number over a setting that was varied: name of a line → (setting, number), in any order."""
    figure, axes = _axes(title, 2.7)
    for number, (name, points) in enumerate(sorted(lines.items())):
        places, values = zip(*sorted(points), strict=True)
        colour = (BLUE, ORANGE, GREEN, GREY)[number % 4]
        style = ("-", "--", ":")[number // 4 % 3]
        axes.plot(places, values, color=colour, linestyle=style, label=name, marker="o", markersize=4, linewidth=1.4)
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xticks(sorted({place for points in lines.values() for place, _ in points}), minor=False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel(setting)
    axes.set_ylabel(unit)
    axes.grid(axis="y")
    if len(lines) > 1:
        axes.legend(loc="best", frameon=False, fontsize=8)
    return _svg(figure, title)


def documents(sources: Mapping[str, Mapping[str, Any]]) -> str:
    """A stacked bar a source: shares of its documents that went to training, to validation, and were dropped."""
    shown = dict(list(sources.items())[:MOST_BARS])
    figure, axes = _axes("Where documents went, share by source", 1.3 + 0.42 * len(shown))
    left = [0.0] * len(shown)
    for name, colour in (("train", BLUE), ("validation", GREEN), ("dropped", ORANGE)):
        shares = []
        for counts in shown.values():
            part = counts.get(name, {})
            number = sum(rule["documents"] for rule in part.values()) if name == "dropped" else part.get("documents", 0)
            shares.append(100 * number / max(counts["read"]["documents"], 1))
        axes.barh(list(shown), shares, left=left, color=colour, label=name, height=0.6)
        left = [before + share for before, share in zip(left, shares, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of documents read")
    figure.legend(ncols=3, loc="outside lower center", frameon=False)
    return _svg(figure, "Where documents went")


def funnel(title: str, counts: Mapping[str, Any], order: Sequence[str]) -> str:
    """Documents that are left after each rule that dropped some, and how many it dropped.

    counts: `read`, `kept`, `dropped` by rule; order: the rules as a document meets them. Where they are too many, those
    of one set are one bar.
    """
    dropped = {rule: counts["dropped"][rule]["documents"] for rule in order}
    if len(dropped) > MOST_RULES:
        merged: dict[str, int] = {}
        for rule, number in dropped.items():
            name = rule.partition(".")[0] if "." in rule else "single rules"
            merged[name] = merged.get(name, 0) + number
        dropped = merged
    read, kept = counts["read"]["documents"], counts["kept"]["documents"]
    left = [read]
    for number in dropped.values():
        left.append(left[-1] - number)
    rows: list[tuple[str, int, int, int, str]] = [("read", read, 0, read, GREY)]  # name, bar, dropped, where words go
    heading = ""
    for (rule, number), after in zip(dropped.items(), left[1:], strict=True):
        section, _, name = rule.rpartition(".")
        if section and section != heading:  # a line without a bar: names of rules are long
            rows.append((f"{section}:", 0, 0, -1, PALE))
        heading = section
        rows.append((name, after, number, after + number, PALE))
    rows.append(("kept", kept, 0, kept, BLUE))
    figure, axes = _axes("", 1.0 + 0.25 * len(rows))
    _title_over_names(figure, title)
    places = range(len(rows))
    axes.barh(places, [row[1] for row in rows], color=[row[4] for row in rows], height=0.7)
    axes.barh(places, [row[2] for row in rows], left=[row[1] for row in rows], color=ORANGE, height=0.7)
    for place, (_, bar, gone, start, _) in zip(places, rows, strict=True):
        words = f"−{gone:,} ({gone / max(read, 1):.1%})" if gone else f"{bar:,}"
        if start >= 0:
            axes.annotate(words, (start, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(places, [row[0] for row in rows], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("documents")
    axes.set_xlim(0, max(read, 1) * 1.45)  # room for the words
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    return _svg(figure, title)


def bars(title: str, unit: str, values: Mapping[str, float], best: str = "", form: str = "{:.3f}") -> str:
    """Horizontal bars with their values written beside them; `best` stands out."""
    shown = dict(list(values.items())[:MOST_BARS])
    figure, axes = _axes("", 0.9 + 0.34 * len(shown))
    _title_over_names(figure, title)
    drawn = axes.barh(
        list(shown), list(shown.values()), color=[BLUE if name == best or not best else GREY for name in shown]
    )
    axes.bar_label(drawn, labels=[form.format(value) for value in shown.values()], padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_xlim(0, max([*shown.values(), 1e-9]) * 1.18)
    return _svg(figure, title)


def before_after(title: str, before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Two bars a metric: the base model's and the fine-tuned one's, each metric on a scale of its own."""
    names = [name for name in after if name in before][:MOST_BARS]
    figure, axes = _axes(title, 0.9 + 0.55 * len(names))
    for offset, values, colour, label in ((-0.2, before, GREY, "before"), (0.2, after, BLUE, "after fine-tuning")):
        scale = [max(abs(before[name]), abs(after[name]), 1e-9) for name in names]
        drawn = axes.barh(
            [place + offset for place in range(len(names))],
            [values[name] / most for name, most in zip(names, scale, strict=True)],
            height=0.38,
            color=colour,
            label=label,
        )
        axes.bar_label(drawn, labels=[f"{values[name]:.4g}" for name in names], padding=3)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    figure.legend(ncols=2, loc="outside lower center", frameon=False)
    return _svg(figure, title)


def confusion(title: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Rows: the true class; columns: the predicted one; shade: share of the row; numbers: examples."""
    number = min(len(labels), MOST_CLASSES)
    side = max(2.6, 0.5 * number + 1.4)
    figure, axes = _axes(title, min(side, WIDTH))
    shares = [[cell / max(sum(row), 1) for cell in row[:number]] for row in counts[:number]]
    cells = [place - 0.5 for place in range(number + 1)]  # corners: the middle of a cell is its number
    axes.pcolormesh(cells, cells, shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=0.5)
    axes.invert_yaxis()
    for row in range(number):
        for column in range(number):
            if counts[row][column]:
                colour = "white" if shares[row][column] > 0.6 else INK
                axes.text(
                    column, row, str(counts[row][column]), ha="center", va="center", color=colour,
                    fontsize=9 if number <= 12 else 6,
                )  # fmt: skip
    names = [str(label)[:18] for label in labels[:number]]
    axes.set_xticks(range(number), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(number), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return _svg(figure, title)


def reliability(title: str, bins: Sequence[Mapping[str, float]]) -> str:
    """A classifier's calibration: how often it is right where it is so sure, and how many texts that are.

    bins: confidence, accuracy, examples of each.
    """
    figure, axes = _axes(title, 2.9)
    most = max(row["examples"] for row in bins)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="says what it knows")
    confidence, accuracy = ([row[name] for row in bins] for name in ("confidence", "accuracy"))
    axes.plot(confidence, accuracy, color=BLUE, linewidth=1.4, label="this model")
    sizes = [12 + 90 * row["examples"] / most for row in bins]
    axes.scatter(confidence, accuracy, s=sizes, color=BLUE, zorder=3)
    for row in bins:
        axes.annotate(
            f"{row['examples']:,}", (row["confidence"], row["accuracy"]), xytext=(7, -10), textcoords="offset points",
            fontsize=7.5, color=GREY,
        )  # fmt: skip
    axes.set_xlim(0, 1.06)
    axes.set_ylim(-0.06, 1.06)
    axes.set_xlabel("confidence in the answer (numbers: texts)")
    axes.set_ylabel("share that is right")
    axes.grid(axis="y")
    axes.legend(loc="upper left", frameon=False)
    return _svg(figure, title)


def lineage(nodes: Mapping[str, str], edges: Sequence[tuple[str, str]]) -> str:
    """Boxes from top to bottom, arrows from what is read to what is made. nodes: name → second line of the box.

    An arrow that others lead round (shard → tokenize beside shard → tokenizer → tokenize) is left out.
    """
    edges = [edge for edge in edges if not _leads(edges, *edge, skip=edge)]
    depth: dict[str, int] = {}
    for name in nodes:  # each comes after what it reads
        depth[name] = 1 + max((depth.get(source, 0) for source, made in edges if made == name), default=-1)
    rows: dict[int, list[str]] = {}
    for name, row in depth.items():
        rows.setdefault(row, []).append(name)
    figure, axes = _axes("", 0.72 * len(rows) + 0.2)
    axes.axis("off")
    place = {
        name: ((index + 1) / (len(row) + 1), -float(level))
        for level, row in rows.items()
        for index, name in enumerate(row)
    }
    for source, made in edges:
        axes.annotate(
            "", place[made], place[source],
            arrowprops={"arrowstyle": "-|>", "color": GREY, "shrinkA": 14, "shrinkB": 14, "linewidth": 1},
        )  # fmt: skip
    for name, (x, y) in place.items():
        box = {"boxstyle": "round,pad=0.35", "facecolor": "#eef3f9", "edgecolor": BLUE, "linewidth": 0.8}
        axes.text(x, y, f"{name}\n{nodes[name]}", ha="center", va="center", fontsize=8, bbox=box)
    axes.set_xlim(0, 1)
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    return _svg(figure, "lineage")


def _leads(edges: Sequence[tuple[str, str]], start: str, end: str, skip: tuple[str, str]) -> bool:
    """Is there a way from `start` to `end` that does not use the edge `skip`?"""
    return any(
        made == end or _leads(edges, made, end, skip)
        for source, made in edges
        if source == start and (source, made) != skip
    )


def _axes(title: str, height: float) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
    return figure, axes


def _title_over_names(figure: Figure, title: str) -> None:
    """A title from the figure's left edge: over the axes alone it is cut where long names leave them little room."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")


def _svg(figure: Figure, title: str) -> str:
    """The figure as one <svg> element, equal for equal content, that grows and shrinks with the page."""
    target = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "Glyph missing from font": the reader's fonts draw the text
        FigureCanvasSVG(figure).print_svg(target, metadata=nothing)
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1).strip()


def _thinned(curve: Curve) -> Curve:
    """At most MOST_POINTS points: means of neighbours, so that nothing is drawn out of proportion."""
    steps, values = curve
    width = math.ceil(len(steps) / MOST_POINTS)
    if width <= 1:
        return curve
    bins = range(0, len(steps), width)
    return (
        [sum(steps[i : i + width]) / len(steps[i : i + width]) for i in bins],
        [sum(values[i : i + width]) / len(values[i : i + width]) for i in bins],
    )


def _limits(values: Sequence[float], share: float) -> tuple[float, float]:
    """Bounds of the picture that show the lowest `share` of the values, from 0 where 0 is near."""
    finite = sorted(value for value in values if math.isfinite(value))
    if not finite:
        return 0.0, 1.0
    low, high = finite[0], finite[math.ceil(share * len(finite)) - 1]
    room = (high - low or abs(high) or 1.0) * 0.06
    return (0.0 if 0 <= low < 0.3 * high else low - room), high + room
