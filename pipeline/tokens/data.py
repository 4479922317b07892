"""Reading a tokens folder: the tokens of each source as one long array, over many files.

Windows are read by position (`preadv`), not mapped: a file that is cut while it is in use, or a disk that fails, is an
error with a name, where a mapped page would end the process (SIGBUS); and it is as fast (a warm window of 2,049 tokens
takes 2 µs either way).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.corpus.locations import is_remote, local_path, shown
from pipeline.errors import DataError
from pipeline.tokens.cache import ShardCache
from pipeline.tokens.integrity import BadShard, Integrity, Verify
from pipeline.tokens.token_tars import DOCUMENTS, OFFSET, TOKENS, Index, Shard, read_index

OPEN_SHARDS = 256  # at a time: each holds a file descriptor, of which a process has 1,024 by default
TOGETHER = 64  # windows that are read before they are widened: a quarter of a megabyte stays in the cache


class _File:
    """A file that is open for as long as anybody holds this."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.descriptor).st_size

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class ShardFiles:
    """The shards of a tokens folder that are open now; the one that was opened first makes room for a new one."""

    def __init__(self, place: Path | str, index: Index, integrity: Integrity, cache: ShardCache | None = None) -> None:
        self.place, self.dtype, self.vocab_size = place, index.dtype, index.vocab_size
        self.integrity, self.cache = integrity, cache
        self._open: OrderedDict[str, _File] = OrderedDict()
        self._seen: set[str] = set()
        self._lock = threading.Lock()  # validation reads on another thread than training

    def __call__(self, shard: Shard) -> _File:
        """Raises: BadShard when it is missing, or was cut or grown since it was indexed."""
        found = self._open.get(shard.file)
        if found is None:
            try:
                found = self._file(shard)
            except BadShard as error:
                self.integrity.problems[shard.file] = str(error)
                raise
            except OSError as error:
                raise self.bad(shard, f"cannot be read ({error.strerror})") from None
            if found.size != shard.bytes:
                raise self.bad(shard, self.integrity.cut(shard, found.size))
            with self._lock:
                if shard.file not in self._seen:
                    self._seen.add(shard.file)
                    if self.cache is None:  # what was fetched was verified on the way
                        self.integrity.opened(shard, Path(self.place) / shard.file)
                self._open[shard.file] = found
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
        return found

    def _file(self, shard: Shard) -> _File:
        if self.cache is None:
            return _File(Path(self.place) / shard.file)
        while True:
            path = self.cache.path(shard)
            with contextlib.suppress(FileNotFoundError):  # it had to make room before it could be opened
                return _File(path)

    def read(self, shard: Shard, position: int, into: npt.NDArray[Any]) -> None:
        """The tokens from `position` (in tokens, from the file's start) on into a row of the folder's type.

        Raises: BadShard.
        """
        file, wanted = self._open.get(shard.file) or self(shard), into.nbytes
        try:
            got = os.preadv(file.descriptor, [into], position * into.itemsize)  # type: ignore[list-item]
        except OSError as error:
            raise self.bad(shard, f"cannot be read at byte {position * into.itemsize:,} ({error.strerror})") from None
        if got != wanted:
            at = position * into.itemsize + got
            member = int(np.searchsorted(shard.members[:, OFFSET], at, side="right")) - 1
            raise self.bad(shard, f"ends before byte {at + 1:,}, in member {member}, though it was whole when opened")

    def bad(self, shard: Shard, why: str) -> BadShard:
        return self.integrity.bad(shard, why)


class SourceTokens:
    """The tokens of one source, concatenated over its members and shards, in order. Memory: 20 bytes a member."""

    def __init__(self, files: ShardFiles, shards: tuple[Shard, ...]) -> None:
        self.shards, self.files = shards, files
        counts = [len(shard.members) for shard in shards]
        self._shard = np.repeat(np.arange(len(shards), dtype=np.int32), counts)
        self._base = np.concatenate([shard.members[:, OFFSET] for shard in shards])
        self._base //= files.dtype.itemsize
        self._starts = np.zeros(len(self._shard) + 1, dtype=np.int64)
        np.cumsum(np.concatenate([shard.members[:, TOKENS] for shard in shards]), out=self._starts[1:])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def gather(self, starts: npt.NDArray[np.int64], out: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> None:
        """Copy the `out.shape[1]` tokens that begin at starts[i] into out[rows[i]], widened to int64.

        Starts must lie within the source, and so must starts + length.
        Raises: BadShard when a shard is missing, cut, or holds what is no token.
        """
        length, first = out.shape[1], self._members(starts)
        inside = (starts + length <= self._starts[first + 1]).tolist()
        places = (self._base[first] + starts - self._starts[first]).tolist()
        shards = self._shard[first].tolist()
        held = np.empty((min(len(starts), TOGETHER), length), dtype=self.files.dtype)
        for begin in range(0, len(starts), TOGETHER):
            now = slice(begin, begin + TOGETHER)
            block = held[: len(shards[now])]
            for row, shard, place, whole, start in zip(
                block, shards[now], places[now], inside[now], starts[now].tolist(), strict=True
            ):
                if whole:
                    self.files.read(self.shards[shard], place, row)
                else:
                    self._read_across(start, row)
            if block.size and int(block.max()) >= self.files.vocab_size:
                row, column = (int(index[0]) for index in np.nonzero(block >= self.files.vocab_size))
                raise self._no_token(int(starts[now][row]) + column, int(block[row, column]))
            out[rows[now]] = block

    def gather_pieces(
        self,
        starts: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        out: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        columns: npt.NDArray[np.int64],
    ) -> None:
        """Copy lengths[i] tokens from starts[i] on, all of one member, to out[rows[i], columns[i]:], widened to int64.

        Raises: BadShard when a shard is missing, cut, or holds what is no token.
        """
        members = self._members(starts)
        places = self._base[members] + starts - self._starts[members]
        held = np.empty(out.shape[1], dtype=self.files.dtype)
        pieces = (starts, lengths, rows, columns, places, self._shard[members])
        for start, length, row, column, place, shard in zip(*(each.tolist() for each in pieces), strict=True):
            piece = held[:length]
            self.files.read(self.shards[shard], place, piece)
            if int(piece.max()) >= self.files.vocab_size:
                at = int(np.argmax(piece >= self.files.vocab_size))
                raise self._no_token(start + at, int(piece[at]))
            out[row, column : column + length] = piece

    @property
    def documents(self) -> npt.NDArray[np.int64]:
        """The number of documents of each member."""
        return np.concatenate([shard.members[:, DOCUMENTS] for shard in self.shards])

    def member_start(self, member: int) -> int:
        """Where a member begins in the source."""
        return int(self._starts[member])

    def ends(self, member: int) -> npt.NDArray[np.int64]:
        """Where each document of a member ends in the source, exclusive. Raises: BadShard."""
        shard = self.shards[int(self._shard[member])]
        number = member - int(np.searchsorted(self._shard, self._shard[member]))  # within its shard
        _, tokens, offset, documents, _ = shard.members[number].tolist()
        found = np.empty(documents, dtype=np.uint32)
        self.files.read(shard, offset // found.itemsize, found)
        ends = found.astype(np.int64)
        if not documents or ends[-1] != tokens or (np.diff(ends) < 0).any():
            raise self.files.bad(
                shard,
                f"damaged at byte {offset:,}, in member {number}: the ends of its documents do not rise to {tokens:,}",
            )
        return ends + int(self._starts[member])

    def shard_range(self, starts: npt.NDArray[np.int64], length: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The first and the last of `shards` that `length` tokens from each start lie in."""
        return self._shard[self._members(starts)], self._shard[self._members(starts + length - 1)]

    def _members(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.searchsorted(self._starts, positions, side="right") - 1

    def _read_across(self, start: int, row: npt.NDArray[Any]) -> None:
        """One window that spans members."""
        done = 0
        member = int(np.searchsorted(self._starts, start, side="right")) - 1
        while done < len(row):
            offset = start + done - int(self._starts[member])
            taken = min(len(row) - done, int(self._starts[member + 1] - self._starts[member]) - offset)
            place = int(self._base[member]) + offset
            self.files.read(self.shards[int(self._shard[member])], place, row[done : done + taken])
            done += taken
            member += 1

    def _no_token(self, position: int, token: int) -> BadShard:
        """The error of a token that is not in the vocabulary (a GPU would only say that an assertion failed): which
        file it stands in, and where."""
        member = int(self._members(np.array([position]))[0])
        number = member - int(np.searchsorted(self._shard, self._shard[member]))  # within its shard
        at = (int(self._base[member]) + position - int(self._starts[member])) * self.files.dtype.itemsize
        return self.files.bad(
            self.shards[int(self._shard[member])],
            f"damaged at byte {at:,}, in member {number}: token {token:,}, of a vocabulary of "
            f"{self.files.vocab_size:,}",
        )


class TokenData:
    """A tokens folder, open for reading. fingerprint: names its tokens; vocab_size; eos_id."""

    def __init__(self, place: Path | str, index: Index, integrity: Integrity, cache: ShardCache | None = None) -> None:
        self.folder, self.index, self.integrity, self.cache = place, index, integrity, cache
        self.fingerprint, self.vocab_size, self.eos_id = index.fingerprint, index.vocab_size, index.eos_id
        self.files = ShardFiles(place, index, integrity, cache)

    @classmethod
    def open(
        cls,
        place: Path | str,
        verify: Verify = "never",
        memory: Path | None = None,
        cache: Path | None = None,
        cache_bytes: int = 0,
    ) -> TokenData:
        """place: a folder, or a URL (any that fsspec knows). verify, memory: as in `Integrity`. cache: of a URL, the
        local folder for its shards; cache_bytes: its bound.

        Raises: DataError when the index is missing or damaged.
        """
        fetched = None
        if isinstance(place, str) and not is_remote(place):
            place = local_path(place)
        if isinstance(place, str):
            if cache is None:
                raise DataError(f"{shown(place)}: remote tokens need a local folder for their shards (cache)")
            fetched = ShardCache(place, cache, cache_bytes)
        index = fetched.index() if fetched else read_index(Path(place))
        place = fetched.url if fetched else place  # without what may be secret in it: it stands in messages
        return cls(place, index, Integrity(place, verify, index.dtype.itemsize, memory), fetched)

    def close(self) -> None:
        """End what works in the background."""
        self.integrity.close()
        if self.cache is not None:
            self.cache.close()

    def __enter__(self) -> TokenData:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def want(self, shards: Iterable[Shard]) -> None:
        """Say which shards will be read soon: remote ones are fetched in the background."""
        if self.cache is not None:
            self.cache.want(shards)

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
        return SourceTokens(self.files, self.index.parts[part][source])

    def _shards(self, part: str, source: str | None) -> list[Shard]:
        sources = self.index.parts.get(part, {})
        return [shard for name, shards in sources.items() if source in (None, name) for shard in shards]
