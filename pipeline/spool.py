"""What is to be sent to MLflow, kept on disk first: journals of JSON lines, and how much of each was sent.

In `workdir/logs/`, for a stage (and for `pipeline`, the run as a whole):

    <stage>.metrics.jsonl   {"step", "time", "metrics"}: every number, with MLflow or without; the report reads it
    <stage>.events.jsonl    {"kind", "time", …}: what else MLflow is told: params, tags, inputs, artifact, status …
    <stage>.sent.json       the MLflow run, and the last line of each journal that has reached it
    <stage>.rewound.json    numbers that were taken back when training went back, and will be made again

Delivery is at least once: the sent positions are written after the server has taken a batch. MLflow keeps one of two
equal points (same name, time, step and value), so a repeated batch changes nothing there; and a number that is made
again, as after a crash, keeps its first time, so that it does not stand there twice. Another number of ranks makes it
again but for rounding: then it keeps its first value too, since MLflow forgets no point; losses.jsonl has the last one.
What is made of other data, after a rollback, is never taken for the first.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.files import disk_errors, write_json
from pipeline.journal import FENCE_SECONDS, Journal, Line, Mark
from pipeline.owner import Fence
from pipeline.progress import log

METRICS, EVENTS, SENT, SENDING = ".metrics.jsonl", ".events.jsonl", ".sent.json", ".sending.lock"
REWOUND = ".rewound.json"
PIPELINE = "pipeline"  # the spool of the run as a whole, and its name
ROUNDING = 1e-3  # of a value: so far apart other numbers of ranks may be (the promise of an elastic start)


class Spool:
    """The journals of one stage, and what of them was sent.

    logs: the folder `workdir/logs`; name: the stage, or `pipeline`; fence: of the stage that is at work. Opening reads;
    nothing is written but a torn line removed.
    """

    def __init__(self, logs: Path, name: str, fence: Fence | None = None) -> None:
        self.logs, self.name, self.fence = logs, name, fence or Fence()
        self.metrics = Journal(logs / (name + METRICS), self.fence)
        self.events = Journal(logs / (name + EVENTS), self.fence)
        # step → name → [time, value, how far a value may be from it to be the same]; None: not read
        self._rewound: dict[str, dict[str, list[float]]] | None = None
        self._lock = threading.Lock()

    def begin(self, key: str, new_when_finished: bool = True) -> Line:
        """Start, or go on with, the spool of the stage with this key. Returns its first event.

        A spool of another key, or one that has finished, is a run of its own: it is moved to `logs/previous/`, where
        what is still unsent is not forgotten.
        """
        with disk_errors(self.logs):
            self.logs.mkdir(parents=True, exist_ok=True)
        began = self.began()
        if began is not None and (began["key"] != key or (new_when_finished and self.finished())):
            self._set_aside()
            began = None
        if began is None:
            self.event("begin", stage=self.name, key=key, id=uuid.uuid4().hex)
            began = self.began()
            assert began is not None  # just written
        return began

    def began(self) -> Line | None:
        """The first event: {"kind": "begin", "time", "stage", "key", "id"}; None when there is none yet.

        The id is what the MLflow run bears as a tag: by it a run is found again, after a crash as well.
        """
        first = next(self.events.read(most=1), None)
        return first[0] if first and first[0].get("kind") == "begin" else None

    def finished(self) -> bool:
        """Did the stage end well? Then a further run of it is a new one."""
        states = [line["status"] for line, _ in self.events.read() if line.get("kind") == "status"]
        return bool(states) and states[-1] == "FINISHED"

    def event(self, kind: str, **values: Any) -> None:
        """Add an event."""
        self.events.append({"kind": kind, "time": round(time.time(), 3), **values})

    def numbers(self, metrics: Mapping[str, float], step: int | None) -> None:
        """Add numbers. One that was there before a rewind is the first again, with its time."""
        before = self._taken_back().get(str(step), {})
        by_time: dict[float, dict[str, float]] = {}
        now = round(time.time(), 3)
        for name, value in metrics.items():
            at, first, *rounding = before.get(name, (now, value))
            apart = rounding[0] if rounding else 0.0
            same = math.isclose(first, value, rel_tol=apart) or (math.isnan(first) and math.isnan(value))
            by_time.setdefault(at if same else now, {})[name] = first if same else value
        for at, values in by_time.items():
            self.metrics.append({"step": step, "time": at, "metrics": values})

    def _taken_back(self) -> dict[str, dict[str, list[float]]]:
        if self._rewound is None:
            try:
                self._rewound = json.loads((self.logs / (self.name + REWOUND)).read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError):  # a damaged one costs a point that stands twice
                self._rewound = {}
        return self._rewound or {}

    def rewind(self, step: int, rounding: float | None = None) -> None:
        """Take back the numbers of later steps than `step`: they will be made again.

        rounding: how far, as a share, a number may be from the one taken back and still be that one: ROUNDING where
        other ranks make it, 0 where it is made of other data; None: as before.
        """
        dropped = self.metrics.later(step)
        if dropped:
            rewound = {at: points for at, points in self._taken_back().items() if int(at) > step}
            for line in dropped:
                points = rewound.setdefault(str(line["step"]), {})
                for name, value in line["metrics"].items():
                    known = points.get(name, [])
                    held = known[2] if len(known) == 3 and known[1] == value else 0.0
                    points[name] = [line["time"], value, held if rounding is None else rounding]
            self.fence.check()
            write_json(self.logs / (self.name + REWOUND), rewound)
            self._rewound = rewound
        with self._lock:
            last = self.metrics.rewind(step)
            state = self.sent()
            if state.get("metrics") and state["metrics"][1] > (last[1] if last else 0):
                state["metrics"] = last
                self._write(state)

    def sent(self) -> Line:
        """{"uri", "run_id", "metrics", "events"}: the last line of each journal that has reached that run."""
        path = self.logs / (self.name + SENT)
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            state = None
        if not isinstance(state, dict):
            log.warning("%s: damaged; the numbers of %s are sent again", path, self.name)
            return {}
        return state

    def last_sent(self, journal: Journal) -> Mark | None:
        """The last line of a journal that was sent; None: nothing yet, or it is not there any more (a rewind)."""
        mark = self.sent().get("metrics" if journal is self.metrics else "events")
        return tuple(mark) if mark and journal.holds(mark) else None

    def mark_sent(self, journal: Journal, mark: Mark) -> None:
        """Note that everything up to the line `mark` was taken."""
        with self._lock:
            if journal.holds(mark):
                self._write({**self.sent(), "metrics" if journal is self.metrics else "events": mark})

    def send_to(self, uri: str, run_id: str) -> None:
        """Name the MLflow run; to another one than before, everything is sent again."""
        with self._lock:
            state = self.sent()
            if (state.get("uri"), state.get("run_id")) != (uri, run_id):
                self._write({"uri": uri, "run_id": run_id})

    def _write(self, state: Line) -> None:
        write_json(self.logs / (self.name + SENT), state)

    def unsent(self) -> int:
        """Bytes that wait to be sent."""
        journals = (self.metrics, self.events)
        return sum(journal.size() - (self.last_sent(journal) or (0, 0))[1] for journal in journals)

    def unsent_points(self) -> int:
        """Numbers that wait to be sent."""
        return sum(len(line.get("metrics", {})) for line, _ in self.metrics.read(self.last_sent(self.metrics)))

    @contextlib.contextmanager
    def only_sender(self) -> Iterator[bool]:
        """Hold the right to send this spool while the block runs; False when another process has it.

        Raises: Fenced when another command has taken over.
        """
        self.fence.check(within=FENCE_SECONDS)
        with open(self.logs / (self.name + SENDING), "ab") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def break_lock(self) -> None:
        """Take the right to send from a ghost, which may hold it for ever."""
        (self.logs / (self.name + SENDING)).unlink(missing_ok=True)

    def take_back(self, key: str) -> None:
        """Bring back the spool of a stage with this key from `logs/previous/`; the one here takes its place there."""
        began = self.began()
        if began is not None and began["key"] == key:
            return
        old = self.logs / "previous"
        for path in sorted(old.glob(f"{self.name}-*{EVENTS}")):
            name = path.name.removesuffix(EVENTS)
            first = Spool(old, name).began()
            if first is None or (first["stage"], first["key"]) != (self.name, key):
                continue
            if began is not None:
                self._set_aside()
            for suffix in (METRICS, SENT, EVENTS):  # events last: until they are here, this begins again
                if (old / (name + suffix)).exists():
                    (old / (name + suffix)).rename(self.logs / (self.name + suffix))
            return

    def _set_aside(self) -> None:
        old = self.logs / "previous"
        with disk_errors(old):
            old.mkdir(exist_ok=True)
            number = 1
            while (old / f"{self.name}-{number}{EVENTS}").exists():
                number += 1
            (self.logs / (self.name + REWOUND)).unlink(missing_ok=True)
            self._rewound = None
            # Events last: while they lie in logs/, a move that was cut short begins again with the same number.
            for suffix in (METRICS, SENT, EVENTS):
                path = self.logs / (self.name + suffix)
                if path.exists():
                    path.rename(old / f"{self.name}-{number}{suffix}")


def spools(logs: Path) -> list[Spool]:
    """All spools of a run, those of earlier settings first."""
    return [
        Spool(path.parent, path.name.removesuffix(EVENTS))
        for folder in (logs / "previous", logs)
        for path in sorted(folder.glob("*" + EVENTS))
    ]
