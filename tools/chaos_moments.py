"""When to kill, and what a kill hit: read from what lies on disk, while every process is frozen."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.files import TEMPORARY
from pipeline.manifest import MANIFEST
from pipeline.train import audit
from pipeline.train.checkpoint_files import DESCRIPTION, INDEX, POINTER
from pipeline.train.hang_report import HEARTBEATS

OLD = f".old{TEMPORARY}"  # a checkpoint that is being deleted
BEGUN = ("start", "resumed")  # events of the audit: the steps follow


@dataclass
class Moment:
    """A kill falls `delay` seconds after `name` is seen for the `after`-th time in a start."""

    name: str
    after: int
    delay: float
    passed: set[str] = field(default_factory=set)  # checkpoints of this start in which it was seen


class Training:
    """The moments of a stage that trains. folder: where its checkpoints lie; final: where its result appears."""

    def __init__(self, folder: Path, final: Path, random_: random.Random) -> None:
        self.folder, self.final, self.random = folder, final, random_
        self.first_step = 3.0  # seconds from a start to its first step, learnt
        self.spared = False  # a kill after the last step was drawn already, and was not to be

    def begin(self) -> None:
        """Before a start: what is there is not its own."""
        self.before = set(_names(self.folder))
        self.newest = max(_steps(self.before), default=0)
        self.events = _starts(self.folder)
        self.beats = {path.name: path.stat().st_mtime_ns for path in (self.folder / HEARTBEATS).glob("*.json")}
        self.began = time.monotonic()
        self.running = False

    def choose(self) -> Moment:
        """Draw the next moment: each kind equally often, saves three times (write, commit, delete)."""
        after = self.random.randint(1, 3)
        name, delay = self.random.choice(
            [
                ("start-up", self.random.uniform(0, 1.1 * self.first_step)),
                ("step", self.random.uniform(0, 0.3)),
                ("write", self.random.uniform(0, 0.1)),
                ("index", self.random.uniform(0, 0.02)),
                ("description", self.random.uniform(0, 0.004)),
                ("commit", self.random.uniform(0, 0.01)),
                ("delete", self.random.uniform(0, 0.002)),
            ]
        )
        return Moment(name, after, delay)

    def comes(self, moment: Moment) -> bool:
        """Whether it is time. Cheap: asked a thousand times a second."""
        if moment.name == "start-up":
            return time.monotonic() - self.began >= moment.delay
        if self.final.exists() and not self.spared:
            self.spared = self.random.random() < 0.5
            if not self.spared:
                time.sleep(self.random.uniform(0, 0.05))
                return True
        names = _names(self.folder)
        new = {name for name in names if name not in self.before}
        if not self.running and new:
            self.running = True
            self.first_step += 0.3 * (time.monotonic() - self.began - self.first_step)
        fresh = self._met(moment.name, new)
        moment.passed |= fresh
        if len(moment.passed) < moment.after:
            return False
        time.sleep(moment.delay)
        return True

    def _met(self, name: str, new: set[str]) -> set[str]:
        """The checkpoints of this start of which that can be seen now."""
        if name in ("step", "commit"):
            return {found for found in new if not found.endswith(TEMPORARY)}
        if name == "delete":
            return {found for found in new if found.endswith(OLD)}
        writing = {found for found in new if found.endswith(TEMPORARY) and not found.endswith(OLD)}
        if name == "write":
            return writing
        file = INDEX if name == "index" else DESCRIPTION
        return {found for found in writing if any(name.startswith(file) for name in _listed(self.folder / found))}

    def phase(self) -> str:
        """What the frozen start was doing."""
        names = _names(self.folder)
        new = {name for name in names if name not in self.before}
        writing = [name for name in new if name.endswith(TEMPORARY) and not name.endswith(OLD)]
        if self.final.exists():
            return "after the last step"
        if any(name.endswith(OLD) for name in new):
            return "deleting an old checkpoint"
        if self._in_start_up():
            return "start-up: before the ranks met" if self._unheard() else "start-up: loading"
        return self._saving(names, writing)

    def _saving(self, names: list[str], writing: list[str]) -> str:
        """How far the save is that is being made, if any."""
        committed = {step for step in _steps(names) if step > self.newest}
        if committed and max(committed) != _pointed(self.folder):
            return "commit: renamed, no pointer yet"
        if any((self.folder / name / DESCRIPTION).exists() for name in writing):
            return "commit: described, not renamed"
        if any((self.folder / name / INDEX).exists() for name in writing):
            return "commit: indexed, not described"
        return "writing a checkpoint" if writing else "steps, nothing being written"

    def _in_start_up(self) -> bool:
        return _starts(self.folder) == self.events

    def _unheard(self) -> bool:
        return not any(
            path.stat().st_mtime_ns > self.beats.get(path.name, 0) for path in (self.folder / HEARTBEATS).glob("*.json")
        )


class Preparation:
    """The moments of a stage that makes files: any time, or just after one of them has appeared."""

    def __init__(self, folder: Path, seconds: float, random_: random.Random) -> None:
        self.folder, self.seconds, self.random = folder, seconds, random_

    def begin(self) -> None:
        self.began = time.monotonic()
        self.before = self._files()

    def choose(self) -> Moment:
        if self.random.random() < 0.5:
            return Moment("time", 1, self.random.uniform(0, self.seconds))
        return Moment("file", self.random.randint(1, 6), self.random.uniform(0, 0.02))

    def comes(self, moment: Moment) -> bool:
        if moment.name == "time":
            return time.monotonic() - self.began >= moment.delay
        if len(self._files() - self.before) < moment.after:
            return False
        time.sleep(moment.delay)
        return True

    def phase(self) -> str:
        if any(path.name.endswith(TEMPORARY) for path in self.folder.rglob("*")):
            return "a file half written"
        if (self.folder / MANIFEST).exists():
            return "after the manifest"
        return "between files" if self._files() else "start-up"

    def _files(self) -> set[str]:
        return {str(path) for path in self.folder.rglob("*") if path.is_file()}


def _names(folder: Path) -> list[str]:
    return [name for name in _listed(folder) if name.startswith("step-")]


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:  # a save is renamed at the end
        return []


def _steps(names: list[str] | set[str]) -> set[int]:
    return {int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit()}


def _pointed(folder: Path) -> int:
    try:
        return int((folder / POINTER).read_text(encoding="ascii").strip().removeprefix("step-"))
    except (OSError, ValueError):
        return 0


def _starts(folder: Path) -> int:
    return sum(event["kind"] in BEGUN for event in audit.events(folder))
