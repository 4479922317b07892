"""Open plain, .gz and .zst files as one kind of stream: decompressed bit by bit, every fault a `DataError`."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import zstandard

from pipeline.errors import DataError

_INPUT = 256  # compressed bytes at a time: zstd may make 128 KiB of 4 bytes, so 8 MiB of these at the worst
_LONGEST_WINDOW = 1 << 27  # bytes that a zstd frame may ask to be kept: what `zstd --long` makes, and no more


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


@contextlib.contextmanager
def open_stream(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed when it ends in .gz or .zst, in constant memory.

    Raises: DataError naming the file when it cannot be read, ends early or is not what its name says.
    """
    try:
        with contextlib.ExitStack() as stack:
            handle: IO[bytes] = stack.enter_context(open(path, "rb", buffering=1 << 20))
            if path.suffix == ".gz":
                handle = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=handle)))
            elif path.suffix == ".zst":
                handle = stack.enter_context(io.BufferedReader(_ZstdStream(handle), 1 << 20))
            yield handle
    except EOFError:
        raise DataError(f"{path}: the compressed file ends early; it is not whole, fetch or make it again") from None
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: damaged, or not the {path.suffix} file that its name says ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
