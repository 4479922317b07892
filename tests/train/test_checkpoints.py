"""Checkpoint folders: which is the newest whole one, what is kept, what a damaged one says."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.files import sha256_file, write_json
from pipeline.train.checkpoints import DESCRIPTION, Checkpoint, describe, every, latest, path_of, prune


def make(folder: Path, step: int) -> Path:
    """A committed checkpoint with one file."""
    path = path_of(folder, step)
    (path / "state").mkdir(parents=True)
    file = path / "state" / "weights.pt"
    file.write_bytes(f"weights of step {step}".encode())
    about = Checkpoint(
        step, "data", 2, 1, "torch.float32", "order", {"state/weights.pt": (file.stat().st_size, sha256_file(file))}
    )
    write_json(path / DESCRIPTION, asdict(about))
    return path


def test_the_newest_wins(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    for step in (3, 20, 100):
        make(tmp_path, step)
    found = latest(tmp_path)
    assert found is not None
    assert (found[0].name, found[1].step, found[1].world_size) == ("step-000000100", 100, 2)


@pytest.mark.parametrize(
    "damage", ["missing", "short", "flipped", "no description", "half a description", "wrong type"]
)
def test_damaged_ones_are_passed_over(tmp_path: Path, damage: str) -> None:
    make(tmp_path, 1)
    path = make(tmp_path, 2)
    file, description = path / "state" / "weights.pt", path / DESCRIPTION
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "short":
        file.write_bytes(content[:-1])
    elif damage == "flipped":
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "no description":
        description.unlink()
    elif damage == "half a description":
        description.write_text(description.read_text()[:40])
    else:
        description.write_text(json.dumps({"step": 2, "files": []}))
    with pytest.raises(DataError, match="step-000000002"):
        describe(path)
    found = latest(tmp_path)
    assert found is not None
    assert found[1].step == 1


def test_what_is_being_written_does_not_count(tmp_path: Path) -> None:
    make(tmp_path, 1)
    (tmp_path / "step-000000002.tmp").mkdir()
    assert [path.name for path in every(tmp_path)] == ["step-000000001"]
    prune(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in range(1, 6):
        make(tmp_path, step)
    prune(tmp_path, keep=2)
    assert [path.name for path in every(tmp_path)] == ["step-000000004", "step-000000005"]
