"""How alike a dropped near-duplicate is to the document that stays for it, as their sketches tell: out of core."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.corpus.clusters import read_rows
from pipeline.corpus.external_sort import ExternalSort, Rows
from pipeline.corpus.keyed_rows import KEYS, KeyedPart
from pipeline.corpus.sorted_rows import by_split
from pipeline.files import atomic_write


def measure_likeness(clusters: Path, parts: Sequence[KeyedPart], memory: int, path: Path) -> None:
    """Write rows of two uint64, sorted, to `path`: place of a dropped document, bits in which the sketches differ.

    clusters: as find_clusters leaves them. parts: the splits' signatures, in order. Memory: `memory` bytes, and the
    sketches of one split.
    """
    folder, words = path.parent, parts[0].width - 2
    with ExternalSort(folder, 2, memory // 2) as by_best, ExternalSort(folder, 2 + words, memory // 2) as by_document:
        for rows in read_rows([clusters], 3):
            by_best.add(rows[rows[:, 0] != rows[:, 1], 1::-1])
        for rows, sketches in _with_sketches(by_best.sorted_blocks(), parts):
            by_document.add(np.concatenate([rows[:, ::-1], sketches], axis=1))
        with atomic_write(path, own=True) as out:
            for rows, sketches in _with_sketches(by_document.sorted_blocks(), parts):
                differ = np.bitwise_count(rows[:, 2:] ^ sketches).sum(axis=1, dtype=np.uint64)
                out.write(np.stack([rows[:, 0], differ], axis=1).tobytes())


def similarity(differ: int, bits: int) -> float:
    """The Jaccard similarity that sketches of so many bits show: they agree in (1 + similarity) / 2 of them."""
    return round(max(0.0, 1 - 2 * differ / bits), 3)


def _with_sketches(blocks: Iterable[Rows], parts: Sequence[KeyedPart]) -> Iterator[tuple[Rows, Rows]]:
    """Rows that are sorted by the place of a document, with these documents' sketches."""
    at, sketches = -1, np.empty((0, 0), np.uint64)
    for number, rows in by_split(blocks, [part.first for part in parts]):
        if number != at:
            at, sketches = number, _sketches(parts[number])
        yield rows, sketches[(rows[:, 0] - np.uint64(parts[number].first)).astype(np.int64)]


def _sketches(part: KeyedPart) -> Rows:
    """Of the records of a split, (records, words); zeros where there is none."""
    found = np.zeros((part.records, part.width - 2), np.uint64)
    for start, end in part.ranges(0, 0, KEYS):
        rows = part.read(start, end)
        rows = rows[rows[:, 1] < part.records]
        found[rows[:, 1].astype(np.int64)] = rows[:, 2:]
    return found
