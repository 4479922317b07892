"""Where files are: a path, a folder or a glob pattern, on this machine or remote through fsspec.

Light imports only, as in sources.py; fsspec is imported where a location has a scheme.
"""

from __future__ import annotations

import glob
import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast
from urllib.parse import urlsplit

from pipeline.errors import DataError, EnvironmentFault
from pipeline.files import TEMPORARY, fingerprint
from pipeline.printable import printable, without_secrets

_SCHEME = re.compile(r"([A-Za-z0-9_+.-]+::)*[A-Za-z][A-Za-z0-9_+.-]*://")  # fsspec chains them: filecache::s3://…
_STAMPS = ("ETag", "etag", "md5Hash", "LastModified", "Last-Modified", "last_modified", "mtime", "modified", "updated")


class BadFile(DataError):
    """A file that cannot be read: the message names it. `corpus.bad_files=skip` passes over it."""


@dataclass(frozen=True)
class Item:
    """A file, or a range of its bytes, of a split.

    path: to open, or URL. name: relative to the source's folder; it is in ids and metadata. size: bytes, as stored; 0
    where a server does not tell. start, end: lines that begin within these bytes; None: to the end.
    stamp: what changes when a remote file does.
    """

    path: str
    name: str
    size: int
    start: int = 0
    end: int | None = None
    stamp: str = ""

    @property
    def bytes(self) -> int:
        """How much of the file is read."""
        return (self.size if self.end is None else self.end) - self.start


def is_remote(location: str) -> bool:
    """Whether a location is a URL of something else than a local file."""
    return bool(_SCHEME.match(location)) and not location.startswith(("file://", "local://"))


def local_path(location: str) -> Path:
    """The path of a location that is not remote."""
    return Path(re.sub(r"^(file|local)://", "", location)).expanduser()


def can_seek(location: str) -> bool:
    """Whether a file may be read from its middle. HTTP servers need not allow it, nor say that they do not."""
    return not location.startswith(("http://", "https://"))


def shown(location: str) -> str:
    """A location as it stands in a message of one line: a file's name may hold line ends and worse."""
    return printable(without_secrets(location))


def suffix(location: str) -> str:
    """The last suffix of a file's name, in small letters; a URL's query is no part of the name."""
    return os.path.splitext(urlsplit(location).path if is_remote(location) else location)[1].lower()


def path_fingerprint(pattern: str) -> str:
    """Names the state of what a pattern finds, without reading it.

    Raises: DataError when nothing matches.
    """
    return items_fingerprint(find_files(pattern, ("",)))


def items_fingerprint(items: Iterable[Item]) -> str:
    """Names, sizes, and times of change; of remote files the tag that their server gives them."""
    return fingerprint([[item.name, item.size, item.stamp or os.stat(item.path).st_mtime_ns] for item in items])


def find_files(pattern: str, suffixes: tuple[str, ...]) -> list[Item]:
    """The files of a path, by name: the file itself, those in the folder that end in a suffix, or what a glob matches.

    Names are relative to the folder, or to the part of the glob before its first wildcard. Hidden files are left out.
    Raises: DataError when nothing is there; EnvironmentFault when a scheme needs a package that is not installed.
    """
    if is_remote(pattern):
        return _find_remote(pattern, suffixes)
    path = local_path(pattern)
    if path.is_file():
        return [_item(path, path.parent)]
    if path.is_dir():
        found = [_item(file, path) for file in _walk(path) if _wanted(file.name, suffixes)]
        problem = f"{shown(pattern)}: {_none_wanted(suffixes)}"
    else:
        parts = path.parts
        wild = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
        root = Path(*parts[:wild])
        matches = map(Path, glob.glob(str(path), recursive=True))
        found = [_item(file, root) for file in matches if file.is_file() and not _hidden(file.name)]
        problem = f"{shown(pattern)}: {'no file matches' if glob.has_magic(pattern) else 'no such file or folder'}"
    if not found:
        raise DataError(f"{problem}; paths are relative to {Path.cwd()}")
    return sorted(found, key=lambda item: item.name)


def _wanted(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.endswith(suffixes) or name.lower().endswith(suffixes)


def _none_wanted(suffixes: tuple[str, ...]) -> str:
    return f"no file in it ends in {', '.join(suffixes)}" if suffixes != ("",) else "the folder holds no file"


def _walk(folder: Path) -> Iterator[Path]:
    for directory, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not _hidden(name)]
        yield from (Path(directory, name) for name in names if not _hidden(name) and Path(directory, name).is_file())


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: the folder cannot be read: {error.strerror}")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.endswith(TEMPORARY)


def _item(path: Path, root: Path) -> Item:
    return Item(str(path), path.relative_to(root).as_posix(), path.stat().st_size)


# --- remote --------------------------------------------------------------------------------------------------------


def _find_remote(pattern: str, suffixes: tuple[str, ...]) -> list[Item]:
    system, root = file_system(pattern)
    try:
        if "*" in root:
            base = root[: root.index("*")].rpartition("/")[0]
            found = system.glob(root, detail=True)
            problem = "no file matches"
        elif root.endswith("/") or (about := system.info(root))["type"] == "directory":
            base = root.rstrip("/")
            found = {path: one for path, one in system.find(root, detail=True).items() if _wanted(path, suffixes)}
            problem = _none_wanted(suffixes)
        else:
            base = root.rpartition("/")[0]
            found, problem = {root: about}, ""
    except FileNotFoundError:
        found, problem = {}, "no such file or folder"
    except Exception as error:  # every file system raises its own
        raise DataError(f"{shown(pattern)}: cannot be listed: {one_line(error)}") from None
    items = [
        _remote_item(system, path, base, one)
        for path, one in found.items()
        if one["type"] == "file" and not any(_hidden(part) for part in path.removeprefix(base).split("/"))
    ]
    if not items:
        raise DataError(f"{shown(pattern)}: {problem}")
    return sorted(items, key=lambda item: item.name)


def _remote_item(system: Any, path: str, base: str, about: dict[str, Any]) -> Item:
    if path.startswith("http") and not any(about.get(key) for key in _STAMPS):  # a list of links tells names alone
        about = system.info(path)
    stamp = next((str(about[key]) for key in _STAMPS if about.get(key)), "no stamp")
    name = path.removeprefix(base).strip("/") or path
    return Item(str(system.unstrip_protocol(path)), name, int(about.get("size") or 0), stamp=stamp)


def file_system(location: str) -> tuple[Any, str]:
    """The store of fsspec that a URL names, and the place in it.

    Raises: EnvironmentFault when its package is not installed; DataError when there is no such kind of store.
    """
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(location)
    except ImportError as error:
        raise EnvironmentFault(f"{shown(location)}: {one_line(error)}; pip install it beside this package") from None
    except Exception as error:
        raise DataError(f"{shown(location)}: cannot be opened: {one_line(error)}") from None
    return system, path


def open_raw(location: str) -> io.BufferedIOBase:
    """The bytes of a file as they are stored. Raises: OSError; of a remote file BadFile, when it is read too."""
    if not is_remote(location):
        return cast(io.BufferedIOBase, open(location, "rb", buffering=1 << 20))
    return io.BufferedReader(_RemoteStream(location), 1 << 20)


class _RemoteStream(io.RawIOBase):
    """A remote file, read front to back or in ranges; each error of a file system, whatever its kind, is a BadFile."""

    def __init__(self, location: str) -> None:
        self._location = location
        system, path = file_system(location)
        try:
            # An HTTP server may not know ranges: one request for all. Elsewhere blocks are fetched as they are needed.
            options = {} if can_seek(location) else {"block_size": 0}
            self._handle = system.open(path, "rb", **options)
        except Exception as error:
            self._fail(error)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return can_seek(self._location)

    def readinto(self, buffer: Any, /) -> int:
        try:
            data = self._handle.read(len(buffer))
        except Exception as error:
            self._fail(error)
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return int(self._handle.seek(offset, whence))
        except Exception as error:
            self._fail(error)

    def tell(self) -> int:
        return int(self._handle.tell())

    def close(self) -> None:
        if not self.closed and hasattr(self, "_handle"):
            self._handle.close()
        super().close()

    def _fail(self, error: Exception) -> NoReturn:
        raise BadFile(f"{shown(self._location)}: cannot be read: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """What a store says of a failure, for a message of one line: no secrets, 300 characters at most."""
    return without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
