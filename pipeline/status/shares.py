"""The tasks of job arrays that make a stage together: who of them is at work, who ended how."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from pipeline.errors import Stopped

Found = dict[str, Any]
SHOWN = 8  # numbers of tasks, before the rest is counted


def read_shares(logs: Path, stage: str, jobs: Sequence[Found], running: Set[str] | None) -> Found:
    """What the tasks of a stage's newest array are doing; empty when none began after the plain command did.

    jobs: lines of logs/jobs.jsonl; running: jobs that run in Slurm's queue, None where none tells. A task that began
    and did not end is at work if its job runs or, where no queue tells, if somebody holds the stage's lock; else it
    was killed.
    Returns {"at_work": names, "ended": names, "stopped": names, "failed": {name: why}, "killed": names, "last"}.
    """
    last: dict[str, Found] = {}
    for line in jobs:
        if line["stage"] == stage:
            last.clear()  # the plain command began or ended after them
        elif called := re.fullmatch(re.escape(stage) + r"\.(task-(\d+)|decide)", line["stage"]):
            last[called[2] or "decide"] = line
    if not last:
        return {}
    newest = max(last.values(), key=lambda line: str(line["time"]))
    held = is_held(logs / f"{stage}.lock")
    found: Found = {"at_work": [], "ended": [], "stopped": [], "failed": {}, "killed": [], "last": newest}
    for name, line in sorted(last.items(), key=lambda item: (len(item[0]), item[0])):
        if line["event"] == "start":
            alive = held if running is None or not line.get("job") else line["job"] in running
            found["at_work" if alive else "killed"].append(name)
        elif line.get("status") == Stopped.status:
            found["stopped"].append(name)
        elif line.get("status"):
            found["failed"][name] = line.get("why", "")
        else:
            found["ended"].append(name)
    return found


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock, alone or with others, as far as this machine can tell."""
    try:
        with open(lock, "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def state_of(shares: Found) -> Found:
    """A stage's state as its tasks make it, and why: {"state", "why"}."""
    if shares["at_work"]:
        return {"state": "at work", "why": ""}
    if shares["failed"]:
        name, why = next(iter(shares["failed"].items()))
        return {"state": "failed", "why": f"{task_names([name])}: {why}"}
    if shares["killed"]:
        return {"state": "killed", "why": f"{task_names(shares['killed'])} did not end; the same command continues"}
    if shares["stopped"]:
        return {"state": "stopped", "why": "the same command continues"}
    return {
        "state": "half done",
        "why": "its tasks have ended; the next job of the chain, or the command without --task, continues",
    }


def task_names(names: Sequence[str]) -> str:
    """`task 3`, `tasks 0, 1, 2`, `the decision`."""
    if list(names) == ["decide"]:
        return "the decision"
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"task{'s' * (len(names) > 1)} {', '.join(names[:SHOWN])}{rest}"
