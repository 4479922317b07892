"""What a demonstration promises, and whether it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Promise:
    """A number on held-out examples that must be above all of `beside` (at or above what is called `at least`)."""

    name: str
    metric: str
    value: float
    beside: Mapping[str, float]

    @property
    def kept(self) -> bool:
        return all(
            self.value >= other if name == "at least" else self.value > other for name, other in self.beside.items()
        )


def evaluation(run: Path, task: str) -> dict[str, Any]:
    """What `pipeline evaluate` found of a task."""
    found: dict[str, Any] = json.loads((run / "evaluation" / f"{task}.json").read_text(encoding="utf-8"))
    return found


def table(promises: Sequence[Promise]) -> str:
    """Markdown."""
    lines = ["| | metric | fine-tuned | must be above | |", "|---|---|---|---|---|"]
    for one in promises:
        beside = ", ".join(f"{name} {_shown(value)}" for name, value in one.beside.items())
        word = "kept" if one.kept else "BROKEN"
        lines.append(f"| {one.name} | {one.metric} | {_shown(one.value)} | {beside} | {word} |")
    return "\n".join(lines)


def _shown(value: float) -> str:
    """Shares with three digits, percentages with one."""
    return f"{value:.3f}" if value <= 1 else f"{value:.1f}"
