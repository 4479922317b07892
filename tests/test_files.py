"""Files are whole or not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import EnvironmentFault
from pipeline.files import TEMPORARY, atomic_write, disk_errors, fingerprint, sha256_file, write_json, write_text


def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_write(path, "w") as handle:
        handle.write("new")
        raise ZeroDivisionError
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    program = (
        "import os, signal, sys; from pathlib import Path; from pipeline.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as handle:\n"
        "    handle.write(b'new'); handle.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode < 0
    assert path.read_text(encoding="utf-8") == "old"
    write_text(path, "newer")
    assert sorted(os.listdir(tmp_path)) == ["a.txt"]
    assert path.name + TEMPORARY not in os.listdir(tmp_path)


def test_folders_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b" / "c.json", {"text": "字"})
    assert (tmp_path / "a" / "b" / "c.json").read_text(encoding="utf-8") == '{\n  "text": "字"\n}\n'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_line() -> None:
    full = pytest.raises(EnvironmentFault, match="/runs/demo: the disk is full; free some space")
    with full, disk_errors(Path("/runs/demo")), open("/dev/full", "wb", buffering=0) as handle:
        handle.write(b"x")


def test_a_place_that_cannot_be_written_is_named() -> None:
    with pytest.raises(EnvironmentFault, match="/proc/version: not writable"), disk_errors(Path("/proc/version")):
        raise PermissionError(13, "Permission denied")


def test_checksum_and_fingerprint(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert fingerprint({"a": 1, "b": [2, "字"]}) == fingerprint({"b": [2, "字"], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
