"""What the evaluation sets were found in: counted by split, added up, and told at the end of the stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.corpus.decontamination.table import open_table

HITS = "contamination.json"  # in the stage's folder
Hits = dict[str, dict[str, int]]  # `documents` by set, and by item (`items`): how many overlap with it


def count_hits(hits: Hits, contaminated: Sequence[str]) -> None:
    """Add a document, by the items that overlap with it, `set/id`."""
    for group, labels in (("documents", {label.partition("/")[0] for label in contaminated}), ("items", contaminated)):
        counts = hits.setdefault(group, {})
        for label in labels:
            counts[label] = counts.get(label, 0) + 1


def add_hits(total: Hits, one: Hits) -> None:
    """Add the counts of a split."""
    for group, counts in one.items():
        there = total.setdefault(group, {})
        for label, amount in counts.items():
            there[label] = there.get(label, 0) + amount


def report_hits(parts: Path, hits: Hits) -> tuple[dict[str, dict[str, int]], dict[str, Any]]:
    """By set: items, those too short to be looked for, items hit, documents that overlap with any; and the same with
    every item that was hit, and in how many documents."""
    counts: dict[str, dict[str, int]] = {}
    items: dict[str, Any] = {}
    for one in open_table(parts).sets:
        name = one["name"]
        mark = f"{name}/"
        hit = {key.removeprefix(mark): n for key, n in sorted(hits.get("items", {}).items()) if key.startswith(mark)}
        counts[name] = {
            "items": one["items"],
            "too_short": one["too_short"],
            "items_hit": len(hit),
            "documents": hits.get("documents", {}).get(name, 0),
        }
        items[name] = counts[name] | {"documents_by_item": hit}
    return counts, items
