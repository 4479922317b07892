"""Reading a tokens folder: the tokens of each source as one long array, over many mapped files."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.tokens.token_tars import OFFSET, TOKENS, Index, Shard, map_shard, read_index

OPEN_SHARDS = 256  # mapped at a time: each holds a file descriptor, of which a process has 1,024 by default


class _Maps:
    """The shards of a tokens folder that are mapped now; the one that was mapped first makes room for a new one."""

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        self.folder, self.dtype = folder, dtype
        self._open: OrderedDict[str, npt.NDArray[Any]] = OrderedDict()

    def __call__(self, shard: Shard) -> npt.NDArray[Any]:
        mapped = self._open.get(shard.file)
        if mapped is None:
            mapped = self._open[shard.file] = map_shard(self.folder, shard, self.dtype)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        return mapped


class SourceTokens:
    """The tokens of one source, concatenated over its members and shards, in order. Memory: a few numbers a member."""

    def __init__(self, maps: _Maps, shards: tuple[Shard, ...]) -> None:
        self.shards, self._maps = shards, maps
        members = np.concatenate([shard.members for shard in shards])
        self._shard = np.repeat(np.arange(len(shards)), [len(shard.members) for shard in shards])
        self._base = members[:, OFFSET] // maps.dtype.itemsize
        self._starts = np.concatenate(([0], np.cumsum(members[:, TOKENS])))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def gather(self, starts: npt.NDArray[np.int64], out: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> None:
        """Copy the `out.shape[1]` tokens that begin at starts[i] into out[rows[i]], widened to int64.

        Starts must lie within the source, and so must starts + length.
        Raises: DataError when a shard is missing or cut.
        """
        length = out.shape[1]
        first = np.searchsorted(self._starts, starts, side="right") - 1
        inside = (starts + length <= self._starts[first + 1]).tolist()
        places = (self._base[first] + starts - self._starts[first]).tolist()
        shards = self._shard[first].tolist()
        for start, row, shard, place, whole in zip(starts.tolist(), rows.tolist(), shards, places, inside, strict=True):
            if whole:
                out[row] = self._maps(self.shards[shard])[place : place + length]
            else:
                self._copy(start, out[row])

    def _copy(self, start: int, row: npt.NDArray[np.int64]) -> None:
        """One window that spans members."""
        done = 0
        member = int(np.searchsorted(self._starts, start, side="right")) - 1
        while done < len(row):
            offset = start + done - int(self._starts[member])
            taken = min(len(row) - done, int(self._starts[member + 1] - self._starts[member]) - offset)
            place = int(self._base[member]) + offset
            row[done : done + taken] = self._maps(self.shards[int(self._shard[member])])[place : place + taken]
            done += taken
            member += 1


class TokenData:
    """A tokens folder, open for reading. fingerprint: names its tokens; vocab_size; eos_id."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder, self.index = folder, index
        self.fingerprint, self.vocab_size, self.eos_id = index.fingerprint, index.vocab_size, index.eos_id
        self._maps = _Maps(folder, index.dtype)

    @classmethod
    def open(cls, folder: Path) -> TokenData:
        """Raises: DataError when the index is missing or damaged."""
        return cls(folder, read_index(folder))

    def sources(self, part: str) -> list[str]:
        """Names of the sources that have tokens in a part, sorted."""
        return sorted(source for source in self.index.parts.get(part, {}) if self.tokens(part, source))

    def tokens(self, part: str, source: str | None = None) -> int:
        """Tokens of a part (`train`, `validation`), or of one source in it; end-of-text tokens included."""
        return sum(shard.tokens for shard in self._shards(part, source))

    def documents(self, part: str, source: str | None = None) -> int:
        """Documents of a part, or of one source in it."""
        return sum(shard.documents for shard in self._shards(part, source))

    def bytes(self, part: str, source: str | None = None) -> int:
        """Bytes of text (UTF-8) that the tokens stand for, end-of-text tokens standing for none."""
        return sum(shard.text_bytes for shard in self._shards(part, source))

    def source(self, part: str, source: str) -> SourceTokens:
        """The tokens of one source, to read windows from.

        Raises: DataError when there is no such source in that part.
        """
        if source not in self.index.parts.get(part, {}):
            known = ", ".join(self.sources(part)) or "none"
            raise DataError(f"{self.folder}: no source '{source}' in {part}; there are: {known}")
        return SourceTokens(self._maps, self.index.parts[part][source])

    def _shards(self, part: str, source: str | None) -> list[Shard]:
        sources = self.index.parts.get(part, {})
        return [shard for name, shards in sources.items() if source in (None, name) for shard in shards]
