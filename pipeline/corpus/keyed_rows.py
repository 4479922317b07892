"""Files of rows of 64-bit numbers that are looked at by their key (column 0), all files of a corpus together.

A split's file holds one or more lists. It is written as texts come, in runs: of each run first list 0, sorted by key,
then list 1, … So the writer's memory is one run, and a reader finds a range of keys by bisection. No header: the
number of rows follows from the file's size, the runs' lengths from RUN_ROWS.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.uint64]  # (rows, width)
RUN_ROWS = 1 << 15  # of each list; of near-duplicates' 14 lists of 32 bytes: 15 MB
KEYS = 1 << 64


class KeyedRowsWriter:
    """Rows on their way into a file. After `buffer[:, used] = …` for all lists, `add()` takes them in."""

    def __init__(self, handle: IO[bytes], lists: int, width: int) -> None:
        self._handle = handle
        self.buffer = np.empty((lists, RUN_ROWS, width), np.uint64)
        self.used = 0

    def add(self, rows: int = 1) -> None:
        """The next `rows` of each list of the buffer are filled in."""
        self.used += rows
        if self.used == RUN_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the last run, shorter than the others. Nothing may be added after it."""
        for rows in self.buffer[:, : self.used]:
            self._handle.write(rows[np.argsort(rows[:, 0], kind="stable")].tobytes())
        self.used = 0


@dataclass(frozen=True)
class KeyedPart:
    """A split's file. first: place of its first record among all records; records: how many of them count."""

    path: Path
    lists: int
    width: int
    first: int
    records: int

    @property
    def rows(self) -> int:
        """Rows of each list."""
        return self.path.stat().st_size // (8 * self.width * self.lists)

    def ranges(self, number: int, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Where in the file rows of a list lie whose key is at least `low` and below `high`: (first, one past last)."""
        total = self.rows
        if not total:
            return
        mapped = np.memmap(self.path, np.uint64, "r").reshape(-1, self.width)
        for run in range(0, total, RUN_ROWS):
            length = min(RUN_ROWS, total - run)
            start = run * self.lists + number * length
            keys = mapped[start : start + length, 0]
            first = bisect.bisect_left(keys, low) if low else 0
            last = bisect.bisect_left(keys, high) if high < KEYS else length
            if first < last:
                yield start + first, start + last

    def read(self, first: int, last: int) -> Rows:
        """Rows of the file."""
        count, offset = (last - first) * self.width, 8 * self.width * first
        return np.fromfile(self.path, np.uint64, count, offset=offset).reshape(-1, self.width)


def key_range(number: int, count: int) -> tuple[int, int]:
    """The keys of partition `number` of `count`: the first, and one past the last."""
    return KEYS * number // count, KEYS * (number + 1) // count


def gather(
    parts: Sequence[KeyedPart], number: int, low: int, high: int, most: int, gone: npt.NDArray[np.bool_]
) -> Iterator[Rows]:
    """The rows of a list whose key is at least `low` and below `high`, in blocks of at most `most` rows.

    The blocks are in the order of the keys, and their rows sorted by key, then by record; column 1 holds the record's
    place among all. Only a key with more rows than fit into a block goes over several. Rows of records that do not
    count, or that are gone (a flag for each record of all splits), are left out.
    """
    found = [(part, found) for part in parts for found in part.ranges(number, low, high)]
    total = sum(end - start for _, (start, end) in found)
    if total > most and high - low > 1:
        middle = (low + high) // 2
        del found
        yield from gather(parts, number, low, middle, most, gone)
        yield from gather(parts, number, middle, high, most, gone)
        return
    waiting: list[Rows] = []
    held = 0
    for part, (start, end) in found:
        for place in range(start, end, most):
            rows = part.read(place, min(place + most, end))
            rows = rows[rows[:, 1] < part.records]
            rows[:, 1] += np.uint64(part.first)
            rows = rows[~gone[rows[:, 1].astype(np.int64)]]
            if held + len(rows) > most:
                yield _in_order(waiting)
                waiting, held = [], 0
            waiting.append(rows)
            held += len(rows)
    if held:
        yield _in_order(waiting)


def _in_order(blocks: Sequence[Rows]) -> Rows:
    rows = np.concatenate(blocks)
    return rows[np.lexsort((rows[:, 1], rows[:, 0]))]
