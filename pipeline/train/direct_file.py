"""A file that is written front to back past the page cache.

A checkpoint is read once, after a restart, if at all: to fill the page cache with it costs the training more processor
time than the snapshot and the checksum together (measured: .47 s for 204 MB, against .05 s past it), and pushes out the
token shards that are needed. Where a file system takes no direct writes (tmpfs, some network ones), or for the last
bytes, which fill no block, the kernel is asked for ordinary ones.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path
from types import TracebackType

BLOCK = 8 << 20  # bytes written at once; a multiple of every device's block


class DirectFile:
    """Use as a context manager; leaving it without an error has synced the file. size: bytes given so far."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._direct = getattr(os, "O_DIRECT", 0)  # Linux
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            self._file = os.open(path, flags | self._direct, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            self._direct = 0
            self._file = os.open(path, flags, 0o666)
        self._buffer = mmap.mmap(-1, BLOCK)  # begins at a page's edge, which direct writes ask for
        self._held = 0  # bytes in the buffer

    def write(self, data: memoryview | bytes) -> None:
        """Take all of `data`. Raises: OSError when the disk is full."""
        view = memoryview(data).cast("B")
        self.size += len(view)
        while len(view):
            taken = min(len(view), BLOCK - self._held)
            self._buffer[self._held : self._held + taken] = view[:taken]
            self._held += taken
            view = view[taken:]
            if self._held == BLOCK:
                self._flush()

    def _flush(self) -> None:
        with memoryview(self._buffer) as buffer:
            done = 0
            while done < self._held:
                try:
                    done += os.write(self._file, buffer[done : self._held])
                except OSError as error:
                    if error.errno != errno.EINVAL or not self._direct:
                        raise
                    self._ordinary()  # takes no direct writes after all, or has taken part of a block
        self._held = 0

    def _ordinary(self) -> None:
        if self._direct:
            flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~self._direct)
            self._direct = 0

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._ordinary()
                self._flush()
                os.fsync(self._file)
        finally:
            os.close(self._file)
            self._buffer.close()
