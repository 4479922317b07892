"""An append-only file of JSON lines that survives kills, and whose end can be taken back."""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.files import atomic_write, disk_errors
from pipeline.owner import Fence
from pipeline.progress import log

Line = dict[str, Any]
Mark = tuple[int, int, int]  # where a line begins and ends, in bytes, and its CRC-32
FENCE_SECONDS = 1.0  # for so long an answer of the fence counts
SYSTEM = "system/"  # metrics of the machine: their step is in seconds, and a rewind leaves them


class Journal:
    """An append-only file of JSON lines, shared by the thread that writes and the one that sends.

    fence: asked before a line is written; a ghost's lines must not stand among those of its successor.
    """

    def __init__(self, path: Path, fence: Fence | None = None) -> None:
        self.path, self.fence = path, fence or Fence()
        self._lock = threading.RLock()
        self._drop_torn_line()

    def _drop_torn_line(self) -> None:
        """A power cut or a full disk may leave half a line at the end; what follows would be glued to it."""
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            with disk_errors(self.path):
                os.truncate(self.path, content.rfind(b"\n") + 1)

    def append(self, line: Line) -> None:
        """Add a line with one write, so that a killed process leaves whole lines.

        Raises: EnvironmentFault when the disk is full, or another command has taken over.
        """
        self.fence.check(within=FENCE_SECONDS)
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        with self._lock, disk_errors(self.path), open(self.path, "ab", buffering=0) as handle:
            handle.write(data)

    def read(self, mark: Mark | None = None, most: int = 1 << 62) -> Iterator[tuple[Line, Mark]]:
        """Whole lines after `mark` (or from the start), each with its own mark; about `most` bytes of them.

        A damaged line counts as an empty one, with a warning.
        """
        if not self.path.is_file():
            return
        position = mark[1] if mark else 0
        with self._lock, open(self.path, "rb") as handle:
            handle.seek(position)
            lines = handle.readlines(most)
        for raw in lines:
            if not raw.endswith(b"\n"):
                return
            start, position = position, position + len(raw)
            try:
                line = json.loads(raw)
                if not isinstance(line, dict):
                    raise ValueError("not an object")
            except ValueError as error:  # UnicodeDecodeError and JSONDecodeError too
                log.warning("%s: damaged line at byte %d passed over: %s", self.path, start, error)
                line = {}
            yield line, (start, position, zlib.crc32(raw))

    def holds(self, mark: Mark) -> bool:
        """Is the line that `mark` names still where it was? Not so after a rewind."""
        start, end, checksum = mark
        if not self.path.is_file():
            return False
        with self._lock, open(self.path, "rb") as handle:
            handle.seek(start)
            return zlib.crc32(handle.read(end - start)) == checksum

    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def later(self, step: int) -> list[Line]:
        """Lines of later steps than `step`, but for the machine's load."""
        return [line for line, _ in self.read() if _is_later(line, step)]

    def rewind(self, step: int) -> Mark | None:
        """Drop lines of later steps than `step`. Returns the mark of the last line before the first dropped."""
        self.fence.check()
        kept: list[Line] = []
        last: Mark | None = None
        dropped = False
        with self._lock:  # all the while: a line that another thread adds meanwhile must not be lost
            for line, mark in self.read():
                if _is_later(line, step):
                    dropped = True
                else:
                    kept.append(line)
                    last = last if dropped else mark
            if dropped:
                with atomic_write(self.path, "w") as handle:
                    for line in kept:
                        handle.write(json.dumps(line, ensure_ascii=False) + "\n")
        return last


def _is_later(line: Line, step: int) -> bool:
    at = line.get("step")
    return isinstance(at, int) and at > step and not all(name.startswith(SYSTEM) for name in line.get("metrics", {}))
