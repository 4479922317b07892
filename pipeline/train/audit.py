"""What happened to a training besides its steps: `audit.jsonl`, one line an event, in the order in which it happened.

Each line: {"time": UTC, "kind", "step": steps done, …values}. The file is never rewound: an event stays on record when
the steps around it are done again. Kinds: start, resumed, saved, damaged, skipped, spike, rollback, hang, slow_rank,
stopped, world_changed, phase, bad_shard,
finished. MLflow shows how many there were of each as `events/<kind>`.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pipeline.cluster.ranks import Ranks
from pipeline.files import disk_errors
from pipeline.owner import Fence
from pipeline.progress import log
from pipeline.tracking import Tracker

FILE = "audit.jsonl"
WARNINGS = {"bad_shard", "damaged", "skipped", "spike", "rollback", "hang", "slow_rank"}
FENCE_SECONDS = 1.0  # an answer of the fence that is no older counts
QUIET = {"start", "finished", "saved", "save_failed"}  # other lines of the log say so


class Audit:
    """Writes audit.jsonl in `folder`; rank 0 alone does, every rank may call it, and any thread.

    fence: asked before a line is written; a ghost's lines must not stand among those of its successor.
    """

    def __init__(self, folder: Path, ranks: Ranks, tracker: Tracker, fence: Fence | None = None) -> None:
        self.path, self._tracker, self._fence = folder / FILE, tracker, fence or Fence()
        self._lock = threading.Lock()  # the thread that writes checkpoints tells of them too
        self._descriptor: int | None = None
        self._counts: Counter[str] = Counter()
        if ranks.first:
            with disk_errors(self.path):
                folder.mkdir(parents=True, exist_ok=True)
                self._counts.update(str(event["kind"]) for event in events(folder))
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
                size = os.fstat(self._descriptor).st_size
                if size and os.pread(self._descriptor, 1, size - 1) != b"\n":  # a kill left half a line
                    os.write(self._descriptor, b"\n")

    def event(self, kind: str, step: int, **values: Any) -> None:
        """Record an event after `step` steps; `values` are JSON types. Synced to disk: what follows may be a crash.

        Raises: EnvironmentFault when the disk is full, or another command has taken over.
        """
        with self._lock:
            self._record(kind, step, values)

    def _record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if self._descriptor is None:
            return
        self._fence.check(within=FENCE_SECONDS)
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "kind": kind, "step": step, **values}) + "\n"
        with disk_errors(self.path):
            os.write(self._descriptor, line.encode())
            os.fsync(self._descriptor)
        if kind not in QUIET:
            words = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in values.items())
            say = log.warning if kind in WARNINGS else log.info
            say(f"{kind.replace('_', ' ')}: step {step:,}{': ' * bool(words)}{words}")
        self._counts[kind] += 1
        # All of them: a roll-back has made the tracker forget those of later steps.
        self._tracker.log_metrics({f"events/{name}": float(count) for name, count in self._counts.items()}, step)

    def close(self) -> None:
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


def events(folder: Path) -> Iterator[dict[str, Any]]:
    """The events in `folder`, oldest first; half a line, which a kill may leave, is passed over."""
    path = folder / FILE
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "kind" in event:
                yield event


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
