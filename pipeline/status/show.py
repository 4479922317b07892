"""`pipeline status`: a run in words, in 80 columns."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from pipeline.recipe import Recipe
from pipeline.run import duration
from pipeline.status.read import open_run, read_run
from pipeline.status.shares import task_names

WIDTH = 80
LABEL = 14  # columns of a label
SECONDS = 5.0  # between two looks with --watch
OPEN = ("at work", "stopped", "failed", "killed", "half done")  # states of which more is told


def status_command(recipe: Recipe | None, workdir: Path, as_json: bool, watch: bool) -> None:
    """Print what a run is doing; with `watch` again and again, until Ctrl-C.

    Raises: DataError when there is no run.
    """
    while True:
        found = read_run(open_run(recipe, workdir))
        text = json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n".join(lines(found))
        if watch and not as_json:
            click.clear()
        click.echo(text)
        if not watch:
            return
        try:
            time.sleep(SECONDS)
        except KeyboardInterrupt:
            return


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The run, stage by stage, then more about those that are not done, the queue, and where MLflow shows it."""
    yield from _wrapped(f"{_when(found['time'])}  {found['name']}: {found['workdir']}", "  ")
    for stage in found["stages"]:
        yield from _wrapped(f"  {stage['name']:<20} {stage['state']:<10} {_short(stage)}".rstrip(), " " * 34)
    for stage in found["stages"]:
        if stage["state"] in OPEN:
            yield ""
            yield f"{stage['name']}: {stage['state']}"
            for label, value in _details(stage):
                yield from _labelled(label, value)
            for event in stage.get("events", []):
                yield from _event(event)
    yield ""
    if found["queue"] is not None:
        if not found["queue"]:
            yield from _labelled("queue", "no job of this run waits or runs")
        for job in sorted(found["queue"], key=lambda job: job["state"] == "PENDING"):  # those that wait come last
            nodes = f"{job['nodes']} node{'s' * (job['nodes'] != '1')}"
            told = f"{job['job']} {job['name']}  {job['state'].lower()} {job['time']}  {nodes}  {job['reason']}"
            yield from _labelled("queue", told)
    if found["mlflow"]:
        yield from _labelled("MLflow", f"{found['mlflow'].get('uri')}, run {found['mlflow'].get('run_id')}")


def _short(stage: dict[str, Any]) -> str:
    """What stands beside a stage's state."""
    if stage["state"] == "done":
        return f"{size(stage['bytes'])}, {duration(stage['seconds'])}, {_when(stage['finished'])}"
    progress = stage.get("progress")
    if progress and progress.get("steps"):
        return f"{progress['step'] / progress['steps']:.0%}"
    return ""


def _details(stage: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if stage.get("why"):
        yield "who" if stage["state"] == "at work" else "why", stage["why"]
    if "last_seen" in stage:
        yield "last seen", _when(stage["last_seen"])
    if tasks := stage.get("tasks"):
        yield from _tasks(tasks)
    elif start := stage.get("last_start"):
        jobs = f"job{'s' * (len(stage['jobs']) > 1)} {', '.join(stage['jobs'])}, " if stage["jobs"] else ""
        again = stage["starts"] - 1
        restarts = f"restarted {again} time{'s' * (again != 1)}, last" if again else "began"
        yield "started", f"{jobs}{restarts} {_when(start['time'])}"
        ranks = start["world_size"]
        yield "where", f"{start['hosts']}, {ranks} rank{'s' * (ranks != 1)} ({start['launcher']})"
    if progress := stage.get("progress"):
        yield from _progress(progress)
    if checkpoint := stage.get("checkpoint"):
        age = duration(checkpoint["age_seconds"])
        yield "checkpoint", f"step {checkpoint['step']:,}, {age} old, {size(checkpoint['bytes'])}"
    if validation := stage.get("validation"):
        numbers = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in validation.items() if name != "step"]
        yield "held-out", f"{', '.join(numbers)} (step {validation['step']:,})"


def _tasks(tasks: dict[str, Any]) -> Iterator[tuple[str, str]]:
    words = {"at_work": "at work", "ended": "done", "stopped": "stopped", "failed": "failed", "killed": "killed"}
    kinds = [f"{task_names(list(tasks[name]))} {word}" for name, word in words.items() if tasks[name]]
    yield "tasks", "; ".join(kinds)
    yield "last", f"{_when(tasks['last']['time'])}, on {tasks['last']['hosts']}"


def _progress(progress: dict[str, Any]) -> Iterator[tuple[str, str]]:
    steps, tokens, total = progress.get("steps"), progress.get("tokens"), progress.get("total_tokens")
    told = f"step {progress['step']:,}" + (f" of {steps:,}" if steps else "")
    if tokens is not None:
        share = f" of {count(total)} ({tokens / total:.1%})" if total else ""
        told = f"{count(tokens)}{share} tokens, {told}"
    yield "progress", told
    if speed := progress.get("tokens_per_second"):
        left = progress.get("seconds_left")
        yield "speed", f"{count(speed)} tokens/s" + (f", {duration(left)} left" if left is not None else "")
    if progress.get("loss") is not None:
        yield "loss", f"{progress['loss']:.4g}"
    if progress.get("doing", "step") != "step":
        yield "now", progress["doing"]


def _event(event: dict[str, Any]) -> Iterator[str]:
    known = ("time", "kind", "step")
    words = ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in event.items()
        if name not in known
    )
    text = f"{_when(event.get('time', ''))}  {event['kind'].replace('_', ' ')}, step {event.get('step', 0):,}"
    yield from _labelled("event", f"{text}{': ' * bool(words)}{words}")


def count(number: float) -> str:
    """`950`, `12.3 k`, `4.9 M`, `1.2 G`."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.3g}"


def size(number: float) -> str:
    """Bytes as a person says them."""
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _when(text: str) -> str:
    """A time in UTC as this machine's people read it, to the second."""
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return text


def _labelled(label: str, value: str) -> Iterator[str]:
    return _wrapped(f"  {label:<{LABEL}}{value}", " " * (LABEL + 2))


def _wrapped(text: str, indent: str) -> Iterator[str]:
    yield from textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [
        ""
    ]
