"""Whether a folder that all nodes name alike is one folder: written here, read there; locked here, refused there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

LOOK_SECONDS = 10.0  # a network file system shows a new file late: attributes are cached
LOCK = "lock"


def note(folder: Path, host: str, nonce: str) -> None:
    """Leave this node's file. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{host}.txt"
    with open(path, "w", encoding="utf-8") as handle:
        handle.write(nonce)
        handle.flush()
        os.fsync(handle.fileno())


def seen(folder: Path, nonces: Mapping[str, str], patience: float = LOOK_SECONDS) -> list[str]:
    """The hosts whose file with the right nonce can be read here, looked for again until all are there."""
    deadline = time.monotonic() + patience
    found: list[str] = []
    while True:
        found += [host for host in nonces if host not in found and _text(folder / f"{host}.txt") == nonces[host]]
        if len(found) == len(nonces) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            os.listdir(folder)  # makes an NFS client ask the server again


def _text(path: Path) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    return None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool | str]:
    """Hold the folder's lock, of the kind that a run holds (locks.py).

    Gives whether it was free to take; where locks do not work, what the system says.
    """
    with contextlib.ExitStack() as stack:
        answer: bool | str = True
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            answer = False
        except OSError as error:
            answer = error.strerror or str(error)
        yield answer


def clear(folder: Path, host: str) -> None:
    """Take this node's file away; the last node takes the folder."""
    with contextlib.suppress(OSError):
        (folder / f"{host}.txt").unlink(missing_ok=True)
        if not list(folder.glob("*.txt")):
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()
