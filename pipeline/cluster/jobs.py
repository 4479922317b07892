"""Which jobs worked on a run: `logs/jobs.jsonl`, a line when rank 0 begins a stage and a line when it ends it.

{"time": UTC, "stage", "event": "start" | "end", "job": Slurm's id or "", "restart", "hosts": as Slurm writes them,
"world_size", "launcher", "pid", "status", "why"}; status (the exit status) and why stand in `end` lines. A command
that was killed has no `end`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pipeline.cluster.ranks import ALONE, Ranks
from pipeline.errors import PipelineError, Stopped
from pipeline.files import disk_errors
from pipeline.owner import Identity

FILE = "jobs.jsonl"
INTERRUPTED = 130  # Ctrl-C


@contextlib.contextmanager
def recorded(logs: Path, stage: str, ranks: Ranks | None) -> Iterator[None]:
    """Record the start of a stage, and how the block ends."""
    ranks = ranks or ALONE
    me = Identity.of_this_process()
    line = {
        "stage": stage,
        "event": "start",
        "job": me.job,
        "restart": me.restart,
        "hosts": hosts(),
        "world_size": ranks.world_size,
        "launcher": ranks.launcher,
        "pid": me.pid,
    }
    _append(logs / FILE, line)
    status, why = 0, ""
    try:
        yield
    except BaseException as error:
        status, why = _ending(error)
        raise
    finally:
        _append(logs / FILE, {**line, "event": "end", "status": status, "why": why})


def read_jobs(logs: Path) -> list[dict[str, Any]]:
    """All lines, oldest first; half a line, which a kill or a full disk may leave, is passed over."""
    path = logs / FILE
    if not path.is_file():
        return []
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and {"time", "stage", "event"} <= line.keys():
            found.append(line)
    return found


def hosts(environment: Mapping[str, str] = os.environ) -> str:
    """Where this launch works: Slurm's node list (`gpu[07-09]`), else this host."""
    return environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or socket.gethostname()


def launch_id(ranks: Ranks | None, environment: Mapping[str, str] = os.environ) -> str:
    """A name that all ranks of one launch have in common, and that other launches hardly ever have."""
    if ranks is None:
        return ""
    names = (
        ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        if ranks.launcher == "srun"
        else ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    )
    told = [f"{name}={environment[name]}" for name in names if name in environment]
    return " ".join([ranks.launcher, f"{ranks.world_size}@{ranks.address}:{ranks.port}", *told])


def _ending(error: BaseException) -> tuple[int, str]:
    """The exit status that an error means, and its words."""
    words = " ".join(str(error).split())[:500]
    if isinstance(error, (PipelineError, Stopped)):
        return error.status, words
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "Ctrl-C"
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code, "stopped early" if error.code == Stopped.status else "a rank failed"
    return PipelineError.status, f"{type(error).__name__}: {words}"


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """One write, synced."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    data = (json.dumps({"time": now, **line}) + "\n").encode()
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, b"\n" * torn + data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
