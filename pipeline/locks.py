"""One command at a time makes a stage, and what it lost it no longer writes.

In `logs/`, for each stage:

    <stage>.lock         an advisory lock (flock): the quick answer, given up by the kernel when its holder dies
    <stage>.owner.json   the maker's lease (owner.py), which tells a holder at work from a ghost

A ghost is a command that was declared dead and is not: stopped, or on a node that lost its network, where it may hold
the lock for ever. A newcomer passes a lock that is held (or whose holder is on another machine, where the lock may be
unknown) when it is a later start of the same Slurm job, or once the lease has not been renewed for STALE seconds by
its own clock; it puts a new lock file in the place of the old one, and a new lease. Clocks are never compared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import EnvironmentFault, Fenced
from pipeline.files import TEMPORARY, disk_errors
from pipeline.owner import STALE, Fence, Identity, Lease, Owner, read_lease
from pipeline.progress import log

PATIENCE = 10.0  # seconds: ranks of a command that was just killed may take a moment to end
GUARD = "owners.lock"  # held for milliseconds, by whoever looks at or changes who holds what
TELLS = 30.0  # seconds after which a wait for a file's lock is told
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # file systems mounted without locks


@contextlib.contextmanager
def hold(
    folder: Path,
    makes: str,
    reads: tuple[str, ...] = (),
    patience: float = PATIENCE,
    shared: bool = False,
    launch: str = "",
) -> Iterator[Fence]:
    """Hold the stage `makes` alone, and the stages that it `reads` together with other readers.

    folder: where the lock files lie (`workdir/logs`). shared: hold `makes` together with others that do so too: the
    tasks of a job array. launch: names the ranks that work together (for `owner.follow`). The yielded fence says
    whether the stage is still ours.
    Raises: EnvironmentFault naming who holds a lock, after `patience` seconds in which it showed signs of life.
    """
    me = Identity.of_this_process(launch)
    fence = Fence()
    with disk_errors(folder), contextlib.ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        for stage in sorted((makes, *reads)):  # one order for all: two commands never wait for each other
            alone = stage == makes and not shared
            owner = _Entrance(folder, stage, me, alone, patience).enter(stack)
            if owner is not None:
                fence = stack.enter_context(owner)
        yield fence


class _Entrance:
    """One command's way into one lock. alone: as its maker; otherwise together with other readers."""

    def __init__(self, folder: Path, stage: str, me: Identity, alone: bool, patience: float) -> None:
        self.folder, self.stage, self.me, self.alone, self.patience = folder, stage, me, alone, patience
        self.path = folder / f"{stage}.lock"
        self.began = self.changed = time.monotonic()
        self.seen: tuple[str, int] | None = None  # the lease's sign of life that was seen last
        self.renews = self.told = False
        self.kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        self.locks = True  # whether this file system has locks

    def enter(self, stack: contextlib.ExitStack) -> Owner | None:
        """Wait until the lock may be had, and take it until the stack ends. A maker gets its lease."""
        while True:
            with contextlib.ExitStack() as attempt, _guard(self.folder):
                free = self._try(attempt)
                lease = read_lease(self.folder, self.stage)
                if self._may_enter(lease, free):
                    ghost = lease is not None and not lease.released and not self._has_died(lease, free)
                    if not free:
                        attempt.close()
                        self._replace(attempt)
                    owner = self._own(lease, ghost)
                    stack.push(attempt.pop_all())
                    return owner
            time.sleep(0.1)

    def _try(self, attempt: contextlib.ExitStack) -> bool:
        """Open the lock file and try to lock it, while `attempt` lasts. Returns whether nobody else has the lock."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        attempt.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, self.kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            self.locks = False  # then the lease alone decides
        return True

    def _may_enter(self, lease: Lease | None, free: bool) -> bool:
        """Raises: EnvironmentFault when the wait is over, Fenced when a later start of this very job was here."""
        now = time.monotonic()
        if lease is not None and self.me.is_same_job(lease.who):
            if self.me.restart < lease.who.restart:
                raise Fenced(f"{self.stage}: {lease.who} has taken over {self.folder.parent}; this one ends")
            if self.me.restart > lease.who.restart and not lease.released:
                if not self._has_died(lease, free):
                    log.warning("%s: taken over from %s, an earlier start of this job", self.stage, lease.who)
                return True
        if lease is None or lease.released:
            if not free and now - self.began >= self.patience:
                raise EnvironmentFault(
                    f"{self.stage}: another command is reading or making it; wait for it, end it, or set workdir=…"
                )
            return free
        return self._has_died(lease, free) or self._watch(lease, now)

    def _watch(self, lease: Lease, now: float) -> bool:
        """Whether the holder has been without a sign of life for so long that it is a ghost."""
        sign = (lease.nonce, lease.renewals)
        if sign != self.seen:
            self.renews = self.renews or self.seen is not None
            self.seen, self.changed = sign, now
        if self.renews and now - self.began >= self.patience:
            raise EnvironmentFault(
                f"{self.stage}: another command is working on it ({lease.who}); wait for it, end it, or set workdir=…"
            )
        if now - self.changed >= STALE:
            log.warning("%s: taken over from %s, without a sign of life for %.0f s", self.stage, lease.who, STALE)
            return True
        if not self.told and now - self.began >= self.patience:
            self.told = True
            left = STALE - (now - self.changed)
            log.info("%s: held by %s; taken over in %.0f s if it shows no sign of life", self.stage, lease.who, left)
        return False

    def _has_died(self, lease: Lease, free: bool) -> bool:
        """Whether the holder is surely gone: this machine's kernel gave up its lock."""
        return free and self.locks and lease.who.boot == self.me.boot

    def _replace(self, attempt: contextlib.ExitStack) -> None:
        """Put a lock file of our own in the place of one that a ghost holds."""
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}{TEMPORARY}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        attempt.callback(os.close, descriptor)
        fcntl.flock(descriptor, self.kind)
        temporary.rename(self.path)

    def _own(self, lease: Lease | None, ghost: bool) -> Owner | None:
        if self.alone:
            return Owner.write(self.folder, self.stage, self.me, lease, ghost)
        if ghost:  # a reader passed it: it must see that
            Owner.write(self.folder, self.stage, self.me, lease).close()
        return None


def wait_for_file(descriptor: int, path: Path, why: str) -> None:
    """Take the lock of an open file alone, waiting for whoever has it: perhaps a process that is stopped.

    why: what for, told where the wait is long. Raises: OSError where the file system has no locks.
    """
    began, told, pause = time.monotonic(), False, 0.001
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        if not told and time.monotonic() - began >= TELLS:
            log.warning("%s: waits for another process, which holds %s (`fuser -v` tells which)", why, path)
            told = True


@contextlib.contextmanager
def _guard(folder: Path) -> Iterator[None]:
    """Only one process at a time looks who holds a lock and acts on it.

    Raises: EnvironmentFault when a process that hangs holds it.
    """
    path = folder / GUARD
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + STALE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EnvironmentFault(
                        f"{path}: a process that hangs holds it; delete this file and give the same command again"
                    ) from None
                time.sleep(0.01)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                break
        yield
    finally:
        os.close(descriptor)
