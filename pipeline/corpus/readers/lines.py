"""Lines and paragraphs of a file, or of a range of it: none larger than MAX_RECORD_BYTES is held in memory."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import IO, Any, cast

from pipeline.corpus.compressed import open_stream, read_some
from pipeline.corpus.locations import Item
from pipeline.corpus.readers import records
from pipeline.corpus.readers.encoding import mark

Piece = tuple[int, bytes | int]  # offset of its first byte, and its bytes; or its size alone when it is too large


def lines(handle: IO[bytes], item: Item) -> Iterator[Piece]:
    """Lines that begin within the item's range of bytes, line ends included, in UTF-8 or a set that extends ASCII.

    A file in UTF-16 or UTF-32 (by its byte order mark) is turned into UTF-8 first, and read as a whole by whoever reads
    its first range. The byte order mark is left out.
    """
    if item.start and mark(handle.read(4)) not in (None, _UTF8):
        return
    if not item.start:
        beginning = cast(io.BufferedReader, handle).peek(4)[:4]
        joined = handle
        if len(beginning) < 4:  # a stream that gives less than it could
            beginning = handle.read(4)
            joined = io.BufferedReader(_Joined(beginning, handle), 1 << 20)
        found = mark(beginning)
        if found is not None and found != _UTF8:
            name, sign = found
            joined.read(len(sign))
            item = Item(item.path, item.name, item.size)
            joined = io.BufferedReader(_Transcoded(joined, name), 1 << 20)
        for offset, raw in _lines(joined, item, 0):
            yield offset, raw.removeprefix(codecs.BOM_UTF8) if not offset and isinstance(raw, bytes) else raw
        return
    handle.seek(item.start - 1)  # a line that begins before the range belongs to the one before
    yield from _lines(handle, item, item.start + _skip_line(handle) - 1)


_UTF8 = mark(codecs.BOM_UTF8)


def _lines(handle: IO[bytes], item: Item, offset: int) -> Iterator[Piece]:
    while item.end is None or offset < item.end:
        raw = handle.readline(records.MAX_RECORD_BYTES + 1)
        if not raw:
            return
        size = len(raw)
        if size > records.MAX_RECORD_BYTES and not raw.endswith(b"\n"):
            size += _skip_line(handle)
            yield offset, size
        else:
            yield offset, raw
        offset += size


class _Joined(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, beginning: bytes, rest: IO[bytes]) -> None:
        self._beginning, self._rest = beginning, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._beginning[: len(buffer)]
        self._beginning = self._beginning[len(data) :]
        data = data or read_some(self._rest, len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Transcoded(io.RawIOBase):
    """UTF-8 of a stream in another encoding; what cannot be decoded becomes U+FFFD."""

    def __init__(self, handle: IO[bytes], name: str) -> None:
        self._handle = handle
        self._decoder = codecs.getincrementaldecoder(name)("replace")
        self._ready = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._ready and not self._ended:
            block = read_some(self._handle, 1 << 16)
            self._ended = not block
            self._ready = self._decoder.decode(block, self._ended).encode("utf-8", "replace")
        data, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def paragraphs(handle: IO[bytes], item: Item) -> Iterator[Piece]:
    """Runs of lines between blank lines."""
    start, size, held = 0, 0, bytearray()
    for offset, raw in lines(handle, item):
        if isinstance(raw, bytes) and not raw.strip():
            if size:
                yield start, bytes(held) if size == len(held) else size
            size, held = 0, bytearray()
            continue
        start = start if size else offset
        size += raw if isinstance(raw, int) else len(raw)
        if isinstance(raw, bytes) and size <= records.MAX_RECORD_BYTES:
            held += raw
    if size:
        yield start, bytes(held) if size == len(held) else size


def _skip_line(handle: IO[bytes]) -> int:
    """Read to the end of the line; how many bytes that was."""
    size = 0
    while block := handle.readline(1 << 20):
        size += len(block)
        if block.endswith(b"\n"):
            break
    return size


def line_number(path: str, offset: int) -> int:
    """The number, from 1, of the line that begins at `offset`: counted only when an error must name it."""
    number = 1
    with open_stream(path) as handle:
        while offset and (block := handle.read(min(offset, 1 << 20))):
            number += block.count(b"\n")
            offset -= len(block)
    return number
