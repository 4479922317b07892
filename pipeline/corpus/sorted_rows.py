"""Rows of 64-bit numbers that are sorted by their first column, of files or as they come: parts of them."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.uint64]  # (rows, width)


def slice_of_files(paths: Sequence[Path], width: int, low: int, high: int) -> Rows:
    """The rows of all files whose first number is at least `low` and below `high`, sorted, in Fortran order."""
    found = [np.empty((0, width), np.uint64)]
    for path in paths:
        if path.stat().st_size:
            mapped = np.memmap(path, np.uint64, "r").reshape(-1, width)
            keys = mapped[:, 0]
            found.append(np.array(mapped[bisect.bisect_left(keys, low) : bisect.bisect_left(keys, high)]))
    rows = np.concatenate(found)
    return np.asfortranarray(rows[np.lexsort(rows.T[::-1])])


def by_split(blocks: Iterable[Rows], firsts: Sequence[int]) -> Iterator[tuple[int, Rows]]:
    """Rows whose first column is the place of a document among all, with the number of the split that it is of.

    firsts: place of each split's first record. Of splits that begin at one place, the last is the one with records.
    """
    starts = np.array(firsts, np.uint64)
    for rows in blocks:
        owners = np.searchsorted(starts, rows[:, 0], "right") - 1
        bounds = [*np.flatnonzero(np.diff(owners, prepend=-1)).tolist(), len(rows)]
        for start, end in itertools.pairwise(bounds):
            yield int(owners[start]), rows[start:end]
