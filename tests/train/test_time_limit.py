"""A training stops by itself in time to save, whatever sets the limit and whatever the clock says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_task import Batch, TinyTask, run

from pipeline.errors import Stopped
from pipeline.train.audit import events
from pipeline.train.time_limit import LEAST, TimeLimit, read_left, time_left


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1-02:03:04   \n", 93_784.0),
        ("2:03:04", 7_384.0),
        ("3:04", 184.0),
        ("0:00", 0.0),
        ("UNLIMITED", None),
        ("NOT_SET", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_slurms_form(text: str, seconds: float | None) -> None:
    assert read_left(text) == seconds


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.train.time_limit.PATIENCE", 300.0)  # of a busy machine


def squeue(folder: Path, answer: str) -> dict[str, str]:
    """The environment of a job for which `squeue` says this."""
    folder.mkdir(exist_ok=True)
    program = folder / "squeue"
    program.write_text(f'#!/bin/sh\n[ "$3" = 77 ] && {answer}\n')
    program.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "77"}


def test_the_nearer_limit_counts(tmp_path: Path) -> None:
    environment = squeue(tmp_path, "echo 1:00:00")
    assert time_left(None, environment) == (3600.0, "the time limit of the Slurm job")
    assert time_left(0.5, environment) == (1800.0, "max_hours")
    assert time_left(2.0, environment) == (3600.0, "the time limit of the Slurm job")
    assert time_left(None, {}) == (None, "")


@pytest.mark.parametrize("answer", ["exit 1", "echo UNLIMITED"])
def test_without_an_answer_the_jobs_environment_counts(tmp_path: Path, answer: str) -> None:
    environment = squeue(tmp_path, answer)
    assert time_left(None, environment)[0] is None
    end = int(time.time()) + 10_000
    left, _ = time_left(None, {**environment, "SLURM_JOB_END_TIME": str(end)})
    assert left is not None and end - time.time() <= left <= 10_000


def test_an_element_of_an_array_asks_for_its_own_time(tmp_path: Path) -> None:
    """The last one bears the number of all, for which squeue has a line each."""
    environment = squeue(tmp_path, "echo 1:00:00") | {"SLURM_JOB_ID": "70"}
    assert time_left(None, environment)[0] is None
    program = tmp_path / "squeue"
    program.write_text(program.read_text().replace("= 77", "= 70_7"))
    array = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "7"}
    assert time_left(None, environment | array)[0] == 3600.0


def test_without_squeue(tmp_path: Path) -> None:
    assert time_left(None, {"PATH": str(tmp_path), "SLURM_JOB_ID": "77"})[0] is None


def test_the_margin_is_learnt() -> None:
    limit = TimeLimit(1000.0, "", checkpoint_bytes=4e9)
    assert limit.margin == 80.0  # 40 s at 100 MB/s, twice
    limit.saved(10.0)
    assert limit.margin == LEAST
    limit.stepped(30.0)
    limit.stepped(1.0)
    assert 75.0 < limit.margin <= 80.0
    assert not limit.reached()
    assert TimeLimit(70.0, "", checkpoint_bytes=4e9).reached()
    assert not TimeLimit(None, "", checkpoint_bytes=4e9).reached()


class ClockSet(TinyTask):
    """Somebody sets the clock of the machine while step 3 is made ready."""

    def __init__(self, patch: pytest.MonkeyPatch, by: float) -> None:
        super().__init__()
        self.patch, self.by, self.real = patch, by, time.time

    def batch(self, sequences: Sequence[int]) -> Batch:
        if sequences[0] == 18:
            self.patch.setattr(time, "time", lambda: self.real() + self.by)
        return super().batch(sequences)


def test_stops_saves_and_continues(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match=r"stopped after step 1 of 8 \(max_hours\)"):
        run(tmp_path, max_hours=1 / 3600)
    assert [event["step"] for event in events(tmp_path) if event["kind"] in ("saved", "stopped")] == [1, 1]
    assert run(tmp_path).losses == run(tmp_path / "whole").losses


@pytest.mark.parametrize("days", [-400, 400])
def test_a_clock_that_is_set_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    result = run(tmp_path, ClockSet(monkeypatch, 86_400.0 * days), max_hours=1.0, checkpoint_minutes=60.0)
    assert result.steps == 8
    monkeypatch.undo()
    assert result.losses == run(tmp_path / "whole").losses
