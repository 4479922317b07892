"""What a token tar holds, for people: counts, whether it is whole, and a few documents as text."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.files import sha256_file
from pipeline.printable import printable
from pipeline.tokens.encode import Encoder
from pipeline.tokens.token_tars import INDEX, read_index

SAMPLE_TOKENS = 200  # shown of a document; three are: the first, one in the middle, the last
_MAX_HEADER = 10_000  # bytes of an .npy header


@dataclass(frozen=True)
class _Member:
    """A pair of members: ids (tokens,) and exclusive ends of the documents in them (documents,), both mapped."""

    ids: npt.NDArray[Any]
    ends: npt.NDArray[Any]

    def document(self, number: int) -> npt.NDArray[Any]:
        return self.ids[int(self.ends[number - 1]) if number else 0 : int(self.ends[number])]


def inspect_tar(tar: Path, tokenizer: Path | None = None) -> Iterator[str]:
    """Lines that describe a token tar and decode some of its documents, at most SAMPLE_TOKENS tokens of each.

    tokenizer: folder of the tokenizer; by default the one beside the tokens folder. Memory does not grow with the tar.
    Raises: DataError when it is no token tar, or is damaged.
    """
    members = list(_members(tar))
    if not members:
        raise DataError(f"{tar}: holds no member <key>.tokens.npy; it is no token tar")
    documents = sum(len(member.ends) for member in members)
    tokens = sum(len(member.ids) for member in members)
    yield f"{tar}: {tar.stat().st_size:,} bytes"
    yield f"  {tokens:,} tokens ({members[0].ids.dtype}), {documents:,} documents, {len(members):,} pairs of members"
    lengths = [np.diff(member.ends.astype(np.int64), prepend=0) for member in members if len(member.ends)]
    if lengths:
        shortest, longest = (f"{pick(map(pick, lengths)):,}" for pick in (min, max))
        yield f"  tokens in a document: {tokens / documents:,.0f} on average, {shortest} to {longest}"
    yield f"  largest id: {max(int(member.ids.max(initial=0)) for member in members):,}"
    yield f"  {_checked(tar)}"
    encoder = _encoder(tar, tokenizer)
    for number in sorted({0, documents // 2, documents - 1}) if documents else ():
        ids = _document(members, number)
        yield f"\ndocument {number:,}: {len(ids):,} tokens"
        yield _shown(ids[:SAMPLE_TOKENS], encoder) + (" …" if len(ids) > SAMPLE_TOKENS else "")


def _document(members: list[_Member], number: int) -> npt.NDArray[Any]:
    for member in members:
        if number < len(member.ends):
            return member.document(number)
        number -= len(member.ends)
    raise IndexError(number)


def _members(tar: Path) -> Iterator[_Member]:
    """The pairs of members, in order. Raises: DataError naming the member that is wrong."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    try:
        with open(tar, "rb") as handle, tarfile.TarFile(fileobj=handle, mode="r") as members:
            for member in members:
                key, _, kind = member.name.partition(".")
                if member.isreg() and kind in ("tokens.npy", "ends.npy"):
                    arrays[kind] = _map(tar, handle, member)
                if kind == "ends.npy" and "tokens.npy" in arrays:
                    yield _pair(f"{tar}: member {key!r}", arrays.pop("tokens.npy"), arrays.pop("ends.npy"))
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise DataError(f"{tar}: not a token tar, or damaged ({error}); fetch or make it again") from None
    except OSError as error:
        raise DataError(f"{tar}: cannot be read: {error.strerror or error}") from None


def _map(tar: Path, handle: IO[bytes], member: tarfile.TarInfo) -> npt.NDArray[Any]:
    """The array of a member. Raises: ValueError when it is none of integers in one dimension."""
    handle.seek(member.offset_data)
    np.lib.format.read_magic(handle)
    shape, _, dtype = np.lib.format.read_array_header_1_0(handle, max_header_size=_MAX_HEADER)
    offset = handle.tell()
    size = int(np.prod(shape)) * dtype.itemsize
    if len(shape) != 1 or dtype.kind != "u" or offset + size > member.offset_data + member.size:
        raise ValueError(f"member {member.name!r} is no row of unsigned integers")
    if not size:
        return np.empty(0, dtype)
    return np.memmap(tar, dtype, "r", offset, shape).view(np.ndarray)


def _pair(where: str, ids: npt.NDArray[Any], ends: npt.NDArray[Any]) -> _Member:
    if (len(ends) and (int(ends[-1]) != len(ids) or (ends[1:] < ends[:-1]).any())) or (len(ids) and not len(ends)):
        raise ValueError(f"{where}: the ends of its documents do not fit its {len(ids):,} tokens")
    return _Member(ids, ends)


def _checked(tar: Path) -> str:
    """Whether the tar is the one that the index of its folder means."""
    folder = tar.absolute().parent.parent
    if not (folder / INDEX).is_file():
        return "checksum: not compared, no index.json lies in the folder above"
    name = tar.absolute().relative_to(folder).as_posix()
    shard = next((shard for shard in read_index(folder).shards() if shard.file == name), None)
    if shard is None:
        return "checksum: not compared, index.json does not name this tar"
    if sha256_file(tar) != shard.sha256:
        raise DataError(f"{tar}: its checksum differs from the one in {folder / INDEX}; it was changed or damaged")
    return "checksum: that of index.json"


def _encoder(tar: Path, tokenizer: Path | None) -> Encoder | None:
    """Raises: DataError when a tokenizer is there but cannot be loaded."""
    beside = tar.absolute().parent.parent.parent / "tokenizer"
    if tokenizer is None and not (beside / "tokenizer.json").is_file():
        return None
    return Encoder.open(tokenizer or beside, fast=False)


def _shown(ids: npt.NDArray[Any], encoder: Encoder | None) -> str:
    """Ids as text; what would steer a terminal is escaped. As numbers where no tokenizer is there, or it lacks one."""
    if encoder is None or (len(ids) and int(ids.max()) >= encoder.vocab_size):
        return "(no tokenizer that fits lies beside it) " + " ".join(map(str, ids.tolist()))
    return printable(encoder.decode(ids), kept="\n")
