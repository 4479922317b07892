"""Which documents are copies, and which are held out: decided on hashes alone, in partitions of bounded size.

Each split leaves an index of its documents, sorted by hash. A partition is a range of hashes: a slice of every index.
Within it the first copy in the order (source, split, place in the split) stays. Since partitions come in the order of
the hashes, and the validation set is what hashes below a limit, its bound in bytes is kept along the way.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

# high, low: the hash. bytes: of the text in UTF-8. after: bytes read from the split up to this document's end.
# record: its place among the split's records.
INDEX = np.dtype([("high", "<u8"), ("low", "<u8"), ("bytes", "<u8"), ("after", "<u8"), ("record", "<u8")])
BYTES_A_ROW = 128  # in memory, while a partition is sorted
PARTITION_ROWS = 1 << 22  # documents looked at together: about 0.5 GB
_HASHES = 1 << 64


def text_hash(text: str) -> tuple[int, int]:
    """BLAKE2b of a normalised text, 128 bits as two integers: one pair in 10^9 documents collides at odds of 10^-20."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


@dataclass(frozen=True)
class IndexedPart:
    """A split's index file; how many records the split has; the `after` beyond which nothing of it counts."""

    index: Path
    records: int
    budget: int


class HeldOut:
    """The validation set: documents whose hash is below `limit`.

    The limit is the share asked for, lowered where the set would exceed its bytes. Where chance leaves one of the
    sets empty though two different texts are there, it is moved to take one document in (or out).
    """

    def __init__(self, share: float, max_bytes: int | None) -> None:
        self.share, self.max_bytes = share, max_bytes
        self.limit = int(share * _HASHES)
        self._bytes = self._held = 0
        self._first: int | None = None
        self._last: int | None = None
        self._full = False

    def see(self, high: npt.NDArray[np.uint64], sizes: npt.NDArray[np.uint64]) -> None:
        """Take in documents that stay, sorted by hash, none below those seen before."""
        if not len(high):
            return
        self._first = int(high[0]) if self._first is None else self._first
        self._last = int(high[-1])
        chosen = len(high) if self.limit >= _HASHES else int(np.searchsorted(high, np.uint64(self.limit), "left"))
        if self.max_bytes is not None and not self._full:
            ends = self._bytes + np.cumsum(sizes[:chosen])
            fitting = int(np.searchsorted(ends, self.max_bytes, "right"))
            if fitting < chosen:
                self.limit = int(high[fitting])
                self._full = True
                chosen = int(np.searchsorted(high, np.uint64(self.limit), "left"))
            self._bytes = int(ends[chosen - 1]) if chosen else self._bytes
        self._held += chosen

    def decide(self) -> int:
        """The limit, once all documents were seen."""
        if self._first is None or self._last is None or self._first == self._last:
            return self.limit if self.share == 1.0 else 0  # one text alone is for training
        if self.share > 0 and not self._held:
            return self._first + 1
        return self._last if self.share < 1 and self._last < self.limit else self.limit


def find_duplicates(
    parts: Sequence[IndexedPart],
    duplicate: npt.NDArray[np.bool_],
    held_out: HeldOut,
    drop_duplicates: bool,
    partition_rows: int = PARTITION_ROWS,
) -> int:
    """Mark copies in `duplicate` (one flag a record, the parts' records one after another); what is marked is left out.

    Also shows the documents that stay to `held_out`. Returns how many documents there were.
    Memory: partition_rows documents; the indexes and, if mapped, the flags stay on disk.
    """
    offsets = np.cumsum([0, *(part.records for part in parts)])
    total = sum(_rows(part) for part in parts)
    count = max(1, -(-total // partition_rows))
    seen = 0
    for number in range(count):
        low, high = _HASHES * number // count, _HASHES * (number + 1) // count - 1
        slices = list(_slices(parts, offsets, low, high))
        if not slices:
            continue
        rows = np.concatenate([rows for rows, _ in slices])
        place = np.concatenate([places for _, places in slices])
        order = np.lexsort((place, rows["low"], rows["high"]))
        rows, place = rows[order], place[order]
        seen += len(rows)
        there = ~duplicate[place]
        rows, place = rows[there], place[there]
        if drop_duplicates:
            copy = np.zeros(len(rows), dtype=np.bool_)
            copy[1:] = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
            duplicate[place[copy]] = True
            rows = rows[~copy]
        held_out.see(rows["high"], rows["bytes"])
    return seen


def _rows(part: IndexedPart) -> int:
    return len(np.load(part.index, mmap_mode="r"))


def _slices(
    parts: Sequence[IndexedPart], offsets: npt.NDArray[np.int64], low: int, high: int
) -> Iterator[tuple[npt.NDArray[np.void], npt.NDArray[np.int64]]]:
    """The rows of each part whose hash is from `low` to `high`, with their places among all records."""
    for part, offset in zip(parts, offsets, strict=False):
        index = np.load(part.index, mmap_mode="r")
        keys = index["high"]  # not for np.searchsorted, which would read all of it
        start, end = bisect.bisect_left(keys, low), bisect.bisect_right(keys, high)
        rows = np.array(index[start:end])
        rows = rows[rows["after"] <= np.uint64(part.budget)]
        if len(rows):
            yield rows, offset + rows["record"].astype(np.int64)
