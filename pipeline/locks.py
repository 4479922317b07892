"""One command at a time makes a stage: advisory locks in `logs/`, given up by the system when their holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import EnvironmentFault
from pipeline.files import disk_errors

PATIENCE = 10.0  # seconds: ranks of a command that was just killed may take a moment to end


@contextlib.contextmanager
def hold(folder: Path, makes: str, reads: tuple[str, ...] = (), patience: float = PATIENCE) -> Iterator[None]:
    """Hold the stage `makes` alone, and the stages that it `reads` together with other readers.

    folder: where the lock files lie (`workdir/logs`).
    Raises: EnvironmentFault naming the process that holds a lock, after `patience` seconds.
    """
    with disk_errors(folder), contextlib.ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        for stage in sorted((makes, *reads)):  # one order for all: two commands never wait for each other
            descriptor = os.open(folder / f"{stage}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            stack.callback(os.close, descriptor)
            _lock(descriptor, stage, fcntl.LOCK_EX if stage == makes else fcntl.LOCK_SH, patience)
            if stage == makes:
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield


def _lock(descriptor: int, stage: str, kind: int, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
                raise EnvironmentFault(
                    f"{stage}: another command is working on it ({holder}); wait for it, end it, or set workdir=…"
                ) from None
            time.sleep(0.1)
