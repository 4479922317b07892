"""Which files an import names, without opening them."""

from __future__ import annotations

from pathlib import Path

from pipeline.corpus.locations import find_files
from pipeline.files import fingerprint
from pipeline.settings.tokens import TokenImport

_SUFFIXES = {"megatron": (".bin", ".idx"), "npy": (".npy",), "raw": ("",)}  # that a folder is searched for


def import_files(one: TokenImport) -> list[Path]:
    """The files of an import, by name; of Megatron's pairs the .bin.

    Raises: DataError when there is none.
    """
    pattern = one.path
    if one.format == "megatron" and not Path(pattern).exists() and Path(f"{pattern}.bin").is_file():
        pattern = f"{pattern}.bin"
    found = [Path(item.path) for item in find_files(pattern, _SUFFIXES[one.format])]
    return sorted({path.with_suffix(".bin") for path in found}) if one.format == "megatron" else found


def import_fingerprint(one: TokenImport) -> str:
    """Names, sizes and times of the files of an import. Raises: DataError when there is none."""
    files = import_files(one)
    files += [index for path in files if (index := path.with_suffix(".idx")).is_file() and one.format == "megatron"]
    found = [(path, path.stat()) for path in files if path.is_file()]  # what lacks its other half is told when read
    return fingerprint([[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in found])
