"""Open plain, .gz, .zst, .bz2 and .xz files, local or remote, as one kind of stream.

Decompressed bit by bit, in constant memory whatever the file asks for; every fault is a `BadFile`.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import zstandard

from pipeline.corpus.locations import BadFile, open_raw, shown, suffix

PACKED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
_INPUT = 256  # compressed bytes at a time: zstd may make 128 KiB of 4 bytes, so 8 MiB of these at the worst
_LONGEST_WINDOW = 1 << 27  # bytes that a zstd frame may ask to be kept: what `zstd --long` makes, and no more
_MOST_LZMA = 1 << 28  # bytes that an xz stream may ask for: four times what `xz -9` does


class _ZstdStream(io.RawIOBase):
    """Decompressed bytes of all frames of a zstd file. Unlike zstandard's own reader it tells a file that is cut."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._input = self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        while not self._output:
            if not self._input and not (block := self._handle.read(_INPUT)):
                if self._frame is not None:
                    raise EOFError("the last frame is not whole")
                return 0
            if not self._input:
                self._input = memoryview(block)
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=_LONGEST_WINDOW).decompressobj()
            self._output = memoryview(self._frame.decompress(self._input))
            self._input = memoryview(self._frame.unused_data)
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def close(self) -> None:
        self._handle.close()
        super().close()


class _XzStream(io.RawIOBase):
    """Decompressed bytes of all streams of an xz file. Unlike the standard library's reader it bounds their memory."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._stream: lzma.LZMADecompressor | None = None
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        while True:
            hungry = self._stream is None or self._stream.needs_input
            if hungry and not self._left and not (block := self._handle.read(1 << 16)):
                if self._stream is not None:
                    raise EOFError("the last stream is not whole")
                return 0
            if hungry and not self._left:
                self._left = block
            if self._stream is None:
                self._left = self._left.lstrip(b"\0")  # padding between two streams
                if not self._left:
                    continue
                self._stream = lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=_MOST_LZMA)
            given, self._left = (self._left, b"") if hungry else (b"", self._left)
            data = self._stream.decompress(given, len(buffer))
            if self._stream.eof:
                self._left, self._stream = self._stream.unused_data, None
            if data:
                buffer[: len(data)] = data
                return len(data)

    def close(self) -> None:
        self._handle.close()
        super().close()


@contextlib.contextmanager
def open_stream(path: Path | str) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed when its name ends in .gz, .zst, .bz2 or .xz, in constant memory.

    path: or URL. Raises: BadFile naming the file when it cannot be read, ends early or is not what its name says.
    """
    location, kind = str(path), suffix(str(path))
    try:
        with contextlib.ExitStack() as stack:
            handle: IO[bytes] = cast(IO[bytes], stack.enter_context(open_raw(location)))
            if kind == ".gz":
                handle = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=handle)))
            elif kind == ".bz2":
                handle = cast(IO[bytes], stack.enter_context(bz2.BZ2File(handle)))
            elif kind == ".xz":
                handle = stack.enter_context(io.BufferedReader(_XzStream(handle), 1 << 20))
            elif kind == ".zst":
                handle = stack.enter_context(io.BufferedReader(_ZstdStream(handle), 1 << 20))
            yield handle
    except EOFError:
        raise BadFile(
            f"{shown(location)}: the compressed file ends early; it is not whole, fetch or make it again"
        ) from None
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError, lzma.LZMAError) as error:
        raise BadFile(_damaged(location, kind, error)) from None
    except OSError as error:
        if kind == ".bz2" and error.errno is None:
            raise BadFile(_damaged(location, kind, error)) from None
        raise BadFile(f"{shown(location)}: cannot be read: {error.strerror or error}") from None


def read_some(handle: IO[bytes], size: int) -> bytes:
    """At most `size` bytes of a stream of `open_stream`: what lies before a damaged place is given before the error."""
    return cast(io.BufferedIOBase, handle).read1(size)


def _damaged(location: str, kind: str, error: Exception) -> str:
    return f"{shown(location)}: damaged, or not the {kind} file that its name says ({error})"
