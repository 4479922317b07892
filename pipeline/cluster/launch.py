"""Ranks on this machine, started by the command itself: no launcher to type.

All ranks end when one fails, when this process is asked to stop, and also when it is killed with SIGKILL: the kernel
then ends them (PR_SET_PDEATHSIG). Rank 0 talks to the person; what another rank said is shown only if it failed first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import IO, Any

from pipeline.cluster.ranks import LAUNCHER, cores
from pipeline.errors import PipelineError, Stopped
from pipeline.progress import log

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
GRACE = 10.0  # seconds between SIGTERM and SIGKILL for ranks whose fellow has died
LINES = 40  # shown of what a failed rank said
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    said: IO[bytes] | None  # where its output goes; None: to the person


def launch_local(arguments: list[str], ranks: int) -> int:
    """Run `python -m pipeline <arguments>` as `ranks` processes of one world on this machine.

    Returns the exit status: 0 when all ranks did well, else that of the first rank that did not (128 + n if signal n
    ended it), where bad input (2) and a stop in order (75) of any rank win over those that died of it.
    """
    return launch_command([sys.executable, "-m", "pipeline", *arguments], ranks)


def launch_command(command: list[str], ranks: int) -> int:
    """As launch_local, for any command whose processes read their rank from the environment."""
    with contextlib.ExitStack() as stack:
        started = [_start(command, rank, stack) for rank in environments(ranks)]
        stack.callback(_end, started)
        stack.enter_context(_forwarding(started))
        return _wait(started)


def environments(ranks: int) -> list[dict[str, str]]:
    """The environment of each rank: as torchrun sets it, and this rank's share of the cores."""
    port = free_port()
    return [
        {
            **os.environ,
            LAUNCHER: "local",
            "RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            # Read when the process starts: more threads than cores make every product several times slower.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // ranks)),
        }
        for rank in range(ranks)
    ]


def free_port() -> int:
    """A TCP port of this host that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _start(command: list[str], environment: Mapping[str, str], stack: contextlib.ExitStack) -> _Rank:
    number = int(environment["RANK"])
    said = None
    if number:
        said = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 — the stack closes it
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        start_new_session=True,  # Ctrl-C reaches this process only, which passes it on once
        preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509 — it only calls the kernel, twice
    )
    return _Rank(number, process, said)


def _die_with_parent(parent: int) -> Any:
    """What a child does before it becomes the rank: ask the kernel for SIGKILL when its parent dies (Linux only)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up here: a forked child must not load libraries

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(PipelineError.status)  # it died before we asked

    return ask


@contextlib.contextmanager
def _forwarding(ranks: list[_Rank]) -> Iterator[None]:
    """Pass on signals that ask for an end; the ranks save, leave with 75, and this process follows them."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():  # Python takes signals nowhere else
        yield
        return
    before = {number: signal.signal(number, pass_on) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(ranks: list[_Rank]) -> int:
    """Wait for all ranks; after the first failure the others get GRACE seconds."""
    culprit: _Rank | None = None
    deadline = 0.0
    while any(rank.process.poll() is None for rank in ranks):
        if culprit is None and (culprit := _culprit(ranks)):
            deadline = time.monotonic() + GRACE
            # A rank that stops in order, or says that its input is bad, is not alone in it: the others will too.
            if culprit.process.returncode not in (2, Stopped.status):
                _signal(ranks, signal.SIGTERM)
        if culprit and time.monotonic() > deadline:
            _signal(ranks, signal.SIGKILL)
        time.sleep(0.05)
    culprit = culprit or _culprit(ranks)
    if culprit is None:
        return 0
    _show(culprit)
    statuses = [_status(rank.process.returncode) for rank in (culprit, *ranks)]
    return next((status for status in (2, Stopped.status) if status in statuses), statuses[0])


def _culprit(ranks: list[_Rank]) -> _Rank | None:
    """The rank that failed; among several the one that a signal ended, since its fellows fail within milliseconds."""
    failed = [rank for rank in ranks if rank.process.poll()]
    return min(failed, key=lambda rank: rank.process.returncode, default=None)


def _end(ranks: list[_Rank]) -> None:
    """No rank outlives this function."""
    _signal(ranks, signal.SIGKILL)
    for rank in ranks:
        rank.process.wait()


def _signal(ranks: list[_Rank], number: int) -> None:
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.send_signal(number)


def _status(returncode: int) -> int:
    return 128 - returncode if returncode < 0 else returncode


def _show(rank: _Rank) -> None:
    """What a rank other than 0 said last, when it was the first to fail."""
    if rank.said is not None and rank.process.returncode != Stopped.status:
        rank.said.seek(0)
        for line in rank.said.read().decode(errors="replace").splitlines()[-LINES:]:
            log.error("[rank %d] %s", rank.number, line)
    if rank.process.returncode < 0:
        name = signal.Signals(-rank.process.returncode).name
        log.error("rank %d was ended by %s; the same command continues from the last checkpoint", rank.number, name)
