"""Validation windows: a fixed set in a fixed order, in which every held-out token is a target exactly once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.tokens.data import TokenData
from pipeline.tokens.permutation import permute

PADDING = -1  # after the end of a source's tokens, in its last window


class ValidationWindows:
    """All held-out tokens as windows of `seq_len + 1`, the same for every run, rank and world size.

    Each source's tokens are preceded by one end-of-text token, its first context; then window w of a source holds
    tokens w*seq_len … (w+1)*seq_len of that row, so that positions 1… of the windows are the targets and each token is
    one once. The last window of a source is filled up with PADDING (-1). For the loss:
    `inputs = max(window[:-1], 0)`, `targets = where(window[1:] < 0, -100, window[1:])`.

    The order is a fixed shuffle over all sources, so that the first n windows are a fair sample of the whole.
    """

    def __init__(self, data: TokenData, seq_len: int) -> None:
        """Raises: DataError when nothing is held out."""
        self.seq_len, self.eos_id = seq_len, data.eos_id
        self._tokens = [data.source("validation", name) for name in data.sources("validation")]
        if not self._tokens:
            raise DataError(
                f"{data.folder}: no tokens are held out for validation; raise corpus.validation and run shard again"
            )
        self._starts = np.cumsum([0] + [-(-len(tokens) // seq_len) for tokens in self._tokens], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batch(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Windows first … first+count-1 of the fixed order: (count, seq_len + 1); the end may not pass len(self)."""
        if not 0 <= first <= first + count <= len(self):
            raise IndexError(f"windows {first} … {first + count - 1} of {len(self)}")
        out = np.full((count, self.seq_len + 1), PADDING, dtype=np.int64)
        chosen = permute(np.arange(first, first + count, dtype=np.int64), len(self), "validation")
        owners = np.searchsorted(self._starts, chosen, side="right") - 1
        for row, window, owner in zip(out, chosen.tolist(), owners.tolist(), strict=True):
            tokens = self._tokens[owner]
            start = (window - int(self._starts[owner])) * self.seq_len  # in the row with end-of-text before it
            stop = min(start + self.seq_len + 1, len(tokens) + 1)
            begin = max(start, 1)
            if start == 0:
                row[0] = self.eos_id
            tokens.gather(np.array([begin - 1]), row[None, begin - start : stop - start], np.array([0]))
        return out
