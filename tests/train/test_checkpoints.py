"""Checkpoint folders: which is the newest whole one, what is kept, what a damaged one says; saves that fail."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_task import AccidentalTask, TinyTask, run, settings

from pipeline.cluster.ranks import ALONE
from pipeline.errors import DataError, EnvironmentFault, Fenced, Stopped
from pipeline.owner import Fence
from pipeline.tracking import Tracker
from pipeline.train.audit import events
from pipeline.train.checkpoint_files import (
    DESCRIPTION,
    POINTER,
    describe,
    every,
    index_of,
    latest,
    path_of,
    prune,
    step_of,
    weights,
    write_weights,
)
from pipeline.train.checkpoints import leave_receipt
from pipeline.train.loop import train
from pipeline.train.task import TrainResult


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps with a checkpoint after each second one."""
    folder = tmp_path_factory.mktemp("trained")
    run(folder, checkpoint_steps=2, keep_checkpoints=4)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def steps(folder: Path) -> list[int]:
    return [step_of(path) for path in every(folder)]


def test_what_lies_in_a_checkpoint(trained: Path) -> None:
    found = latest(trained)
    assert found is not None
    path, saved, wrong = found
    assert (path.name, saved.step, saved.world_size, saved.zero_stage, wrong) == ("step-000000008", 8, 1, 1, [])
    assert sorted(file.name for file in path.iterdir()) == sorted([DESCRIPTION, *saved.files])
    assert (trained / POINTER).read_text().strip() == path.name
    assert not list(trained.glob("*.tmp"))
    model = dict(TinyTask().model.named_parameters())
    found_weights = dict(weights(path))
    assert {name: tensor.shape for name, tensor in found_weights.items()} == {
        name: tensor.shape for name, tensor in model.items()
    }


def test_weights_in_one_file_are_the_weights(trained: Path, tmp_path: Path) -> None:
    path = every(trained)[-1]
    write_weights(path, tmp_path / "weights.safetensors")
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        for name, tensor in weights(path):
            assert torch.equal(file.get_tensor(name), tensor)


@pytest.mark.parametrize(
    "damage", ["missing", "short", "flipped", "no description", "half a description", "wrong type", "other format"]
)
def test_damaged_ones_are_passed_over(folder: Path, damage: str) -> None:
    path = path_of(folder, 8)
    file, description = path / "rank-00000-000.safetensors", path / DESCRIPTION
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "short":
        file.write_bytes(content[:-1])
    elif damage == "flipped":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no description":
        description.unlink()
    elif damage == "half a description":
        description.write_text(description.read_text()[:40])
    elif damage == "wrong type":
        description.write_text(json.dumps({"step": 2, "files": [], "format": 3}))
    else:
        description.write_text(description.read_text().replace('"format": 3', '"format": 1'))
    with pytest.raises(DataError, match="step-000000008"):
        describe(path)
    found = latest(folder)
    assert found is not None
    assert found[1].step == 6
    assert len(found[2]) == 1 and "step-000000008" in found[2][0]


def test_when_all_are_damaged_nothing_begins_anew_by_itself(folder: Path) -> None:
    for path in every(folder):
        (path / "index.json").unlink()
    with pytest.raises(
        DataError, match=r"no checkpoint is whole, the newest one: .*step-000000008/index.json: missing"
    ):
        latest(folder)
    for path in every(folder):
        shutil.rmtree(path)
    assert latest(folder) is None


def test_a_damaged_one_is_told_and_made_again(folder: Path, trained: Path) -> None:
    file = path_of(folder, 8) / "rank-00000-000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    result = run(folder, checkpoint_steps=3, keep_checkpoints=1)
    told = [event for event in events(folder) if event["kind"] == "damaged"]
    assert len(told) == 1 and "should be" in told[0]["why"]
    assert steps(folder) == [8]
    whole = dict(weights(path_of(trained, 8)))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(result.checkpoint))


def test_what_is_being_written_does_not_count(tmp_path: Path) -> None:
    for name in ("step-000000001", "step-000000002.abc.tmp", "step-000000003.def.tmp"):
        (tmp_path / name).mkdir()
    assert steps(tmp_path) == [1]
    prune(tmp_path, keep=1, token="abc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001", "step-000000002.abc.tmp"]
    prune(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


@pytest.mark.parametrize(
    ("keep", "keep_every", "newest", "expected"),
    [
        (2, 0, 90, [80, 90]),
        (1, 0, 70, [70]),  # 80 and 90 are of a history that was left: they must not push out the good one
        (1, 50, 90, [50, 90]),
        (1, 30, 90, [40, 70, 90]),  # 30 and 60 are not there: the first after them
        (9, 0, 90, [20, 40, 50, 70, 80, 90]),
    ],
)
def test_prune(tmp_path: Path, keep: int, keep_every: int, newest: int, expected: list[int]) -> None:
    for step in (20, 40, 50, 70, 80, 90):
        path_of(tmp_path, step).mkdir()
    for _ in range(2):  # what is kept for good is chosen again the next time
        prune(tmp_path, keep, keep_every, newest)
        assert steps(tmp_path) == expected


def test_saving_does_not_change_the_losses(trained: Path, tmp_path: Path) -> None:
    def losses(folder: Path) -> list[float]:
        lines = (folder / "losses.jsonl").read_text(encoding="utf-8").splitlines()
        return [record["loss"] for record in map(json.loads, lines) if "loss" in record]

    run(tmp_path, checkpoint_steps=0)
    assert losses(tmp_path) == losses(trained)


Usage = namedtuple("Usage", "total used free")


def test_no_room_is_told_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: the training goes on, and only the last save must succeed."""
    free = [70_000_000]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free[0]))
    task = AccidentalTask(8, 4, "SIGTERM")
    with pytest.raises(Stopped):
        run(tmp_path, task)
    assert steps(tmp_path) == [3, 5]
    free[0] = 1000
    with pytest.raises(EnvironmentFault, match=r"no room for the checkpoint of step 8: it needs .* free .* more"):
        run(tmp_path)
    assert steps(tmp_path) == [3, 5]
    assert [event["step"] for event in events(tmp_path) if event["kind"] == "save_failed"] == [6, 8]


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files cannot grow beyond 100 kB, as if the disk were full: a checkpoint does not fit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_a_write_that_fails_leaves_the_last_good_one(folder: Path, small_files: None) -> None:
    before = {path.name: describe(path) for path in every(folder)}
    with pytest.raises(EnvironmentFault, match=r"step-000000012.*: larger than a file may be here"):
        run(folder, TinyTask(steps=12), checkpoint_steps=2, keep_checkpoints=4)
    assert {path.name: describe(path) for path in every(folder)} == before
    assert not list(folder.glob("*.tmp"))
    assert [event["step"] for event in events(folder) if event["kind"] == "save_failed"] == [10, 12]


def test_a_ghost_of_another_start_cannot_mix_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its temporary folder bears another token, and is gone before room is looked for."""
    ghost = tmp_path / "step-000000003.00000000.tmp"
    ghost.mkdir(parents=True)
    (ghost / "rank-00000-000.safetensors").write_bytes(b"of another time")
    half = tmp_path / "losses.jsonl.0000.tmp"
    half.write_text("")
    there: list[bool] = []
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: there.append(ghost.exists()) or usage(path))
    result: TrainResult = run(tmp_path)
    assert there and not any(there)
    assert not half.exists()
    assert describe(result.checkpoint).step == 8


class Overtaken(Fence):
    """Another command takes the run over while a checkpoint is being written."""

    def check(self, within: float = 0.0) -> None:
        if not within:
            raise Fenced("the run belongs to another command now")


def test_nothing_is_committed_by_a_command_that_was_overtaken(tmp_path: Path) -> None:
    with pytest.raises(Fenced, match="belongs to another command"):
        train(TinyTask(), settings(), tmp_path, 1, ALONE, Tracker(), Overtaken())
    assert not every(tmp_path)


def test_a_ghost_deletes_nothing_of_its_successor(tmp_path: Path) -> None:
    """It was stopped after its own commit, and goes on when later checkpoints are there."""
    for step in (10, 20, 30, 40):
        path_of(tmp_path, step).mkdir()
    asked: list[int] = []

    def fence() -> None:
        asked.append(len(asked))
        if len(asked) > 2:
            raise Fenced("the run belongs to another command now")

    with pytest.raises(Fenced):
        prune(tmp_path, keep=1, newest=20, fence=fence)
    assert steps(tmp_path) == [10, 20, 40]


def test_a_receipt_is_the_last_touch_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 may find it, commit, and rename the folder before the rank that left it goes on."""
    folder, rename = tmp_path / "step-000000003.0.tmp", os.rename
    folder.mkdir()

    def and_rank_0_commits(source: Path, target: Path) -> None:
        rename(source, target)
        rename(folder, tmp_path / "step-000000003")

    monkeypatch.setattr(os, "rename", and_rank_0_commits)
    leave_receipt(folder / "rank-00001.receipt.json", ({"a.safetensors": (3, "0")}, [["w", "", 0, 1, "a", "F32"]]))
    assert [path.name for path in (tmp_path / "step-000000003").iterdir()] == ["rank-00001.receipt.json"]


def test_what_nobody_wrote_is_a_fault() -> None:
    line = ["a", "weight", 0, 5, "file", "F32"]
    assert index_of({"a": [5]}, {}, [line])["a"]["states"] == {"weight": [[0, 5, "file", "F32"]]}
    with pytest.raises(Exception, match="of weight of a, 6 elements, 5 were written"):
        index_of({"a": [2, 3]}, {}, [line])
    with pytest.raises(Exception, match="no rank has written b"):
        index_of({"a": [5], "b": [1]}, {}, [line])
