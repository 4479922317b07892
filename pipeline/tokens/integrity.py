"""Is a token tar what the index says? Its SHA-256 is compared once a host, behind the training, when it is first used.

A corpus of ten trillion tokens is 40,000 files of half a gigabyte: to read all of them before the first step would take
hours, so each is checked when its first window is asked for, on a thread that steps back for the training; what was
found good is remembered (by size, time and inode) and not read again, by other ranks of the host or after a restart.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import queue
import socket
import sys
import threading
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.tokens.token_tars import CRC32, DOCUMENTS, ENDS_OFFSET, OFFSET, TOKENS, Shard, member_key

Verify = Literal["first_touch", "always", "never"]
BLOCK = 1 << 20
NICENESS = 10


class BadShard(DataError):
    """A token tar that is missing, cut or damaged. file: as the index names it."""

    def __init__(self, file: str, why: str) -> None:
        super().__init__(why)
        self.file = file


class Integrity:
    """Checks the shards of one tokens folder. problems: file → what is wrong, as far as is known; grows in background.

    verify: `first_touch`: behind the use, once a host; `always`: at each start, before a shard's first window is given
    out; `never`. memory: folder in which is remembered what was good; None: for this process only.
    """

    def __init__(self, folder: Path | str, verify: Verify, token_bytes: int, memory: Path | None = None) -> None:
        """folder: as people know it; token_bytes: of one token."""
        self.folder, self.verify, self.token_bytes = folder, verify, token_bytes
        self.problems: dict[str, str] = {}
        self._memory = _Memory(memory) if memory is not None and verify == "first_touch" else None
        self._waiting: queue.Queue[tuple[Shard, Path] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def opened(self, shard: Shard, path: Path) -> None:
        """A shard is about to be used for the first time in this process. Raises: BadShard (`always`)."""
        if self.verify == "always":
            if why := self._wrong(path, shard):
                raise self.bad(shard, why)
        elif self.verify == "first_touch":
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="verify", daemon=True)
                self._thread.start()
            self._waiting.put((shard, path))

    def bad(self, shard: Shard, why: str) -> BadShard:
        """Take note that a shard is bad; returns the error to raise."""
        words = f"{self.folder}/{shard.file}: {why}; put a good copy there, or delete {self.folder} and tokenize again"
        self.problems[shard.file] = words
        return BadShard(shard.file, words)

    def settle(self) -> None:
        """Wait until all that was asked for is checked."""
        self._waiting.join()

    def close(self) -> None:
        """End the thread, in the middle of a shard too."""
        self._closed = True
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while (asked := self._waiting.get()) is not None:
            try:
                self._check(*asked)
            except OSError as error:
                self.bad(asked[0], f"cannot be read ({error.strerror})")
            finally:
                self._waiting.task_done()
        self._waiting.task_done()

    def _check(self, shard: Shard, path: Path) -> None:
        name = _identity(path, shard)
        if self._memory is None:
            known, mine = False, True
        else:
            known, mine = self._memory.claim(name)
        if known or not mine:  # another rank of this host is at it, and will tell
            return
        if why := self._wrong(path, shard):
            self.bad(shard, why)
        elif self._memory is not None and not self._closed:
            self._memory.add(name)
        if self._memory is not None:
            self._memory.release(name)

    def _wrong(self, path: Path, shard: Shard) -> str:
        """What is wrong with a token tar; empty: nothing, or `close` has put an end to it."""
        digest, size = hashlib.sha256(), 0
        with open(path, "rb") as handle:
            while block := handle.read(BLOCK):
                digest.update(block)
                size += len(block)
                if self._closed:
                    return ""
        if size != shard.bytes:
            return self.cut(shard, size)
        return "" if digest.hexdigest() == shard.sha256 else self._damaged(path, shard)

    def _damaged(self, path: Path, shard: Shard) -> str:
        """In words: a file of the right size whose checksum is not the one in the index, and where it differs."""
        content = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)

        def changed(member: npt.NDArray[np.int64]) -> bool:
            crc32 = 0
            for begin, size in ((OFFSET, self.token_bytes * member[TOKENS]), (ENDS_OFFSET, 4 * member[DOCUMENTS])):
                crc32 = zlib.crc32(content[member[begin] : member[begin] + size].data, crc32)
            return bool(crc32 != member[CRC32])

        bad = [number for number, member in enumerate(shard.members) if changed(member)]
        if not bad:
            return "damaged: its checksum is not the one in the index, though all its tokens are what they were"
        return (
            f"damaged: its checksum is not the one in the index; member {member_key(shard.file, bad[0])}, whose tokens "
            f"begin at byte {shard.members[bad[0], OFFSET]:,}, has changed ({len(bad)} of {len(shard.members)} have)"
        )

    def cut(self, shard: Shard, size: int) -> str:
        """In words: a file that has another size than its index says, and how many members are whole."""
        whole = int((shard.members[:, OFFSET] + shard.members[:, TOKENS] * self.token_bytes <= size).sum())
        return (
            f"truncated or changed: {size:,} bytes where the index says {shard.bytes:,} ({whole} of "
            f"{len(shard.members)} members are whole)"
        )


def _identity(path: Path, shard: Shard) -> str:
    """Names a file's content as long as nobody writes to it."""
    stat = path.stat()
    return f"{shard.sha256} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"


class _Memory:
    """`<host>.jsonl`: names of files that were found good. Ranks of a host share it; each name is claimed by one."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        host = socket.gethostname()
        self._path = folder / f"{host}.jsonl"
        self._locks = os.open(folder / f"{host}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def claim(self, name: str) -> tuple[bool, bool]:
        """Whether a name is known to be good; else whether it is now ours to check. Ends with the process."""
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(name))
        except BlockingIOError:
            return False, False
        except OSError:  # a file system without locks: each rank checks for itself
            return False, True
        if name in self._known():
            self.release(name)
            return True, False
        return False, True

    def release(self, name: str) -> None:
        fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _byte(name))

    def add(self, name: str) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, (json.dumps(name) + "\n").encode())
        finally:
            os.close(descriptor)

    def _known(self) -> set[str]:
        if not self._path.is_file():
            return set()
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        return {line[1:-1] for line in lines if line.endswith('"')}


def _byte(name: str) -> int:
    """The byte of the lock file that stands for a name."""
    return int(name[:12], 16)
