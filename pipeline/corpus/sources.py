"""Where text comes from: find a source's files, name their state, and cut them into splits that one task reads each.

Light imports only: the fingerprints are asked for by every command, a run that skips all stages too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.corpus.compressed import PACKED_SUFFIXES
from pipeline.corpus.locations import Item, can_seek, find_files, is_remote, items_fingerprint, path_fingerprint
from pipeline.corpus.programming import NAMES as CODE_NAMES
from pipeline.corpus.programming import SUFFIXES as CODE_SUFFIXES
from pipeline.errors import DataError
from pipeline.files import fingerprint
from pipeline.recipe import FileSource, HuggingFaceSource, JsonlSource, PythonSource, Source, TextSource


def _packed(*stems: str) -> tuple[str, ...]:
    return tuple(stem + packed for stem in stems for packed in ("", *PACKED_SUFFIXES))


# What a folder is searched for. Text may have any name; a file named outright, or by a glob, may be called anything.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "jsonl": _packed(".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet", ".pq"),
    "text": ("",),
    "markdown": _packed(".md", ".markdown", ".mdx", ".rst", ".rest"),
    "code": _packed(*CODE_SUFFIXES, *CODE_NAMES),
    "csv": _packed(".csv", ".tsv", ".tab"),
    "html": _packed(".html", ".htm", ".xhtml"),
    "warc": _packed(".warc", ".wet"),
    "mail": ("",),
}


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

    Raises: DataError when nothing is there; EnvironmentFault when a remote path needs a package that is missing.
    """
    if isinstance(source, PythonSource):
        from pipeline.corpus.python_sources import find_python_files

        return fingerprint([[item.name, item.size] for item in find_python_files(source)])
    if isinstance(source, HuggingFaceSource):
        local = source.data_files if source.data_files and not is_remote(source.data_files) else None
        if local is None and Path(source.path).exists():
            local = source.path
        return path_fingerprint(local) if local else fingerprint([source.path, source.config, source.data_files])
    return items_fingerprint(_files(source))


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
    if item.path.endswith(PACKED_SUFFIXES) or item.size <= split_bytes or not can_seek(item.path):
        yield item
        return
    count = -(-item.size // split_bytes)
    edges = [item.size * number // count for number in range(count)]
    for number, start in enumerate(edges):
        yield Item(item.path, item.name, item.size, start, edges[number + 1] if number + 1 < count else None)
