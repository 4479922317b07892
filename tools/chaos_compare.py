"""What a run that was killed must have in common with one that was not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline import manifest as manifests
from pipeline.files import TEMPORARY
from pipeline.train import audit
from pipeline.train.history import FILE as LOSSES

TOLERANCE = 1e-3  # largest relative difference of a loss when the number of ranks changed on the way
HARMLESS = {"start", "resumed", "saved", "finished", "slow_rank", "world_changed"}  # events; a kill explains no other
HALF = "could not write its part"  # rank 0 of a rank that was killed while it wrote: that too


def outputs(reference: Path, killed: Path) -> list[str]:
    """Differences of two stages' results: every file by size and checksum, and every count."""
    straight, broken = manifests.load(reference), manifests.load(killed)
    found = [] if broken.key == straight.key else [f"key {broken.key} instead of {straight.key}"]
    before, now = ({output.path: output for output in made.outputs} for made in (straight, broken))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            found.append(f"{name}: {now.get(name)} instead of {before.get(name)}")
    if straight.counts != broken.counts:
        found.append(f"counts {broken.counts} instead of {straight.counts}")
    return found


def trainings(reference: Path, killed: Path, exact: bool) -> tuple[list[str], float]:
    """Differences of two trainings' folders: each step and validation once and in order, with the same loss (exact:
    to the last bit, else to TOLERANCE); nothing in the audit but starts and saves, and each start where the last
    save was. Returns them and the largest relative difference of a step's loss."""
    straight, broken = _records(reference), _records(killed)
    found = [
        f"{LOSSES}: {name} stands there {count} times"
        for name, count in Counter(map(_name, broken)).items()
        if count > 1
    ]
    if [_name(record) for record in broken] != [_name(record) for record in straight]:
        found.append(f"{LOSSES}: {len(broken)} records instead of {len(straight)}, or in another order")
        return found, 0.0
    largest = 0.0
    for one, other in zip(straight, broken, strict=True):
        apart = _apart(one, other)
        if "loss" in one:
            largest = max(largest, apart)
        if apart > (0.0 if exact else TOLERANCE):
            found.append(f"{LOSSES}: {other} instead of {one}")
    return found + _history(killed), largest


def _history(folder: Path) -> list[str]:
    """What is wrong in the order of events."""
    found, saved = [], 0
    for event in audit.events(folder):
        half = event["kind"] == "save_failed" and event["why"].endswith(HALF)
        if event["kind"] not in HARMLESS and not half:
            found.append(f"{audit.FILE}: {event}")
        elif event["kind"] == "saved":
            saved = event["step"]
        elif event["kind"] in ("start", "resumed") and event["step"] < saved:
            found.append(f"{audit.FILE}: begins again after step {event['step']}, although step {saved} was saved")
        elif event["kind"] in ("start", "resumed"):
            saved = event["step"]  # perhaps committed in the moment before the kill, and not on record yet
    if litter := [path.name for path in folder.rglob(f"*{TEMPORARY}")]:
        found.append(f"left behind: {litter}")
    return found


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOSSES).read_text(encoding="utf-8").splitlines()]


def _name(record: dict[str, Any]) -> str:
    return f"{'loss' if 'loss' in record else 'validation'} of step {record['step']}"


def _apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest relative difference of two records' numbers."""
    if "loss" in one:
        pairs = [(one["loss"], other["loss"])]
    else:
        pairs = [(one["validation"][name], other["validation"].get(name)) for name in one["validation"]]
    return max(
        0.0 if a == b else float("inf") if a is None or b is None else abs(a - b) / abs(a) if a else float("inf")
        for a, b in pairs
    )
