"""Ranks on this machine, started by the command itself: no launcher to type.

All ranks end when one fails, when this process is asked to stop, and also when it is killed with SIGKILL: the kernel
then ends them (PR_SET_PDEATHSIG). Rank 0 talks to the person; what another rank said is shown only if it failed first.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import IO

from pipeline.cluster.parent import die_with_parent
from pipeline.cluster.ranks import LAUNCHER, cores
from pipeline.errors import EnvironmentFault, Stopped
from pipeline.progress import log

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
GRACE = 10.0  # seconds between SIGTERM and SIGKILL for ranks whose fellow has died
PORTS = range(10_000, 20_000)  # Slurm jobs use the ones above, see slurm/job.sh
LINES = 40  # shown of what a failed rank said


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    said: IO[bytes] | None  # where its output goes; None: to the person
    asked: list[int] = field(default_factory=list)  # signals that were passed on to it

    def ended(self) -> int | None:
        """Its exit status, negative where a signal ended it; None while it runs.

        One that the first signal passed on to it has ended was still starting, and could not answer: it counts as
        stopped in order, or the command would fail whenever it is asked to stop in its first seconds.
        """
        status = self.process.poll()
        early = status is not None and self.asked == [-status] and -status != signal.SIGINT
        return Stopped.status if early else status

    def pass_on(self, number: int) -> None:
        if self.process.poll() is None:
            self.asked.append(number)
            self.process.send_signal(number)


def launch_local(arguments: list[str], ranks: int) -> int:
    """Run `python -m pipeline <arguments>` as `ranks` processes of one world on this machine.

    Returns the exit status: 0 when all ranks did well, else that of the first rank that did not (128 + n if signal n
    ended it), where bad input (2) and an end in order (75) of any rank win over those that died of it.
    """
    return launch_command([sys.executable, "-m", "pipeline", *arguments], ranks)


def launch_command(command: list[str], ranks: int) -> int:
    """As launch_local, for any command whose processes read their rank from the environment."""
    with contextlib.ExitStack() as stack:
        started: list[_Rank] = []
        stack.callback(_end, started)
        asked = stack.enter_context(_forwarding(started))
        for environment in environments(ranks, free_port(stack)):
            started.append(_start(command, environment, stack))
            for number in set(asked) - set(started[-1].asked):  # came while it was being started
                started[-1].pass_on(number)
        return _wait(started)


def environments(ranks: int, port: int) -> list[dict[str, str]]:
    """The environment of each rank: as torchrun sets it, and this rank's share of the cores."""
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


def free_port(held: contextlib.ExitStack | None = None) -> int:
    """A TCP port of this host that nobody uses now, and that the kernel gives to nobody by itself.

    held: until its end other commands find the port taken, and only who listens with SO_REUSEADDR, as ranks do, may.

    Seconds pass until rank 0 listens on it. A port from the range that outgoing connections are given (Linux: 32768 and
    above) is often taken by then.
    """
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        probe = socket.socket()
        try:
            probe.bind(("", port))  # rank 0 listens on all addresses
        except OSError:
            probe.close()
            continue
        if held is None:
            probe.close()
        else:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.callback(probe.close)
        return port
    raise EnvironmentFault(f"no TCP port from {PORTS.start} to {PORTS.stop - 1} is free; `ss -tanp` shows why")


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
        preexec_fn=die_with_parent(os.getpid()),  # noqa: PLW1509 — it only calls the kernel, twice
    )
    return _Rank(number, process, said)


@contextlib.contextmanager
def _forwarding(ranks: list[_Rank]) -> Iterator[list[int]]:
    """Pass on signals that ask for an end; the ranks save, leave with 75, and this process follows them.

    ranks: may grow meanwhile. Yields the signals that came.
    """
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for rank in ranks:
            rank.pass_on(number)

    if threading.current_thread() is not threading.main_thread():  # Python takes signals nowhere else
        yield asked
        return
    before = {number: signal.signal(number, pass_on) for number in FORWARDED}
    # Inherited from whoever started this and ignores it: the kernel would keep no status, and every rank count as well.
    before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(ranks: list[_Rank]) -> int:
    """Wait for all ranks; after the first failure the others get GRACE seconds."""
    culprit: _Rank | None = None
    deadline, killed = 0.0, False
    while any(rank.ended() is None for rank in ranks):
        if culprit is None and (culprit := _culprit(ranks)):
            deadline = time.monotonic() + GRACE
            # The others will leave because of it, as if in order.
            status = culprit.ended() or 0
            killed = status < 0 and not _in_order(ranks)
            # A rank that stops in order, or says that its input is bad, is not alone in it: the others will too.
            if status not in (2, Stopped.status):
                _signal(ranks, signal.SIGTERM)
        if culprit and time.monotonic() > deadline:
            _signal(ranks, signal.SIGKILL)
        time.sleep(0.05)
    culprit = culprit or _culprit(ranks)
    if culprit is None:
        return 0
    in_order = _in_order(ranks)
    if culprit in in_order and ranks[0].process.returncode == -signal.SIGKILL:
        _show_words(in_order[0])  # rank 0 hung, so that another one has made the report
    _show(culprit)
    statuses = [_status(rank.ended() or 0) for rank in (culprit, *ranks)]
    if killed:
        return statuses[0]
    return next((status for status in (2, Stopped.status) if status in statuses), statuses[0])


def _in_order(ranks: list[_Rank]) -> list[_Rank]:
    """Those that have left because they were told to, or because of bad input."""
    return [rank for rank in ranks if rank.ended() in (2, Stopped.status)]


def _culprit(ranks: list[_Rank]) -> _Rank | None:
    """The rank that failed; among several the one that a signal ended, since its fellows fail within milliseconds."""
    failed = [(status, rank) for rank in ranks if (status := rank.ended())]
    return min(failed, key=lambda found: found[0], default=(0, None))[1]


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
    """Why a rank failed: what it said last, and the signal that ended it."""
    status = rank.ended() or 0
    if status != Stopped.status:
        _show_words(rank)
    if status < 0:
        name = signal.Signals(-status).name
        log.error("rank %d was ended by %s; the same command continues from the last checkpoint", rank.number, name)


def _show_words(rank: _Rank) -> None:
    if rank.said is not None:
        rank.said.seek(0)
        for line in rank.said.read().decode(errors="replace").splitlines()[-LINES:]:
            log.error("[rank %d] %s", rank.number, line)
