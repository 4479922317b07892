"""Files that are either whole or not there: temporary name, sync, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.errors import EnvironmentFault

TEMPORARY = ".tmp"  # suffix of a file that is being written; whatever bears it may be deleted


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission at `path` into one clear line.

    Raises: EnvironmentFault naming the path and the remedy.
    """
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise EnvironmentFault(
                f"{path}: the disk is full; free some space (or set workdir=… to a larger disk) "
                "and give the same command again, it continues"
            ) from error
        if number == errno.EFBIG:
            raise EnvironmentFault(
                f"{path}: larger than a file may be here; raise `ulimit -f`, or set workdir=… to another file system"
            ) from error
        if number in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise EnvironmentFault(
                f"{path}: not writable ({os.strerror(number)}); set workdir=… to a writable folder"
            ) from error
        raise


def _error_number(error: Exception) -> int:
    """The operating system's number of an error; 0 for others. Libraries in Rust (safetensors, tokenizers) state it in
    the message of an error of their own."""
    if isinstance(error, OSError):
        return error.errno or 0
    stated = re.search(r"\(os error (\d+)\)", str(error))
    return int(stated[1]) if stated else 0


def sync_directory(directory: Path) -> None:
    """Make renames inside `directory` survive a power cut."""
    sync_file(directory)


def sync_file(path: Path) -> None:
    """Make a file that another library wrote survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_folder(temporary: Path, folder: Path) -> list[Path]:
    """Sync all files of a folder that libraries wrote and rename it. Returns their paths there, in order."""
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    for path in files:
        sync_file(path)
    sync_directory(temporary)
    temporary.rename(folder)
    sync_directory(folder.parent)
    return [folder / path.relative_to(temporary) for path in files]


def own_temporary(path: Path) -> Path:
    """A temporary name that no other process chooses, on whatever machine: for files that two may write at once."""
    return path.with_name(f"{path.name}.{secrets.token_hex(6)}{TEMPORARY}")


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb", own: bool = False) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success sync it and rename it to `path`.

    own: under a name of its own, where another process may be writing the same content at the same time; whoever
    holds the folder alone deletes what killed ones left. On any error the temporary file is removed and `path` is
    left as it was. Raises: EnvironmentFault when the disk is full or not writable.
    """
    temporary = own_temporary(path) if own else path.with_name(path.name + TEMPORARY)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        os.replace(temporary, path)
        sync_directory(path.parent)


def write_text(path: Path, text: str, own: bool = False) -> None:
    """Write `text` to `path` atomically, in UTF-8. own: as in `atomic_write`."""
    with atomic_write(path, "w", own) as handle:
        handle.write(text)


def write_json(path: Path, value: Any, own: bool = False) -> None:
    """Write `value` to `path` atomically, as indented JSON that people can read. own: as in `atomic_write`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", own)


class Hashed:
    """A file that is written front to back, checksummed on the way. position: bytes written."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle, self.position = handle, 0
        self._digest = hashlib.sha256()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write all of `data`."""
        self._digest.update(data)
        self.handle.write(data)
        self.position += len(data)
        return len(data)

    def tell(self) -> int:
        return self.position

    def flush(self) -> None:
        self.handle.flush()

    def pad(self, multiple: int) -> None:
        """Zeros up to a multiple of so many bytes."""
        self.write(bytes(-self.position % multiple))

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def sha256_file(path: Path) -> str:
    """Checksum of a file's content, in constant memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """A short, stable name of a JSON-like value: equal values give equal fingerprints."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]
