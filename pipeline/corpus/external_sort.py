"""Sorting rows of 64-bit numbers that do not fit into memory: sorted runs on disk, merged in blocks."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.corpus.compiled import compiled
from pipeline.files import disk_errors, own_temporary

Rows = npt.NDArray[np.uint64]  # (rows, width)
FAN_IN = 128  # runs that are merged, and open, together
LEAST_ROWS = 4096  # in memory, however little there is
_COPIES = 4  # of the rows in memory, while a run is sorted or merged, their order included


class ExternalSort:
    """Rows in, in any order; the same rows out, once each, sorted by their columns from left to right.

    folder: where runs lie, under a temporary name, until the block ends. memory: bytes.
    Use as a context manager. `sorted_blocks` may be asked for more than once; nothing may be added after it.
    """

    def __init__(self, folder: Path, width: int, memory: int) -> None:
        self._folder = own_temporary(folder / "sort")
        self._width = width
        self._most = max(memory // (8 * width * _COPIES), LEAST_ROWS)
        self._waiting: list[Rows] = []
        self._held = 0
        self._levels: list[list[Path]] = [[]]  # runs; those of a level are FAN_IN of the level below, merged
        self._named = 0

    def __enter__(self) -> ExternalSort:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the disk and the memory back."""
        self._waiting, self._levels = [], [[]]
        if self._folder.is_dir():
            shutil.rmtree(self._folder)

    def add(self, rows: Rows) -> None:
        """Take rows in, (n, width)."""
        for start in range(0, len(rows), self._most):
            some = rows[start : start + self._most]
            if self._held + len(some) > self._most:
                self._write_run()
            self._waiting.append(some)
            self._held += len(some)

    def _write_run(self) -> None:
        self._keep(iter([_unique(np.concatenate(self._waiting))]), 0)
        self._waiting, self._held = [], 0

    def _keep(self, blocks: Iterator[Rows], level: int) -> None:
        """Write a run; where there are enough of its level, merge them into one of the next."""
        path = self._folder / str(self._named)
        self._named += 1
        with disk_errors(path):
            self._folder.mkdir(exist_ok=True)
            with open(path, "wb") as out:
                for rows in blocks:
                    out.write(rows.tobytes())
        if level == len(self._levels):
            self._levels.append([])
        runs = self._levels[level]
        runs.append(path)
        if len(runs) == FAN_IN:
            self._keep(self._merged(runs), level + 1)
            for run in runs:
                run.unlink()
            self._levels[level] = []

    def sorted_blocks(self) -> Iterator[Rows]:
        """All rows, in blocks, none of them empty."""
        if not any(self._levels):
            if self._waiting:
                self._waiting = [_unique(np.concatenate(self._waiting))]
                yield self._waiting[0]
            return
        if self._waiting:
            self._write_run()
        while sum(map(len, self._levels)) > FAN_IN:  # of several levels
            lowest = next(level for level, runs in enumerate(self._levels) if runs)
            runs, self._levels[lowest] = self._levels[lowest], []
            self._keep(self._merged(runs), lowest + 1)
            for run in runs:
                run.unlink()
        yield from self._merged([run for runs in self._levels for run in runs])

    def _merged(self, runs: Sequence[Path]) -> Iterator[Rows]:
        """Of each run a block is looked at; what is not above the smallest of the blocks' last rows is complete."""
        length = max(self._most // len(runs), 1)
        with contextlib.ExitStack() as files:
            handles = [files.enter_context(open(path, "rb")) for path in runs]
            blocks = [np.empty((0, self._width), np.uint64)] * len(handles)
            while True:
                for number, handle in enumerate(handles):
                    if not len(blocks[number]):
                        read = np.frombuffer(handle.read(8 * self._width * length), np.uint64)
                        blocks[number] = read.reshape(-1, self._width)
                there = [block for block in blocks if len(block)]
                if not there:
                    return
                last = min(tuple(block[-1].tolist()) for block in there)
                bound = np.array(last, np.uint64)
                ends = [_after(block, bound) for block in blocks]
                yield _unique(np.concatenate([block[:end] for block, end in zip(blocks, ends, strict=True)]))
                blocks = [block[end:] for block, end in zip(blocks, ends, strict=True)]


@compiled
def _after(rows: Rows, bound: npt.NDArray[np.uint64]) -> int:
    """How many of the sorted rows are not above the bound."""
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high) // 2
        above = False
        for column in range(len(bound)):
            if rows[middle, column] != bound[column]:
                above = rows[middle, column] > bound[column]
                break
        if above:
            high = middle
        else:
            low = middle + 1
    return low


def _unique(rows: Rows) -> Rows:
    rows = rows[np.lexsort(rows.T[::-1])]
    new = np.ones(len(rows), np.bool_)
    new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return rows[new]
