"""Megatron's indexed data sets: `x.bin` holds the ids, `x.idx` where sequences and documents begin.

The index (Megatron-LM, megatron/core/datasets/indexed_dataset.py, version 1), little-endian: `MMIDIDX\\0\\0`, uint64
version, uint8 code of the ids' type, uint64 number of sequences, uint64 number of document entries; then int32 lengths
of the sequences, int64 byte offsets of the sequences, int64 document entries: the number of the first sequence of each
document, and the number of all sequences last. Both files are mapped: memory does not grow with them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.tokens.imports.pieces import BATCH_TOKENS, Batch, Piece

MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # codes 6 and 7 are of floating-point types
_HEADER = struct.Struct("<9sQBQQ")
_BLOCK = 4096  # documents whose places are looked at together


class MegatronFile:
    """A pair of files, open for reading. path: of the .bin; documents: how many.

    Raises: DataError when one of the two is missing, or they are no such pair.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.index = path, path.with_suffix(".idx")
        try:
            with open(self.index, "rb") as handle:
                header = handle.read(_HEADER.size)
            size, self._bytes = self.index.stat().st_size, path.stat().st_size
        except OSError as error:
            raise DataError(
                f"{error.filename}: cannot be read ({error.strerror}); Megatron's tokens are a pair of x.bin and x.idx"
            ) from None
        if len(header) < _HEADER.size or header[: len(MAGIC)] != MAGIC:
            raise DataError(
                f"{self.index}: does not begin as an index of Megatron (MMIDIDX); preprocess the text again"
            )
        _, version, code, sequences, entries = _HEADER.unpack(header)
        if version != VERSION:
            raise DataError(f"{self.index}: has version {version}; only version {VERSION} is known")
        if code not in DTYPES:
            raise DataError(f"{self.index}: its type of ids has code {code}; token ids are integers ({_codes()})")
        wanted = _HEADER.size + 12 * sequences + 8 * entries
        if size != wanted:
            more = "; an index with modes (multimodal data) is not supported" if size == wanted + sequences else ""
            raise DataError(
                f"{self.index}: {size:,} bytes, but one of {sequences:,} sequences and {entries:,} document entries "
                f"has {wanted:,}{more}"
            )
        self.dtype = np.dtype(DTYPES[code])
        self._lengths = _mapped(self.index, "<i4", _HEADER.size, sequences)
        self._offsets = _mapped(self.index, "<i8", _HEADER.size + 4 * sequences, sequences)
        self._firsts = _mapped(self.index, "<i8", _HEADER.size + 12 * sequences, entries)
        if self._bytes % self.dtype.itemsize:
            raise DataError(f"{path}: {self._bytes:,} bytes are no whole number of {self.dtype.name} ids; it was cut")
        if entries == 0 or self._firsts[0] != 0 or self._firsts[-1] != sequences:
            raise DataError(f"{self.index}: damaged: its documents do not span its {sequences:,} sequences")
        self.documents = entries - 1
        self._tokens = _mapped(path, self.dtype.str, 0, self._bytes // self.dtype.itemsize)

    def pieces(self, tokens: int) -> list[Piece]:
        """Ranges of documents of about so many tokens each."""
        found: list[Piece] = []
        begin, total = 0, len(self._tokens)
        while begin < self.documents:
            start = self._starts(np.array([begin]))[0]
            sequence = int(np.searchsorted(self._offsets, (start + tokens) * self.dtype.itemsize))
            end = max(begin + 1, min(self.documents, int(np.searchsorted(self._firsts, sequence))))
            stop = total if end == self.documents else int(self._starts(np.array([end]))[0])
            found.append(Piece(self.path, begin, end, stop - int(start)))
            begin = end
        return found

    def batches(self, piece: Piece) -> Iterator[Batch]:
        """The documents of a piece; empty ones are left out.

        Raises: DataError when the index points where no such document is.
        """
        for block in range(piece.begin, piece.end, _BLOCK):
            stop = min(block + _BLOCK, piece.end)
            bounds = self._starts(np.arange(block, stop + 1))
            self._check(block, stop, bounds)
            first = 0
            while first < stop - block:
                last = int(np.searchsorted(bounds, bounds[first] + BATCH_TOKENS, side="right")) - 1
                last = min(max(last, first + 1), stop - block)
                begin, end = int(bounds[first]), int(bounds[last])
                ends = np.unique(bounds[first + 1 : last + 1]) - begin  # an empty document ends where one before does
                if end > begin:
                    yield Batch(self._tokens[begin:end], ends[ends > 0], begin)
                first = last

    def _starts(self, documents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where documents begin, in tokens; the one behind the last begins where the file ends."""
        sequences = self._firsts[documents]
        whole = np.full(len(documents), len(self._tokens), dtype=np.int64)
        inside = (sequences >= 0) & (sequences < len(self._offsets))
        whole[inside] = self._offsets[sequences[inside]] // self.dtype.itemsize
        return whole

    def _check(self, begin: int, end: int, bounds: npt.NDArray[np.int64]) -> None:
        """The sequences of these documents lie one behind the other, within the file."""
        first, last = int(self._firsts[begin]), int(self._firsts[end])
        whole = bool((np.diff(bounds) >= 0).all()) and bounds[0] >= 0 and bounds[-1] <= len(self._tokens)
        if whole and 0 <= first <= last <= len(self._lengths):
            lengths = self._lengths[first:last].astype(np.int64)
            at = self._offsets[first:last]
            expected = bounds[0] * self.dtype.itemsize + (np.cumsum(lengths) - lengths) * self.dtype.itemsize
            if (lengths >= 0).all() and np.array_equal(at, expected) and lengths.sum() == bounds[-1] - bounds[0]:
                return
        raise DataError(
            f"{self.index}: documents {begin:,} to {end - 1:,} are not where {self.path.name} ({self._bytes:,} bytes) "
            "has them; one of the two was cut, or they belong to different data sets"
        )


def _codes() -> str:
    return ", ".join(f"{code} {np.dtype(name).name}" for code, name in DTYPES.items())


def _mapped(path: Path, dtype: str, offset: int, count: int) -> npt.NDArray[Any]:
    if not count:
        return np.empty(0, np.dtype(dtype))
    return np.memmap(path, dtype, "r", offset, (count,)).view(np.ndarray)
