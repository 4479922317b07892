"""Token tars: uncompressed USTAR files whose members are `.npy` arrays of token ids, and the index over them.

A shard holds pairs of members `<key>.tokens.npy` (1-D, uint16, or uint32 where the vocabulary exceeds 65,536) and
`<key>.ends.npy` (1-D uint32: the exclusive end of each document in the former). Every document ends with the
end-of-text token and lies in one member. Stock `webdataset` reads the tars; because USTAR payloads start at multiples
of 512 bytes and an `.npy` header is a multiple of 64, the index can give the byte offset of the ids themselves, and
they are read by mapping the file, with no parsing.

The index is two files: `index.json`, a line for each shard, and `members.npy`, a row for each member, which is mapped
too: ten trillion tokens have 600,000 members.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from pipeline.errors import DataError
from pipeline.files import TEMPORARY, Hashed, atomic_write, fingerprint, sha256_file, write_text

FORMAT = 3  # of the index
INDEX, MEMBERS = "index.json", "members.npy"
BLOCK = 512  # of a tar: a header, and the padding of a payload
MAX_MEMBER_BYTES = 8 * 1024**3 - 1  # USTAR's size field has eleven octal digits


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest type that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


# Columns of Shard.members. The offsets are of the ids and of the ends themselves, in bytes from the tar's start.
OFFSET, TOKENS, ENDS_OFFSET, DOCUMENTS, CRC32 = range(5)  # the last: of the ids, then the ends; says where damage is
COLUMNS = ("offset", "tokens", "ends_offset", "documents", "crc32")
_FILE, _SHA256 = re.compile(r"(train|validation)/[^/\0]+\.tar"), re.compile(r"[0-9a-f]{64}")
SHARD_COLUMNS = ("file", "bytes", "sha256", "text_bytes", "tokens", "documents", "members")  # of a row in index.json


@dataclass(frozen=True, eq=False, slots=True)
class Shard:
    """One token tar. file: relative to the tokens folder; bytes: its size; text_bytes: UTF-8 bytes that it encodes;
    tokens, documents: in all members; members: (members, 5) int64, with the columns above."""

    file: str
    bytes: int
    sha256: str
    text_bytes: int
    tokens: int
    documents: int
    members: npt.NDArray[np.int64]

    @classmethod
    def of(cls, file: str, size: int, sha256: str, text_bytes: int, members: npt.NDArray[np.int64]) -> Shard:
        """A shard of these members; size: of the file, in bytes."""
        tokens, documents = (int(members[:, column].sum()) for column in (TOKENS, DOCUMENTS))
        return cls(file, size, sha256, text_bytes, tokens, documents, members)

    def row(self) -> list[Any]:
        """The values of SHARD_COLUMNS, in which `members` is how many they are."""
        return [self.file, self.bytes, self.sha256, self.text_bytes, self.tokens, self.documents, len(self.members)]

    def to_json(self) -> dict[str, Any]:
        """Plain values, members and all."""
        names = ("file", "bytes", "sha256", "text_bytes")
        return {name: getattr(self, name) for name in names} | {"members": self.members.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Shard:
        """Raises: ValueError, KeyError or TypeError where `value` is no such thing."""
        members = np.array(value["members"], dtype=np.int64).reshape(-1, len(COLUMNS))
        return cls.of(value["file"], value["bytes"], value["sha256"], value["text_bytes"], members)


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
            self._out = Hashed(self._open_tar.enter_context(atomic_write(self.folder / self._file, own=True)))
        if self._held * self.dtype.itemsize + 1024 > MAX_MEMBER_BYTES or self._held >= 1 << 32:
            raise DataError(
                f"{self.folder / self._file}: one document has {self._held:,} tokens, more than a tar member may hold; "
                "cut it (corpus.rules.max_characters)"
            )
        ends = np.concatenate(self._ends).astype(np.uint32)
        key = member_key(self._file, len(self._members))
        offset, crc32 = self._write(f"{key}.tokens.npy", self._ids)
        ends_offset, crc32 = self._write(f"{key}.ends.npy", [ends], crc32)
        self._members.append([offset, self._held, ends_offset, len(ends), crc32])
        self._written += self._held
        self._ids, self._ends, self._held = [], [], 0

    def _write(self, name: str, pieces: list[npt.NDArray[Any]], crc32: int = 0) -> tuple[int, int]:
        """Append one `.npy` member, an array in pieces; returns the offset of its data, and the CRC-32 with theirs."""
        header = io.BytesIO()
        about = np.lib.format.header_data_from_array_1_0(pieces[0]) | {"shape": (sum(map(len, pieces)),)}
        np.lib.format.write_array_header_1_0(header, about)
        info = tarfile.TarInfo(name)
        info.size, info.mode = header.tell() + sum(piece.nbytes for piece in pieces), 0o644
        self._out.write(info.tobuf(tarfile.USTAR_FORMAT))
        self._out.write(header.getvalue())
        offset = self._out.position
        for piece in filter(len, pieces):
            data = piece.data.cast("B")
            self._out.write(data)
            crc32 = zlib.crc32(data, crc32)
        self._out.pad(BLOCK)
        return offset, crc32

    def _close_shard(self) -> None:
        self._flush()
        if self._open_tar is None:
            return
        self._out.write(bytes(2 * BLOCK))
        self._out.pad(tarfile.RECORDSIZE)
        self._open_tar.close()
        self._open_tar = None
        digest, size = self._out.sha256, self._out.position
        members = np.array(self._members, dtype=np.int64)
        self.shards.append(Shard.of(self._file, size, digest, self._text_bytes, members))
        self._written = self._text_bytes = 0


def member_key(file: str, number: int) -> str:
    """What the two files of a member are called within their tar, less `.tokens.npy` and `.ends.npy`."""
    return f"{Path(file).stem}-{number:05d}"


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
        return fingerprint([1, self.vocab_size, self.eos_id, shards])

    def shards(self) -> Iterator[Shard]:
        """All shards, in the order of the rows of the members' table."""
        return (shard for sources in self.parts.values() for shards in sources.values() for shard in shards)


def write_index(folder: Path, index: Index) -> Path:
    """Write members.npy, then index.json: one line a shard, so that it stays small and can be read by eye."""
    tables = [shard.members for shard in index.shards()] or [np.empty((0, len(COLUMNS)), np.int64)]
    with atomic_write(folder / MEMBERS) as handle:
        out = Hashed(handle)
        # by columns: who wants the lengths of all members touches a fifth of the file
        np.save(out, np.asfortranarray(np.concatenate(tables)))
    head = {
        "format": FORMAT,
        "fingerprint": index.fingerprint,
        "dtype": index.dtype.name,
        "vocab_size": index.vocab_size,
        "eos_id": index.eos_id,
        "members": {"file": MEMBERS, "sha256": out.sha256, "columns": COLUMNS},
        "columns": SHARD_COLUMNS,
    }
    parts = []
    for part, sources in index.parts.items():
        lines = []
        for source, shards in sources.items():
            rows = ",\n   ".join(json.dumps(shard.row()) for shard in shards)
            lines.append(f"  {json.dumps(source)}: [\n   {rows}]")
        parts.append(f" {json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n }")
    body = json.dumps(head, indent=1)[:-2] + ',\n "parts": {\n' + ",\n".join(parts) + "\n }\n}\n"
    write_text(folder / INDEX, body)
    return folder / INDEX


def read_index(folder: Path) -> Index:
    """Read a tokens folder's index. The members' table is checksummed, and mapped.

    Raises: DataError when it is missing or damaged.
    """
    path = folder / INDEX
    try:
        value = orjson.loads(path.read_bytes())
        if value["format"] != FORMAT:
            raise DataError(f"{path}: has format {value['format']}, not {FORMAT}; delete {folder} and tokenize again")
        table = _read_members(folder / MEMBERS, value["members"]["sha256"])
        first = 0
        parts: dict[str, dict[str, tuple[Shard, ...]]] = {}
        for part, sources in value["parts"].items():
            parts[part] = {}
            for source, rows in sources.items():
                shards = []
                for file, size, sha256, text_bytes, ids, held, count in rows:
                    if not _FILE.fullmatch(file) or not _SHA256.fullmatch(sha256):  # both become paths
                        raise ValueError(f"{file!r} with checksum {sha256!r} is no token tar of this folder")
                    members = table[first : first + count]
                    shards.append(Shard(file, size, sha256, text_bytes, ids, held, members))
                    first += count
                parts[part][source] = tuple(shards)
        index = Index(int(value["vocab_size"]), int(value["eos_id"]), parts)
        tokens = sum(shard.tokens for shard in index.shards())
        known = value["fingerprint"] == index.fingerprint and (first, tokens) == (len(table), table[:, TOKENS].sum())
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: no such file; stage tokenize makes it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not an index of token tars ({error!r}); delete {folder} and tokenize again") from None
    if not known:
        raise DataError(f"{path}: changed after it was written; delete {folder} and tokenize again")
    return index


def _read_members(path: Path, sha256: str) -> npt.NDArray[np.int64]:
    """The members' table, mapped. Raises: DataError when it is not the one that index.json means."""
    if sha256_file(path) != sha256:
        raise DataError(f"{path}: changed after it was written; delete {path.parent} and tokenize again")
    table: npt.NDArray[np.int64] = np.lib.format.open_memmap(path, mode="r").view(np.ndarray)
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != len(COLUMNS) or table.min(initial=0) < 0:
        raise ValueError(f"{path.name} is no table of members")
    return table


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
    for offset, _, ends_offset, count, _ in shard.members.tolist():
        base, start = offset // dtype.itemsize, 0
        for end in raw[ends_offset // 4 : ends_offset // 4 + count].tolist():
            yield ids[base + start : base + end]
            start = end


def remove_temporary(folder: Path) -> None:
    """Delete what a killed process left half-written."""
    for path in folder.rglob(f"*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def remove_strays(folder: Path, index: Index) -> None:
    """Delete tars that the fast encoder made before it was caught, where `tokenizers` made fewer of a task."""
    known = {shard.file for shard in index.shards()}
    for part in index.parts:
        for path in (folder / part).glob("*.tar"):
            if path.relative_to(folder).as_posix() not in known:
                path.unlink()
