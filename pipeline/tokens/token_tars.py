"""Token tars: uncompressed USTAR files whose members are `.npy` arrays of token ids, and the index over them.

A shard holds pairs of members `<key>.tokens.npy` (1-D, uint16, or uint32 where the vocabulary exceeds 65,536) and
`<key>.ends.npy` (1-D uint32: the exclusive end of each document in the former). Every document ends with the
end-of-text token and lies in one member. Stock `webdataset` reads the tars; because USTAR payloads start at multiples
of 512 bytes and an `.npy` header is a multiple of 64, `index.json` can give the byte offset of the ids themselves, and
they are read by mapping the file, with no parsing.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import orjson

from pipeline.errors import DataError
from pipeline.files import TEMPORARY, atomic_write, fingerprint, write_text

FORMAT = 1
INDEX = "index.json"
BLOCK = 512  # of a tar: a header, and the padding of a payload
MAX_MEMBER_BYTES = 8 * 1024**3 - 1  # USTAR's size field has eleven octal digits


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest type that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


# Columns of Shard.members. The offsets are of the ids and of the ends themselves, in bytes from the tar's start.
OFFSET, TOKENS, ENDS_OFFSET, DOCUMENTS = range(4)
COLUMNS = ("offset", "tokens", "ends_offset", "documents")


@dataclass(frozen=True, eq=False)
class Shard:
    """One token tar. file: relative to the tokens folder; bytes: its size; text_bytes: UTF-8 bytes that it encodes;
    members: (members, 4) int64, with the columns above (an array: ten trillion tokens have 600,000 of them)."""

    file: str
    bytes: int
    sha256: str
    text_bytes: int
    members: npt.NDArray[np.int64]

    @property
    def tokens(self) -> int:
        return int(self.members[:, TOKENS].sum())

    @property
    def documents(self) -> int:
        return int(self.members[:, DOCUMENTS].sum())

    def to_json(self) -> dict[str, Any]:
        """Plain values; `members` becomes a list of rows."""
        return {**vars(self), "members": self.members.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Shard:
        """Raises: ValueError, KeyError or TypeError where `value` is no such thing."""
        members = np.array(value["members"], dtype=np.int64).reshape(-1, len(COLUMNS))
        return cls(**{**value, "members": members})


class _Hashed:
    """A file that is written front to back, checksummed on the way."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle, self.digest, self.position = handle, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self.position += self.handle.write(data)

    def pad(self, multiple: int) -> None:
        self.write(bytes(-self.position % multiple))


class ShardWriter:
    """Writes token tars `<stem>-<part:03d>.tar` under `folder`/`part`; the bytes depend on the documents only.

    A member is closed once it holds `member_tokens` tokens, a tar once it holds `shard_tokens`. Use as a context
    manager: after an error nothing half-written stays. Raises: EnvironmentFault when the disk is full.
    """

    def __init__(self, folder: Path, stem: str, dtype: np.dtype[Any], shard_tokens: int, member_tokens: int) -> None:
        """folder: the tokens folder; stem: such as `train/python-00000`."""
        self.folder, self.stem, self.dtype = folder, stem, dtype
        self.shard_tokens, self.member_tokens = shard_tokens, member_tokens
        self.shards: list[Shard] = []
        self._ids: list[npt.NDArray[Any]] = []
        self._ends: list[npt.NDArray[np.int64]] = []
        self._held = self._written = self._text_bytes = 0
        self._open_tar: ExitStack | None = None

    def add(self, ids: npt.NDArray[Any], ends: npt.NDArray[np.int64], text_bytes: int) -> None:
        """Append whole documents: their ids (each ending with end-of-text), exclusive ends and bytes of text.

        All of them go to one tar; call with a few megabytes at a time.
        """
        start = 0
        while start < len(ends):
            begin = int(ends[start - 1]) if start else 0
            room = self.member_tokens - self._held
            # documents up to and including the one that fills the member
            stop = min(int(np.searchsorted(ends, begin + room)) + 1, len(ends))
            self._ids.append(ids[begin : int(ends[stop - 1])].astype(self.dtype))
            self._ends.append(ends[start:stop] - begin + self._held)
            self._held += int(ends[stop - 1]) - begin
            start = stop
            if self._held >= self.member_tokens:
                self._flush()
        self._text_bytes += text_bytes
        if self._written + self._held >= self.shard_tokens:
            self._close_shard()

    def close(self) -> None:
        """Finish the last tar."""
        self._close_shard()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._open_tar is not None:
            self._open_tar.__exit__(kind, error, trace)

    def _flush(self) -> None:
        """Write the collected documents as one member."""
        if not self._ends:
            return
        if self._open_tar is None:
            self._file = f"{self.stem}-{len(self.shards):03d}.tar"
            self._members: list[list[int]] = []
            self._open_tar = ExitStack()
            self._out = _Hashed(self._open_tar.enter_context(atomic_write(self.folder / self._file)))
        ids, ends = np.concatenate(self._ids), np.concatenate(self._ends).astype(np.uint32)
        if ids.nbytes + 1024 > MAX_MEMBER_BYTES or len(ids) >= 1 << 32:
            raise DataError(
                f"{self.folder / self._file}: one document has {len(ids):,} tokens, more than a tar member may hold; "
                "cut it (corpus.rules.max_characters)"
            )
        key = f"{Path(self._file).stem}-{len(self._members):05d}"
        offset = self._write(f"{key}.tokens.npy", ids)
        ends_offset = self._write(f"{key}.ends.npy", ends)
        self._members.append([offset, len(ids), ends_offset, len(ends)])
        self._written += len(ids)
        self._ids, self._ends, self._held = [], [], 0

    def _write(self, name: str, array: npt.NDArray[Any]) -> int:
        """Append one `.npy` member; returns the offset of its data."""
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        info = tarfile.TarInfo(name)
        info.size, info.mode = header.tell() + array.nbytes, 0o644
        self._out.write(info.tobuf(tarfile.USTAR_FORMAT))
        self._out.write(header.getvalue())
        offset = self._out.position
        self._out.write(array.data.cast("B"))
        self._out.pad(BLOCK)
        return offset

    def _close_shard(self) -> None:
        self._flush()
        if self._open_tar is None:
            return
        self._out.write(bytes(2 * BLOCK))
        self._out.pad(tarfile.RECORDSIZE)
        self._open_tar.close()
        self._open_tar = None
        digest, size = self._out.digest.hexdigest(), self._out.position
        members = np.array(self._members, dtype=np.int64)
        self.shards.append(Shard(self._file, size, digest, self._text_bytes, members))
        self._written = self._text_bytes = 0


# --- the index -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Index:
    """What a tokens folder holds. parts: `train` and `validation` → source → its shards, in order."""

    vocab_size: int
    eos_id: int
    parts: dict[str, dict[str, tuple[Shard, ...]]]

    @property
    def dtype(self) -> np.dtype[Any]:
        return token_dtype(self.vocab_size)

    @property
    def fingerprint(self) -> str:
        """Names the tokens: equal shards in equal order give an equal fingerprint."""
        shards = {
            part: {source: [shard.sha256 for shard in shards] for source, shards in sources.items()}
            for part, sources in self.parts.items()
        }
        return fingerprint([FORMAT, self.vocab_size, self.eos_id, shards])


def write_index(folder: Path, index: Index) -> Path:
    """Write index.json: one line a shard, so that it stays small and can be read by eye."""
    head = {
        "format": FORMAT,
        "fingerprint": index.fingerprint,
        "dtype": index.dtype.name,
        "vocab_size": index.vocab_size,
        "eos_id": index.eos_id,
        "member": COLUMNS,
    }
    parts = []
    for part, sources in index.parts.items():
        lines = []
        for source, shards in sources.items():
            rows = ",\n   ".join(json.dumps(shard.to_json()) for shard in shards)
            lines.append(f"  {json.dumps(source)}: [\n   {rows}]")
        parts.append(f" {json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n }")
    body = json.dumps(head, indent=1)[:-2] + ',\n "parts": {\n' + ",\n".join(parts) + "\n }\n}\n"
    write_text(folder / INDEX, body)
    return folder / INDEX


def read_index(folder: Path) -> Index:
    """Read a tokens folder's index.

    Raises: DataError when it is missing or damaged.
    """
    path = folder / INDEX
    try:
        value = orjson.loads(path.read_bytes())
        parts = {
            part: {source: tuple(map(Shard.from_json, shards)) for source, shards in sources.items()}
            for part, sources in value["parts"].items()
        }
        index = Index(int(value["vocab_size"]), int(value["eos_id"]), parts)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; stage tokenize makes it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not an index of token tars ({error!r}); delete {folder} and tokenize again") from None
    if value.get("format") != FORMAT or value.get("fingerprint") != index.fingerprint:
        raise DataError(f"{path}: changed after it was written; delete {folder} and tokenize again")
    return index


# --- reading -------------------------------------------------------------------------------------------------------


def map_shard(folder: Path, shard: Shard, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A whole tar as one read-only array of `dtype`: the ids of a member begin at its offset / itemsize.

    Raises: DataError when the file is missing, or was cut or grown since it was indexed.
    """
    path = folder / shard.file
    try:
        size = path.stat().st_size
        if size == shard.bytes:
            return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); delete {folder} and tokenize again") from None
    whole = int((shard.members[:, OFFSET] + shard.members[:, TOKENS] * dtype.itemsize <= size).sum())
    raise DataError(
        f"{path}: truncated or changed: {size:,} bytes where the index says {shard.bytes:,} ({whole} of "
        f"{len(shard.members)} members are whole); delete {folder} and tokenize again"
    )


def documents(folder: Path, shard: Shard, dtype: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    """The ids of each document of a shard, end-of-text included."""
    ids = map_shard(folder, shard, dtype)
    raw = map_shard(folder, shard, np.dtype(np.uint32))
    for offset, _, ends_offset, count in shard.members.tolist():
        base, start = offset // dtype.itemsize, 0
        for end in raw[ends_offset // 4 : ends_offset // 4 + count].tolist():
            yield ids[base + start : base + end]
            start = end


def remove_temporary(folder: Path) -> None:
    """Delete what a killed process left half-written."""
    for path in folder.rglob(f"*{TEMPORARY}"):
        path.unlink(missing_ok=True)
