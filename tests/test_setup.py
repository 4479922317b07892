"""What tools/quickstart says on a machine that lacks what it needs: one line that says what to do, status 2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import PROJECT

NEEDED = (
    "bash",
    "env",
    "dirname",
    "readlink",
    "cat",
    "sha256sum",
    "flock",
    "df",
    "awk",
    "rm",
    "rmdir",
    "mkdir",
    "touch",
)
NEEDED += ("grep", "tail", "head")


def checkout(folder: Path) -> Path:
    """What set-up reads, in a folder whose name has a space."""
    place = folder / "head water"
    shutil.copytree(PROJECT / "tools", place / "tools", ignore=shutil.ignore_patterns("bench", "__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", place)
    return place


def programs(folder: Path, **python: str) -> Path:
    """A PATH with the system's small programs, no compiler, and the Pythons that are named (name=script)."""
    folder.mkdir()
    for name in NEEDED:
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    for name, script in python.items():
        (folder / name).write_text(script, encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def quickstart(place: Path, path: Path, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [place / "tools" / "quickstart"],
        env={"PATH": str(path), "HOME": str(place), **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    return done.returncode, done.stderr


def real_python(before: str = "") -> str:
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return f'#!/bin/sh\n{before}\nexec "{base if base.exists() else sys.executable}" "$@"\n'


def errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error:")]


def test_no_python(tmp_path: Path) -> None:
    status, said = quickstart(checkout(tmp_path), programs(tmp_path / "bin"))
    assert status == 2
    assert said.splitlines() == errors(said)
    assert "no Python 3.10 to 3.13 found" in said
    assert "apt-get install python3" in said


def test_a_python_too_old_is_no_python(tmp_path: Path) -> None:
    old = '#!/bin/sh\ncase "$2" in *version_info*) exit 1;; esac\nexit 0\n'
    status, said = quickstart(checkout(tmp_path), programs(tmp_path / "bin", python3=old))
    assert (status, len(errors(said))) == (2, 1)
    assert "no Python 3.10 to 3.13 found" in said


def test_python_without_its_venv_module(tmp_path: Path) -> None:
    lacking = real_python('case "$2" in *ensurepip*) exit 1;; esac')
    status, said = quickstart(checkout(tmp_path), programs(tmp_path / "bin", python3=lacking))
    assert (status, len(errors(said))) == (2, 1)
    assert "apt-get install python3-venv" in said


def test_packages_that_cannot_be_had(tmp_path: Path) -> None:
    place, path = checkout(tmp_path), programs(tmp_path / "bin", python3=real_python())
    nowhere = {
        "PIP_INDEX_URL": "http://127.0.0.1:9",
        "PIP_FIND_LINKS": "",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": os.devnull,
    }
    status, said = quickstart(place, path, **nowhere)
    assert (status, len(errors(said))) == (2, 1)
    assert "could not be installed" in said
    assert "check the network and give the same command again" in said
    assert (place / ".venv" / "install.log").is_file()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs to mount a small disk (root)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_no_room(small_disk: Path, tmp_path: Path) -> None:
    status, said = quickstart(checkout(small_disk), programs(tmp_path / "bin", python3=real_python()))
    assert (status, len(errors(said))) == (2, 1)
    assert "GiB of disk are free" in said
    assert "free some space" in said
