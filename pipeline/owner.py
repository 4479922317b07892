"""Who makes a stage: the lease `logs/<stage>.owner.json`, renewed while its holder lives, and the fence around it.

The lease is written by rename and renewed in place, through the file that its holder opened: after a takeover a ghost
renews a file that has no name any more. A new lease bears a new nonce; who finds another nonce than its own has been
taken over and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import Fenced
from pipeline.files import TEMPORARY, sync_directory
from pipeline.progress import log

RENEW = 5.0  # seconds between two signs of life
STALE = 60.0  # seconds without one, by the watcher's clock, after which the holder is a ghost
GRACE = 5.0  # seconds in which a command that was taken over may end in its own way
SIZE = 2048  # bytes of a lease, padded: renewals change it in place
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Identity:
    """A command that holds a stage. boot: names the running kernel, whose locks can be trusted among its processes.

    job: Slurm's id ("" without Slurm), on `cluster`; restart: how often the job was requeued. launch: the same on all
    ranks that work together, another for other launches.
    """

    host: str
    pid: int
    boot: str
    cluster: str = ""
    job: str = ""
    restart: int = 0
    launch: str = ""

    @classmethod
    def of_this_process(cls, launch: str = "") -> Identity:
        """Read from the system and from Slurm's variables."""
        boot = BOOT_ID.read_text(encoding="ascii").strip() if BOOT_ID.is_file() else socket.gethostname()
        restart = os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            socket.gethostname(),
            os.getpid(),
            boot,
            os.environ.get("SLURM_CLUSTER_NAME", ""),
            os.environ.get("SLURM_JOB_ID", ""),
            int(restart) if restart.isdecimal() else 0,  # unset on a job's first start
            launch,
        )

    def is_same_job(self, other: Identity) -> bool:
        """Whether both are starts of one Slurm job."""
        return bool(self.job) and (self.cluster, self.job) == (other.cluster, other.job)

    def __str__(self) -> str:
        if self.job:
            start = f", restart {self.restart}" if self.restart else ""
            return f"job {self.job}{start}, process {self.pid} on {self.host}"
        return f"process {self.pid} on {self.host}"


@dataclass
class Lease:
    """What owner.json says. token: counts holders; renewals: signs of life so far; renewed: when, for people.

    prepared: key of the work that the folder was made ready for; released: its holder ended in order.
    """

    token: int
    nonce: str
    who: Identity
    renewals: int = 0
    renewed: float = 0.0
    prepared: str = ""
    released: bool = False

    def encode(self) -> bytes:
        """JSON, padded with spaces to a length that stays the same."""
        return json.dumps(asdict(self), indent=1).encode().ljust(SIZE - 1) + b"\n"


def lease_path(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.owner.json"


def read_lease(folder: Path, stage: str) -> Lease | None:
    """The lease of a stage; None when there is none, or it is damaged (a power cut): then the lock alone counts."""
    path = lease_path(folder, stage)
    for attempt in range(3):
        try:
            value: dict[str, Any] = json.loads(path.read_bytes())
            return Lease(**{**value, "who": Identity(**value["who"])})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            time.sleep(0.05 * attempt)  # perhaps read in the middle of a renewal
    log.warning("%s: damaged, and passed over", path)
    return None


class Fence:
    """Says whether a command still owns what it writes. This one always does: for work that nobody can take over.

    after_a_ghost: the work was taken over from a holder that may still be there, and hold other locks.
    """

    after_a_ghost = False

    def check(self, within: float = 0.0) -> None:
        """Return if the work is still ours; an answer of the last `within` seconds counts.

        Raises: Fenced, naming who has taken over.
        """

    def ready(self, key: str) -> None:
        """Tell the other ranks of this launch that the stage's folder is ready for the work with this key."""


class _Watched(Fence):
    """A fence with a thread that looks every RENEW seconds, and ends a process that has been taken over.

    The thread is for work that does not ask often: GRACE seconds after it has seen a takeover the process is gone.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self.folder, self.stage = folder, stage
        self._asked = -float("inf")  # monotonic time of the last good answer
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look, name=f"fence of {stage}", daemon=True)

    def check(self, within: float = 0.0) -> None:
        now = time.monotonic()
        if now - self._asked < within:
            return
        lease = read_lease(self.folder, self.stage)
        if lease is None:
            raise Fenced(f"{self.stage}: {lease_path(self.folder, self.stage)} is gone: the run was deleted or moved")
        if not self._is_ours(lease):
            raise Fenced(
                f"{self.stage}: another command ({lease.who}) has taken over {self.folder.parent}; this one ends"
            )
        self._asked = now

    def _is_ours(self, lease: Lease) -> bool:
        raise NotImplementedError

    def _sign(self) -> None:
        """A sign of life."""

    def _look(self) -> None:
        troubled = False
        while not self._closed.wait(RENEW):
            try:
                self.check()
                self._sign()
                troubled = False
            except Fenced as fenced:
                if not self._closed.wait(GRACE):
                    log.error("error: %s", fenced)
                    os._exit(Fenced.status)
                return
            except OSError as error:  # the file system is away: whoever sees it may take over, and we shall know
                if not troubled:
                    log.warning("%s: cannot renew %s (%s)", self.stage, lease_path(self.folder, self.stage), error)
                troubled = True

    def __enter__(self) -> _Watched:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises: Fenced in the place of what a command meets whose files were taken over under its hands."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        if isinstance(error, Exception) and not isinstance(error, Fenced):
            self.check()


class Owner(_Watched):
    """The maker of a stage. Use as a context manager: the lease is renewed inside and released at the end."""

    def __init__(self, folder: Path, stage: str, lease: Lease, descriptor: int) -> None:
        super().__init__(folder, stage)
        self.lease, self._descriptor = lease, descriptor
        self._lock = threading.Lock()

    @classmethod
    def write(cls, folder: Path, stage: str, me: Identity, before: Lease | None, took_over: bool = False) -> Owner:
        """A new lease in the place of the one before. took_over: whose holder may still be there."""
        lease = Lease((before.token if before else 0) + 1, uuid.uuid4().hex, me, renewed=round(time.time(), 3))
        path = lease_path(folder, stage)
        temporary = path.with_name(f"{path.name}.{lease.nonce}{TEMPORARY}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(descriptor, lease.encode(), 0)
            os.fsync(descriptor)
            temporary.rename(path)
            sync_directory(folder)
        except BaseException:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        owner = cls(folder, stage, lease, descriptor)
        owner.after_a_ghost = took_over
        return owner

    def ready(self, key: str) -> None:
        self.check()
        self._update(prepared=key)

    def close(self) -> None:
        """Release the lease: whoever comes next need not wait."""
        with contextlib.suppress(OSError):  # a full or absent disk: then they wait until it is stale
            self._update(released=True)
        with self._lock:
            os.close(self._descriptor)

    def _is_ours(self, lease: Lease) -> bool:
        return lease.nonce == self.lease.nonce

    def _sign(self) -> None:
        self._update(renewals=self.lease.renewals + 1)

    def _update(self, **changes: Any) -> None:
        with self._lock:
            for name, value in changes.items():
                setattr(self.lease, name, value)
            self.lease.renewed = round(time.time(), 3)
            os.pwrite(self._descriptor, self.lease.encode(), 0)
            os.fsync(self._descriptor)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            self.close()


class Follower(_Watched):
    """The fence of a rank other than 0: it ends when the stage belongs to another launch than its own."""

    def __init__(self, folder: Path, stage: str, launch: str) -> None:
        super().__init__(folder, stage)
        self.launch = launch

    def _is_ours(self, lease: Lease) -> bool:
        return lease.who.launch == self.launch


def is_ready(folder: Path, stage: str, launch: str, key: str) -> bool:
    """Whether rank 0 of this launch owns the stage, and has made its folder ready for the work with this key."""
    lease = read_lease(folder, stage)
    return lease is not None and (lease.who.launch, lease.prepared) == (launch, key)
