"""Clusters of near-duplicates from pairs, and the copy of each that stays: out of core, in memory of a stated size.

Connected components by alternating large-star and small-star steps (Kiveris et al. 2014, "Connected Components in
MapReduce and Beyond"): each turns the edges around a document into edges to its smallest neighbour, by one external
sort, until every cluster is a star around its first document. Pairs of the bands are near that from the beginning:
three or four rounds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.corpus.external_sort import ExternalSort, Rows
from pipeline.corpus.sorted_rows import by_split
from pipeline.files import atomic_write, own_temporary

# Of each document in a cluster, sorted by it. document, best: places among all records; size: documents.
CLUSTERS = np.dtype([("document", "<u8"), ("best", "<u8"), ("size", "<u8")])
_READ_BYTES = 1 << 24
Blocks = Iterable[Rows]


@dataclass(frozen=True)
class SizedPart:
    """Of a split: place of its first record among all, and what tells the sizes of its records, (records,)."""

    first: int
    sizes: Callable[[], npt.NDArray[np.uint64]]


def read_rows(paths: Sequence[Path], width: int) -> Iterator[Rows]:
    """The rows of files, in blocks."""
    for path in paths:
        with open(path, "rb") as handle:
            while block := handle.read(_READ_BYTES // (8 * width) * 8 * width):
                yield np.frombuffer(block, np.uint64).reshape(-1, width)


def find_clusters(pairs: Sequence[Path], parts: Sequence[SizedPart], memory: int, path: Path) -> None:
    """Write the clusters of all pairs to `path`, as CLUSTERS. The best copy is the longest, then the first by place.

    parts: in order. Memory: `memory` bytes, and the sizes of one split.
    """
    folder = path.parent
    summary = own_temporary(path)
    with contextlib.ExitStack() as stack:
        stack.callback(summary.unlink, missing_ok=True)
        stars = _components(stack, read_rows(pairs, 2), folder, memory // 2)
        members = stack.enter_context(ExternalSort(folder, 2, memory // 2))
        for rows in _used_up(stars):
            members.add(rows)
            members.add(np.stack([rows[:, 1], rows[:, 1]], axis=1))
        # By cluster, then by length downwards, then by place: the first of each cluster is the best.
        ranked = stack.enter_context(ExternalSort(folder, 3, memory // 2))
        for rows in _ranked(_used_up(members), parts):
            ranked.add(rows)
        with open(summary, "wb") as out:
            for rows in _summary(ranked.sorted_blocks()):
                out.write(rows.tobytes())
        found = stack.enter_context(ExternalSort(folder, 3, memory // 2))
        for rows in _with_summary(_used_up(ranked), summary):
            found.add(rows)
        with atomic_write(path, own=True) as out:
            for rows in found.sorted_blocks():
                out.write(rows.tobytes())


# --- components ----------------------------------------------------------------------------------------------------


def _components(stack: contextlib.ExitStack, edges: Blocks, folder: Path, memory: int) -> ExternalSort:
    """(document, first of its cluster), sorted, for all documents but the first ones."""
    while True:
        stars = stack.enter_context(ExternalSort(folder, 2, memory))
        changed = False
        with ExternalSort(folder, 2, memory) as both:
            for rows in edges:
                both.add(rows)
                both.add(rows[:, ::-1])
            for centre, neighbour, smallest, _ in _groups(both.sorted_blocks()):  # large star
                least = np.minimum(smallest, centre)
                larger = neighbour > centre
                changed |= bool((larger & (least != centre)).any())
                stars.add(np.stack([neighbour[larger], least[larger]], axis=1))
        following = stack.enter_context(ExternalSort(folder, 2, memory))
        for centre, neighbour, least, first in _groups(stars.sorted_blocks()):  # small star
            changed |= not first.all()
            following.add(np.stack([np.where(first, centre, neighbour), least], axis=1))
        stars.close()
        if not changed:
            return following
        edges = _used_up(following)


def _used_up(rows: ExternalSort) -> Iterator[Rows]:
    yield from rows.sorted_blocks()
    rows.close()


def _groups(blocks: Blocks) -> Iterator[tuple[Rows, Rows, Rows, npt.NDArray[np.bool_]]]:
    """Of sorted pairs (a, b), in blocks: a, b, the least b of the same a, and whether this is it; each (n,)."""
    last: tuple[np.uint64, np.uint64] | None = None  # of the block before: a and its least b
    for rows in blocks:
        first = np.ones(len(rows), np.bool_)
        first[1:] = rows[1:, 0] != rows[:-1, 0]
        leaders = np.flatnonzero(first)
        of_group = rows[leaders, 1].copy()
        if last is not None and rows[0, 0] == last[0]:
            of_group[0] = last[1]
            first[0] = False
        least = np.repeat(of_group, np.diff(np.append(leaders, len(rows))))
        last = rows[-1, 0], least[-1]
        yield rows[:, 0], rows[:, 1], least, first


# --- the best copy -------------------------------------------------------------------------------------------------


def _ranked(members: Blocks, parts: Sequence[SizedPart]) -> Iterator[Rows]:
    """(cluster, complement of the document's size, document) of (document, cluster), sorted by document."""
    at, sizes = -1, np.empty(0, np.uint64)
    for number, rows in by_split(members, [part.first for part in parts]):
        if number != at:
            at, sizes = number, parts[number].sizes()
        size = sizes[(rows[:, 0] - np.uint64(parts[number].first)).astype(np.int64)]
        yield np.stack([rows[:, 1], ~size, rows[:, 0]], axis=1)


def _summary(ranked: Blocks) -> Iterator[Rows]:
    """(best, size) of each cluster, in order."""
    cluster = best = None
    size = 0
    for rows in ranked:
        leaders = np.flatnonzero(np.diff(rows[:, 0], prepend=~rows[:1, 0]))
        sizes = np.diff(np.append(leaders, len(rows)))
        bests = rows[leaders, 2]
        if cluster == rows[0, 0]:
            sizes[0] += size
            bests[0] = best
        elif best is not None:
            yield np.array([[best, size]], np.uint64)
        yield np.stack([bests[:-1], sizes[:-1].astype(np.uint64)], axis=1)
        cluster, best, size = rows[-1, 0], bests[-1], sizes[-1]
    if best is not None:
        yield np.array([[best, size]], np.uint64)


def _with_summary(ranked: Blocks, summary: Path) -> Iterator[Rows]:
    """(document, best, size), by cluster."""
    if not summary.stat().st_size:
        return
    clusters = np.memmap(summary, np.uint64, "r").reshape(-1, 2)
    number, cluster = -1, None
    for rows in ranked:
        new = np.diff(rows[:, 0], prepend=~rows[:1, 0]) != 0
        new[0] = rows[0, 0] != cluster
        numbers = number + np.cumsum(new)
        of_block = np.array(clusters[numbers[0] : numbers[-1] + 1])
        yield np.concatenate([rows[:, 2:], of_block[numbers - numbers[0]]], axis=1)
        number, cluster = int(numbers[-1]), rows[-1, 0]
