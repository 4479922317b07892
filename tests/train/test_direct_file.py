"""Bytes in, the same bytes on the disk: whatever the file system takes, however they are cut."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from pipeline.train import direct_file
from pipeline.train.direct_file import DirectFile

BLOCK = direct_file.BLOCK


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder on a disk, and one of a file system in memory, which may take no direct writes."""
    if request.param == "disk":
        return tmp_path
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        pytest.skip("no /dev/shm here")
    path = shared / f"headwater-{os.getpid()}-{tmp_path.name}"
    path.mkdir()
    request.addfinalizer(lambda: [*map(Path.unlink, path.iterdir()), path.rmdir()])
    return path


@pytest.mark.parametrize("size", [0, 1, 4096, BLOCK, BLOCK + 1, 2 * BLOCK + 4097])
def test_all_bytes_are_there(folder: Path, size: int) -> None:
    data, cuts, done = random.Random(size).randbytes(size), random.Random(1), 0
    with DirectFile(folder / "file") as file:
        while done < size:
            taken = cuts.randrange(1, BLOCK)
            file.write(memoryview(data)[done : done + taken])
            done += taken
    assert file.size == size
    assert (folder / "file").read_bytes() == data


def test_what_was_there_is_gone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10_000))
    with DirectFile(tmp_path / "file") as file:
        file.write(b"short")
    assert (tmp_path / "file").read_bytes() == b"short"


def test_a_file_system_that_refuses_only_at_the_first_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, data, calls = os.write, random.Random(2).randbytes(BLOCK + 5), []

    def refuse_direct(number: int, part: memoryview) -> int:
        calls.append(len(part))
        if len(calls) == 1:
            raise OSError(22, "Invalid argument")
        return write(number, part[:100_001])  # and takes odd parts at a time

    monkeypatch.setattr(os, "write", refuse_direct)
    with DirectFile(tmp_path / "file") as file:
        file.write(data)
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == data


def test_a_full_disk_is_an_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left"), DirectFile(Path("/dev/full")) as file:
        file.write(bytes(100))
