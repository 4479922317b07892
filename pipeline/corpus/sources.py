"""Where text comes from: find a source's files, name their state, and cut them into splits that one task reads each.

Light imports only: the fingerprints are asked for by every command, a run that skips all stages too.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import DataError
from pipeline.files import TEMPORARY, fingerprint
from pipeline.recipe import FileSource, HuggingFaceSource, JsonlSource, ParquetSource, PythonSource, Source, TextSource

if TYPE_CHECKING:
    from pipeline.corpus.document import Document, Dropped

# What a folder is searched for. Text may have any name; a file named outright, or by a glob, may be called anything.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "jsonl": tuple(stem + packed for stem in (".jsonl", ".ndjson", ".json") for packed in ("", ".gz", ".zst")),
    "parquet": (".parquet", ".pq"),
    "text": ("",),
}


@dataclass(frozen=True)
class Item:
    """A file, or a range of its bytes, of a split.

    path: to open. name: relative to the source's folder; it is in ids and metadata. size: bytes, as stored.
    start, end: lines that begin within these bytes; None: to the end.
    """

    path: str
    name: str
    size: int
    start: int = 0
    end: int | None = None

    @property
    def bytes(self) -> int:
        """How much of the file is read."""
        return (self.size if self.end is None else self.end) - self.start


@dataclass(frozen=True)
class Split:
    """Part of a source that one task reads: number counts from 0 in the source's order."""

    source: str
    number: int
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        """Stem of all files that are made of it."""
        return f"{self.source}-{self.number:05d}"

    @property
    def bytes(self) -> int:
        """Size of its input, as stored; 0 when unknown."""
        return sum(item.bytes for item in self.items)


def source_fingerprint(source: Source) -> str:
    """Names the state of a source's files without reading them: names, sizes and times (Python sources: no times).

    Raises: DataError when nothing is there.
    """
    if isinstance(source, PythonSource):
        from pipeline.corpus.python_sources import find_python_files

        return fingerprint([[item.name, item.size] for item in find_python_files(source)])
    if isinstance(source, HuggingFaceSource):
        local = source.data_files if source.data_files and "://" not in source.data_files else None
        if local is None and Path(source.path).exists():
            local = source.path
        return path_fingerprint(local) if local else fingerprint([source.path, source.config, source.data_files])
    return _fingerprint(_files(source))


def path_fingerprint(pattern: str) -> str:
    """The same for a file, a folder or a glob pattern.

    Raises: DataError when nothing matches.
    """
    return _fingerprint(find_files(pattern, ("",)))


def _fingerprint(items: Iterable[Item]) -> str:
    return fingerprint([[item.name, item.size, os.stat(item.path).st_mtime_ns] for item in items])


def find_files(pattern: str, suffixes: tuple[str, ...]) -> list[Item]:
    """The files of a path, by name: the file itself, those in the folder that end in a suffix, or what a glob matches.

    Names are relative to the folder, or to the part of the glob before its first wildcard. Hidden files are left out.
    Raises: DataError when nothing is there.
    """
    path = Path(pattern).expanduser()
    if path.is_file():
        return [_item(path, path.parent)]
    if path.is_dir():
        found = [_item(file, path) for file in _walk(path) if file.name.endswith(suffixes)]
        wanted = f"no file in it ends in {', '.join(suffixes)}" if suffixes != ("",) else "the folder holds no file"
        problem = f"{pattern}: {wanted}"
    else:
        parts = path.parts
        wild = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
        root = Path(*parts[:wild])
        matches = map(Path, glob.glob(str(path), recursive=True))
        found = [_item(file, root) for file in matches if file.is_file() and not _hidden(file.name)]
        problem = f"{pattern}: {'no file matches' if glob.has_magic(pattern) else 'no such file or folder'}"
    if not found:
        raise DataError(f"{problem}; paths are relative to {Path.cwd()}")
    return sorted(found, key=lambda item: item.name)


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


def _files(source: FileSource) -> list[Item]:
    try:
        return find_files(source.path, SUFFIXES[source.type])  # type: ignore[attr-defined]
    except DataError as error:
        raise DataError(f"source {source.name}: {error}") from None


def plan_splits(source: Source, split_bytes: int) -> list[Split]:
    """Cut a source into splits of about `split_bytes` of input, in its order.

    Small files share a split; a plain file of lines may be cut into several; any other file is one split at least,
    a `datasets` data set one altogether.
    Raises: DataError when nothing is there.
    """
    if isinstance(source, PythonSource):
        from pipeline.corpus.python_sources import find_python_files

        items: Iterable[Item] = find_python_files(source)
    elif isinstance(source, HuggingFaceSource):
        return [Split(source.name, 0, ())]
    else:
        items = _files(source)
        if isinstance(source, JsonlSource) or (isinstance(source, TextSource) and source.split == "line"):
            items = [piece for item in items for piece in _cut(item, split_bytes)]
    groups: list[list[Item]] = [[]]
    held = 0
    for item in items:
        if groups[-1] and held + item.bytes > split_bytes:
            groups.append([])
            held = 0
        groups[-1].append(item)
        held += item.bytes
    return [Split(source.name, number, tuple(group)) for number, group in enumerate(groups) if group]


def _cut(item: Item, split_bytes: int) -> Iterator[Item]:
    """Ranges of about `split_bytes` of a plain file of lines."""
    if item.path.endswith((".gz", ".zst")) or item.size <= split_bytes:
        yield item
        return
    count = -(-item.size // split_bytes)
    edges = [item.size * number // count for number in range(count)]
    for number, start in enumerate(edges):
        yield Item(item.path, item.name, item.size, start, edges[number + 1] if number + 1 < count else None)


def read_split(
    source: Source, split: Split, bad_lines: Literal["fail", "drop"]
) -> Iterator[tuple[Document | Dropped, Item | None]]:
    """The documents of a split, in order, each with the item that it came from.

    Raises: DataError naming the file and the place when it cannot be read.
    """
    from pipeline.corpus import readers
    from pipeline.corpus.python_sources import read_python

    if isinstance(source, HuggingFaceSource):
        for document in readers.read_huggingface(source, bad_lines):
            yield document, None
        return
    for item in split.items:
        if isinstance(source, PythonSource):
            documents = read_python(source, item)
        elif isinstance(source, TextSource):
            documents = readers.read_text(source, item)
        elif isinstance(source, JsonlSource):
            documents = readers.read_jsonl(source, item, bad_lines)
        else:
            assert isinstance(source, ParquetSource)
            documents = readers.read_parquet(source, item, bad_lines)
        for document in documents:
            yield document, item
