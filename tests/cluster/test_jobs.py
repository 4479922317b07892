"""jobs.jsonl: one line at each start and end of a stage, whatever the end."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pipeline.cluster.jobs import hosts, launch_id, read_jobs, recorded
from pipeline.cluster.ranks import Ranks
from pipeline.errors import DataError, Fenced, Stopped


@pytest.fixture(autouse=True)
def no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_JOB_NODELIST", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (Stopped("time is up"), (75, "time is up")),
        (DataError("x.tar: truncated"), (2, "x.tar: truncated")),
        (Fenced("another has it"), (2, "another has it")),
        (KeyboardInterrupt(), (130, "Ctrl-C")),
        (SystemExit(75), (75, "stopped early")),
        (ZeroDivisionError("by zero"), (1, "ZeroDivisionError: by zero")),
    ],
)
def test_how_a_stage_ended(tmp_path: Path, error: BaseException, ended: tuple[int, str]) -> None:
    with pytest.raises(type(error)), recorded(tmp_path, "pretrain", None):
        raise error
    start, end = read_jobs(tmp_path)
    assert (start["event"], end["event"]) == ("start", "end")
    assert (end["status"], end["why"]) == ended


def test_who_works_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(tmp_path, "shard", None):
        pass
    (tmp_path / "jobs.jsonl").open("a").write('{"time": "half a line')
    for name, value in {"JOB_ID": "17", "RESTART_COUNT": "2", "JOB_NODELIST": "gpu[07-09]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with recorded(tmp_path, "pretrain", Ranks(0, 24, 0, 8, "srun")):
        pass
    first, _, second, last = read_jobs(tmp_path)
    assert (first["job"], first["hosts"], first["world_size"]) == ("", socket.gethostname(), 1)
    assert (second["job"], second["restart"], second["hosts"]) == ("17", 2, "gpu[07-09]")
    assert (second["world_size"], second["launcher"], last["status"]) == (24, "srun", 0)


def test_where_a_step_runs_wins_over_where_its_job_does() -> None:
    assert hosts({"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_STEP_NODELIST": "n1"}) == "n1"


def test_all_ranks_of_a_launch_have_its_name_and_another_start_has_another() -> None:
    slurm = {"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0"}
    first, second = (Ranks(rank, 2, rank, 2, "srun", "node1", 20017) for rank in (0, 1))
    assert launch_id(first, slurm) == launch_id(second, {**slurm, "SLURM_PROCID": "1"})
    assert launch_id(first, slurm) != launch_id(first, {**slurm, "SLURM_RESTART_COUNT": "1"})
    local = [Ranks(0, 2, 0, 2, "local", "127.0.0.1", port) for port in (1, 2)]
    assert launch_id(local[0], {}) != launch_id(local[1], {})
    assert launch_id(None) == ""
