"""Token files that are one row of ids: 1-D `.npy` arrays, and bare little-endian integers.

A document ends with the tokenizer's end-of-text token, as everywhere here; that is all that such a file knows of
documents. Where none stands within CUT tokens the row is cut, so that a file without any is read in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.tokens.imports.pieces import BATCH_TOKENS, Batch, Piece

CUT = 4 * BATCH_TOKENS


class FlatFile:
    """One file, mapped. dtype: of its integers; None for `.npy`, which states it.

    Raises: DataError when it is no row of integers.
    """

    def __init__(self, path: Path, dtype: str | None, eos_id: int) -> None:
        self.path, self.eos_id = path, eos_id
        try:
            if dtype is None:
                self._tokens: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r").view(np.ndarray)
            else:
                self._tokens = _raw(path, np.dtype(dtype).newbyteorder("<"))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
        except (ValueError, EOFError) as error:
            raise DataError(f"{path}: not an .npy array that can be mapped ({error})") from None
        if self._tokens.ndim != 1 or self._tokens.dtype.kind not in "ui":
            raise DataError(
                f"{path}: an array of shape {self._tokens.shape} and type {self._tokens.dtype}, where one row of "
                "integers was expected"
            )

    def pieces(self, tokens: int) -> list[Piece]:
        """Ranges of so many tokens; where a document spans two of them it belongs to the first."""
        total = len(self._tokens)
        return [
            Piece(self.path, begin, min(begin + tokens, total), min(tokens, total - begin))
            for begin in range(0, total, tokens)
        ]

    def batches(self, piece: Piece) -> Iterator[Batch]:
        """The documents that begin in a piece."""
        begin, stop = self._boundary(piece.begin), self._boundary(piece.end)
        while begin < stop:
            ends = self._ends(begin, min(begin + BATCH_TOKENS, stop))
            if not len(ends):
                ends = self._ends(begin, min(begin + CUT, stop))[:1]
            ended = bool(len(ends))
            if not ended:
                ends = np.array([min(begin + CUT, stop)])
            end = int(ends[-1])
            yield Batch(self._tokens[begin:end], ends - begin, begin, ended)
            begin = end

    def _ends(self, begin: int, end: int) -> npt.NDArray[np.int64]:
        """Exclusive ends of the documents that end in a range, in tokens of the file."""
        return np.flatnonzero(self._tokens[begin:end] == self.eos_id) + begin + 1

    def _boundary(self, position: int) -> int:
        """Where the first document begins at a place or behind it; the place itself where none ends within CUT."""
        if position in (0, len(self._tokens)):
            return position
        for start in range(position - 1, min(position + CUT, len(self._tokens)), BATCH_TOKENS):
            ends = self._ends(start, min(start + BATCH_TOKENS, position + CUT, len(self._tokens)))
            if len(ends):
                return int(ends[0])
        return position


def _raw(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise DataError(
            f"{path}: {size:,} bytes are no whole number of {dtype.name} ids; it was cut, or dtype is wrong"
        )
    return np.memmap(path, dtype, "r").view(np.ndarray) if size else np.empty(0, dtype)
