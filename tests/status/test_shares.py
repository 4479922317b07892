"""What `pipeline status` says of job arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.locks import hold
from pipeline.status.shares import read_shares, state_of, task_names


def line(stage: str, status: int | None = None, job: str = "7", why: str = "") -> dict[str, Any]:
    """A line of logs/jobs.jsonl: a start, or an end with `status`."""
    made = {"time": "2026-11-22T01:02:03+00:00", "stage": stage, "event": "start", "job": job, "hosts": "node1"}
    return made if status is None else {**made, "event": "end", "status": status, "why": why}


@pytest.mark.parametrize(
    ("ends", "state"),
    [
        ((line("shard.task-1", 0),), "at work"),  # task 0 has not ended
        ((line("shard.task-0", 0), line("shard.task-1", 0)), "half done"),
        ((line("shard.task-0", 75), line("shard.task-1", 0)), "stopped"),
        ((line("shard.task-0", 75), line("shard.task-1", 2, why="no such file")), "failed"),
        ((line("shard.task-0", 0), line("shard.task-1", 0), line("shard.decide")), "at work"),
        ((line("shard.task-0", 2), line("shard.task-1", 0), line("shard.task-0", job="9")), "killed"),
    ],
)
def test_the_state_of_a_stage_follows_from_its_tasks(
    tmp_path: Path, ends: tuple[dict[str, Any], ...], state: str
) -> None:
    jobs = [line("shard.task-0"), line("shard.task-1"), line("tokenize.task-0", 2), *ends]
    found = state_of(read_shares(tmp_path, "shard", jobs, {"7"}))
    assert found["state"] == state
    if state == "failed":
        assert found["why"] == "task 1: no such file"


def test_without_slurm_the_lock_tells(tmp_path: Path) -> None:
    jobs = [line("shard.task-0", job="")]
    assert read_shares(tmp_path, "shard", jobs, set())["killed"] == ["0"]
    with hold(tmp_path, "shard", shared=True):
        assert read_shares(tmp_path, "shard", jobs, set())["at_work"] == ["0"]
        assert read_shares(tmp_path, "shard", [line("shard.task-0")], None)["at_work"] == ["0"]  # no queue to ask
        assert read_shares(tmp_path, "shard", [line("shard.task-0")], set())["killed"] == ["0"]


def test_the_plain_command_comes_after_its_tasks(tmp_path: Path) -> None:
    assert read_shares(tmp_path, "shard", [line("shard.task-0", 0), line("shard")], set()) == {}


def test_names() -> None:
    assert task_names(["decide"]) == "the decision"
    assert task_names(["3"]) == "task 3"
    assert task_names([str(number) for number in range(12)]) == "tasks 0, 1, 2, 3, 4, 5, 6, 7 and 4 more"
