"""What window number w of a source is: a stretch of its tokens, or documents packed together."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.tokens.data import SourceTokens

Numbers = npt.NDArray[np.int64]
PIECE = np.dtype([("start", "<i8"), ("length", "<i4")])
WINDOW = np.dtype([("first", "<i8"), ("targets", "<i4")])
PADDING = -1  # behind the last document of a window


class SourceWindows(Protocol):
    """All windows of one source. unused: tokens that are in none."""

    tokens: SourceTokens
    unused: int

    def __len__(self) -> int: ...

    def gather(self, windows: Numbers, out: Numbers, rows: Numbers) -> None:
        """Put each window into its row of `out` (…, seq_len + 1). Raises: BadShard."""

    def targets(self, windows: Numbers) -> int:
        """Tokens that are targets in these windows together."""

    def shards(self, windows: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """What windows lie in, in ranges: (index into `windows`, first, last of `tokens.shards`)."""


class JoinedWindows:
    """All tokens in a row, cut every seq_len tokens."""

    def __init__(self, tokens: SourceTokens, seq_len: int) -> None:
        self.tokens, self.seq_len = tokens, seq_len
        self.unused = len(tokens) - len(self) * seq_len

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.seq_len

    def gather(self, windows: Numbers, out: Numbers, rows: Numbers) -> None:
        self.tokens.gather(windows * self.seq_len, out, rows)

    def targets(self, windows: Numbers) -> int:
        return len(windows) * self.seq_len

    def shards(self, windows: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        starts = windows * self.seq_len
        return np.arange(len(windows), dtype=np.int64), *self.tokens.shard_range(starts, self.seq_len + 1)


class PackedWindows:
    """Whole documents side by side, as packing.py has laid them out; then PADDING.

    The first place of a window holds what precedes its first token: the token before it where a document goes on from
    another window, else end-of-text. So each token of each document is a target once.
    """

    def __init__(self, tokens: SourceTokens, seq_len: int, eos_id: int, pieces: Path, windows: Path) -> None:
        """pieces, windows: files of PIECE and WINDOW records, both mapped; the last window is only an end.

        Raises: OSError or ValueError where they are no such files.
        """
        self.tokens, self.seq_len, self.eos_id, self.unused = tokens, seq_len, eos_id, 0
        self._pieces = np.memmap(pieces, dtype=PIECE, mode="r").view(np.ndarray)
        self._windows = np.memmap(windows, dtype=WINDOW, mode="r").view(np.ndarray)
        if int(self._windows["first"][-1]) != len(self._pieces):
            raise ValueError(f"{windows}: of other pieces")

    def __len__(self) -> int:
        return len(self._windows) - 1

    def gather(self, windows: Numbers, out: Numbers, rows: Numbers) -> None:
        owners, pieces = self._of(windows)
        lengths = pieces["length"].astype(np.int64)
        targets = self._windows["targets"][windows].astype(np.int64)
        before = np.cumsum(lengths) - lengths  # in all windows of this batch
        begins = np.searchsorted(owners, np.arange(len(windows)))
        own_context = np.bincount(owners, lengths, len(windows)).astype(np.int64) > targets
        columns = before - before[begins][owners] + np.where(own_context, 0, 1)[owners]
        out[rows] = PADDING
        out[rows, 0] = self.eos_id
        self.tokens.gather_pieces(pieces["start"].astype(np.int64), lengths, out, rows[owners], columns)

    def targets(self, windows: Numbers) -> int:
        return int(self._windows["targets"][windows].sum(dtype=np.int64))

    def shards(self, windows: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        owners, pieces = self._of(windows)
        found, _ = self.tokens.shard_range(pieces["start"].astype(np.int64), 1)  # a piece lies in one
        return owners, found, found

    def _of(self, windows: Numbers) -> tuple[Numbers, npt.NDArray[np.void]]:
        """The pieces of windows, in their order, and to which of the windows each belongs."""
        firsts, ends = self._windows["first"][windows], self._windows["first"][windows + 1]
        counts = ends - firsts
        owners = np.repeat(np.arange(len(windows), dtype=np.int64), counts)
        before = np.cumsum(counts) - counts
        return owners, self._pieces[np.arange(len(owners)) - before[owners] + firsts[owners]]
