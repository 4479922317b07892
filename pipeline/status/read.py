"""What the files of a run, and Slurm's queue, say about it. Reads only; nothing heavy is imported, nothing is started.

The sources: manifests and `building.json` (what is made), leases and locks (who is at work), `logs/jobs.jsonl` (who
was), `heartbeats/`, `audit.jsonl` and checkpoints (how training goes), the metrics journal, `logs/mlflow.json`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Mapping, Set
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pipeline.cluster.jobs import read_jobs
from pipeline.config import load_recipe
from pipeline.errors import DataError, Stopped
from pipeline.manifest import BUILDING, MANIFEST, load
from pipeline.owner import STALE, Identity, Lease, read_lease
from pipeline.recipe import Recipe
from pipeline.spool import METRICS
from pipeline.stages import Stage, stages
from pipeline.status.queue import jobs_in_queue
from pipeline.status.shares import read_shares, state_of
from pipeline.train.audit import events

RECIPE = "recipe.yaml"
SKEW = 60.0  # seconds by which the clocks of two hosts may differ before a lease looks older than it is
EVENTS = 10  # shown
ROUTINE = ("saved",)  # events of which there are many; the last checkpoint stands for them
TAIL = 4 << 20  # bytes of a journal in which the last numbers are looked for
INTERRUPTED = 130
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED")  # states of jobs whose processes are there

Found = dict[str, Any]


def open_run(recipe: Recipe | None, workdir: Path) -> Recipe:
    """The recipe that a run began with, read from its folder.

    Raises: DataError when there is no run.
    """
    path = workdir / RECIPE
    if path.is_file():
        return load_recipe(str(path), ()).model_copy(update={"workdir": workdir})  # it may have been moved
    if recipe is not None and workdir.is_dir():
        return recipe
    raise DataError(f"{workdir}: no run is there (no {RECIPE}); `pipeline run` begins one")


def read_run(recipe: Recipe) -> Found:
    """All that is known about a run, as JSON types. Times are in UTC, durations in seconds."""
    logs = recipe.workdir / "logs"
    jobs = read_jobs(logs)
    ids = {line["job"] for line in jobs if line.get("job")}
    ids |= {found[1] for path in logs.glob("slurm-*.starts") if (found := re.match(r"slurm-(\d+)\.", path.name))}
    queue = jobs_in_queue(ids, recipe.workdir.resolve())
    running = None if queue is None else {job["id"] for job in queue if job["state"] in RUNNING}
    return {
        "name": recipe.name,
        "workdir": str(recipe.workdir),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "stages": [read_stage(recipe, stage, jobs, running) for stage in stages(recipe).values()],
        "queue": queue,
        "mlflow": _json(logs / "mlflow.json"),
    }


def read_stage(recipe: Recipe, stage: Stage, jobs: list[Found], running: Set[str] | None = None) -> Found:
    """One stage: its state in a word, why, the starts it had, and for training how far it is.

    running: jobs that run in Slurm's queue; None where none tells.
    state: `at work`, `done`, `stopped` (in order, resumable), `failed`, `killed`, `half done` or `not begun`.
    """
    folder, logs = recipe.workdir / stage.folder, recipe.workdir / "logs"
    mine = [line for line in jobs if line["stage"] == stage.name]
    lease = read_lease(logs, stage.name)
    found: Found = {"name": stage.name, **_state(folder, logs, stage.name, mine, lease)}
    if found["state"] not in ("at work", "done") and (shares := read_shares(logs, stage.name, jobs, running)):
        found = {"name": stage.name, **state_of(shares), "tasks": shares}
    starts = [line for line in mine if line["event"] == "start"]
    if starts:
        found["starts"] = len(starts)
        found["jobs"] = list(dict.fromkeys(line["job"] for line in starts if line.get("job")))
        found["last_start"] = {name: value for name, value in starts[-1].items() if name not in ("stage", "event")}
    if stage.trains:
        found |= _training(recipe, stage, found["state"] == "at work")
    return found


def _state(folder: Path, logs: Path, name: str, jobs: list[Found], lease: Lease | None) -> Found:
    """The stage's state, and what explains it."""
    found: Found = {"state": "not begun", "why": ""}
    last = jobs[-1] if jobs else {}
    if lease is not None and not lease.released and _is_alive(logs / f"{name}.lock", lease):
        found = {"state": "at work", "why": str(lease.who)}
    elif (folder / MANIFEST).is_file():
        try:
            made = load(folder)
            found = {"state": "done", "finished": made.finished, "seconds": made.seconds, "bytes": made.total_bytes()}
        except DataError as error:
            found = {"state": "failed", "why": str(error)}
    elif last.get("event") == "end" and last.get("status"):
        in_order = last["status"] in (Stopped.status, INTERRUPTED)
        found = {"state": "stopped" if in_order else "failed", "why": last.get("why", ""), "ended": last["time"]}
    elif last.get("event") == "start":
        found = {"state": "killed", "why": f"{lease.who if lease else 'its process'} is gone"}
        if lease:
            found["last_seen"] = datetime.fromtimestamp(lease.renewed, timezone.utc).isoformat(timespec="seconds")
    elif (folder / BUILDING).is_file():
        found = {"state": "half done", "why": "the same command continues"}
    return found


def _is_alive(lock: Path, lease: Lease) -> bool:
    """Whether a lease's holder lives: by the lock where this machine's kernel knows it, else by the lease's age.

    The age compares two hosts' clocks, which is good enough to tell a person, and for nothing else.
    """
    fresh = time.time() - lease.renewed < STALE + SKEW
    if lease.who.boot == Identity.of_this_process().boot:
        with contextlib.suppress(OSError), open(lock, "rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
            except BlockingIOError:
                return fresh
    return fresh


# --- training ------------------------------------------------------------------------------------------------------


def _training(recipe: Recipe, stage: Stage, at_work: bool) -> Found:
    """How far a training is: progress, checkpoint, last numbers, last events."""
    folder = recipe.workdir / stage.folder
    folder = folder if stage.name == "pretrain" else folder / "checkpoints"
    beat = _json(folder / "heartbeats" / "rank-00000.json") or {}
    numbers = last_numbers(recipe.workdir / "logs" / (stage.name + METRICS))
    found: Found = {}
    if progress := _progress(beat, numbers, at_work):
        found["progress"] = progress
    if checkpoint := last_checkpoint(folder):
        found["checkpoint"] = checkpoint
    validation = {name: value for name, value in numbers.items() if name.startswith("validation/")}
    if validation:
        found["validation"] = {
            "step": next(iter(validation.values()))[0],
            **{name.partition("/")[2]: value for name, (_, value) in validation.items()},
        }
    if told := [event for event in events(folder) if event["kind"] not in ROUTINE][-EVENTS:]:
        found["events"] = told
    return found


def _progress(beat: Mapping[str, Any], numbers: Mapping[str, tuple[int, float]], at_work: bool) -> Found:
    """Steps and tokens done and in all, speed, seconds left; what is not known is left out."""
    told = [beat["step"]] if "step" in beat else []
    told += [numbers["tokens"][0]] if "tokens" in numbers else []
    if not told:
        return {}
    step = max(told)  # either may be some seconds old
    found: Found = {"step": step, "steps": beat.get("steps")}
    per_step = beat.get("tokens_per_step")
    if per_step is None and numbers.get("tokens", (0, 0))[0]:
        per_step = numbers["tokens"][1] / numbers["tokens"][0]
    speed = beat.get("tokens_per_second") or numbers.get("tokens_per_second", (0, None))[1]
    if per_step:
        found |= {"tokens": round(step * per_step), "total_tokens": None}
        if found["steps"]:
            found["total_tokens"] = round(found["steps"] * per_step)
    if speed:
        found["tokens_per_second"] = speed
        if at_work and found.get("total_tokens"):
            found["seconds_left"] = (found["total_tokens"] - found["tokens"]) / speed
    if "loss" in numbers:
        found["loss"] = numbers["loss"][1]
    if at_work and beat.get("doing"):
        found["doing"] = beat["doing"]
    return found


def last_checkpoint(folder: Path) -> Found:
    """The newest checkpoint in a folder: step, age in seconds, bytes, ranks; empty without one."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if not re.fullmatch(r"step-\d{9}", path.name):
            continue
        about = _json(path / "checkpoint.json")
        if about is None:
            continue
        with contextlib.suppress(FileNotFoundError):  # the training deletes it at this moment
            written = (path / "checkpoint.json").stat().st_mtime
            return {
                "step": about.get("step"),
                "age_seconds": max(0.0, time.time() - written),
                "bytes": sum(size for size, _ in about.get("files", {}).values()),
                "world_size": about.get("world_size"),
                "zero_stage": about.get("zero_stage"),
            }
    return {}


def last_numbers(path: Path) -> dict[str, tuple[int, float]]:
    """The last value of each metric of a journal, with its step; those of the machine's load are left out."""
    found: dict[str, tuple[int, float]] = {}
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as handle:
        handle.seek(max(0, os.fstat(handle.fileno()).st_size - TAIL))
        for raw in handle:
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):  # half a line, at either end
                line = json.loads(raw)
                if line["step"] is not None:
                    found |= {name: (line["step"], value) for name, value in line["metrics"].items()}
    return {name: value for name, value in found.items() if not name.startswith("system/")}


def _json(path: Path) -> Found | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
