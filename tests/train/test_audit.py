"""The audit log: one line an event, whatever a kill left behind."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cluster.ranks import ALONE
from pipeline.errors import Fenced
from pipeline.owner import Fence
from pipeline.tracking import Tracker
from pipeline.train.audit import FILE, Audit, events


class Recorded(Tracker):
    def __init__(self) -> None:
        self.metrics: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.metrics.append((step, dict(metrics)))


def test_events_are_kept_and_counted_over_restarts(tmp_path: Path) -> None:
    first = Audit(tmp_path, ALONE, Recorded())
    first.event("start", 0, world_size=1)
    first.event("skipped", 5, window=4, loss="nan")
    first.close()
    with open(tmp_path / FILE, "a", encoding="utf-8") as file:
        file.write('{"time": "2026", "kind": "spi')  # killed in the middle of a line
    tracker = Recorded()
    second = Audit(tmp_path, ALONE, tracker)
    second.event("skipped", 7, window=6, loss="inf")
    second.close()
    found = list(events(tmp_path))
    assert [(event["kind"], event["step"]) for event in found] == [("start", 0), ("skipped", 5), ("skipped", 7)]
    assert found[1]["window"] == 4
    assert json.loads((tmp_path / FILE).read_text().splitlines()[-1]) == found[-1]
    assert tracker.metrics == [(7, {"events/skipped": 2.0, "events/start": 1.0})]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "stage", replace(ALONE, rank=1, world_size=2), Recorded())
    audit.event("start", 0)
    audit.close()
    assert not (tmp_path / "stage").exists()


def test_threads_may_tell_at_once(tmp_path: Path) -> None:
    """As the one that writes checkpoints and the one that trains do."""
    tracker = Recorded()
    audit = Audit(tmp_path, ALONE, tracker)

    def tell(name: int) -> None:
        for number in range(40):
            audit.event(f"kind_{name}_{number}", number)

    threads = [threading.Thread(target=tell, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    audit.close()
    assert len(list(events(tmp_path))) == 160
    assert sum(tracker.metrics[-1][1].values()) == 160


class Overtaken(Fence):
    def check(self, within: float = 0.0) -> None:
        raise Fenced("the run belongs to another command now")


def test_a_ghost_writes_no_line(tmp_path: Path) -> None:
    audit = Audit(tmp_path, ALONE, Recorded(), Overtaken())
    with pytest.raises(Fenced):
        audit.event("skipped", 3)
    audit.close()
    assert not list(events(tmp_path))
