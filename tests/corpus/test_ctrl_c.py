"""Ctrl-C reaches every process of the group: workers leave it to their parent, also while they start."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from pipeline.corpus.workers import Workers, _interrupts_held
from pipeline.progress import progress


def how_it_stands(task: int, advance: Callable[[int], None]) -> tuple[bool, bool]:
    """Whether SIGINT is blocked, and ignored, in this process."""
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return blocked, signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_workers_ignore_it() -> None:
    with progress("test", 1) as bar, Workers(2) as workers:
        assert list(workers.run(how_it_stands, [1, 2], bar)) == [(False, True)] * 2


def test_it_waits_while_a_worker_is_started() -> None:
    inside = False
    with pytest.raises(KeyboardInterrupt), _interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
        inside = True
    assert inside
