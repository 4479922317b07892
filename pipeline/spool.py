"""What is to be sent to MLflow, kept on disk first: journals of JSON lines, and how much of each was sent.

In `workdir/logs/`, for a stage (and for `pipeline`, the run as a whole):

    <stage>.metrics.jsonl   {"step", "time", "metrics"}: every number, with MLflow or without; the report reads it
    <stage>.events.jsonl    {"kind", "time", …}: what else MLflow is told: params, tags, inputs, artifact, status …
    <stage>.sent.json       the MLflow run, and the last line of each journal that has reached it

Delivery is at least once: the sent positions are written after the server has taken a batch. MLflow keeps one of two
equal points (same name, time, step and value), so a repeated batch changes nothing there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.files import atomic_write, disk_errors, write_json
from pipeline.progress import log

Line = dict[str, Any]
Mark = tuple[int, int, int]  # where a line begins and ends, in bytes, and its CRC-32
METRICS, EVENTS, SENT = ".metrics.jsonl", ".events.jsonl", ".sent.json"
SYSTEM = "system/"  # metrics of the machine: their step is in seconds, and a rewind leaves them


class Journal:
    """An append-only file of JSON lines, shared by the thread that writes and the one that sends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._drop_torn_line()

    def _drop_torn_line(self) -> None:
        """A power cut or a full disk may leave half a line at the end; what follows would be glued to it."""
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            with disk_errors(self.path):
                os.truncate(self.path, content.rfind(b"\n") + 1)

    def append(self, line: Line) -> None:
        """Add a line with one write, so that a killed process leaves whole lines.

        Raises: EnvironmentFault when the disk is full.
        """
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        with self._lock, disk_errors(self.path), open(self.path, "ab", buffering=0) as handle:
            handle.write(data)

    def read(self, mark: Mark | None = None, most: int = 1 << 62) -> Iterator[tuple[Line, Mark]]:
        """Whole lines after `mark` (or from the start), each with its own mark; about `most` bytes of them.

        A damaged line counts as an empty one, with a warning.
        """
        if not self.path.is_file():
            return
        position = mark[1] if mark else 0
        with self._lock, open(self.path, "rb") as handle:
            handle.seek(position)
            lines = handle.readlines(most)
        for raw in lines:
            if not raw.endswith(b"\n"):
                return
            start, position = position, position + len(raw)
            try:
                line = json.loads(raw)
                if not isinstance(line, dict):
                    raise ValueError("not an object")
            except ValueError as error:  # UnicodeDecodeError and JSONDecodeError too
                log.warning("%s: damaged line at byte %d passed over: %s", self.path, start, error)
                line = {}
            yield line, (start, position, zlib.crc32(raw))

    def holds(self, mark: Mark) -> bool:
        """Is the line that `mark` names still where it was? Not so after a rewind."""
        start, end, checksum = mark
        if not self.path.is_file():
            return False
        with self._lock, open(self.path, "rb") as handle:
            handle.seek(start)
            return zlib.crc32(handle.read(end - start)) == checksum

    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def rewind(self, step: int) -> Mark | None:
        """Drop lines of later steps than `step`. Returns the mark of the last line before the first dropped."""
        kept: list[Line] = []
        last: Mark | None = None
        dropped = False
        for line, mark in self.read():
            if _is_later(line, step):
                dropped = True
            else:
                kept.append(line)
                last = last if dropped else mark
        if dropped:
            with self._lock, atomic_write(self.path, "w") as handle:
                for line in kept:
                    handle.write(json.dumps(line, ensure_ascii=False) + "\n")
        return last


def _is_later(line: Line, step: int) -> bool:
    at = line.get("step")
    return isinstance(at, int) and at > step and not all(name.startswith(SYSTEM) for name in line.get("metrics", {}))


class Spool:
    """The journals of one stage, and what of them was sent.

    logs: the folder `workdir/logs`; name: the stage, or `pipeline`. Opening reads; nothing is written but a torn line
    removed.
    """

    def __init__(self, logs: Path, name: str) -> None:
        self.logs, self.name = logs, name
        self.metrics = Journal(logs / (name + METRICS))
        self.events = Journal(logs / (name + EVENTS))
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

    def rewind(self, step: int) -> None:
        """Forget the numbers of later steps than `step`: they will be made again."""
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
        """Hold the right to send this spool while the block runs; False when another process has it."""
        with open(self.logs / f"{self.name}.sending.lock", "ab") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _set_aside(self) -> None:
        old = self.logs / "previous"
        with disk_errors(old):
            old.mkdir(exist_ok=True)
            number = 1
            while (old / f"{self.name}-{number}{EVENTS}").exists():
                number += 1
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
