"""Ctrl-C reaches every process of the group: workers leave it to their parent, also while they start."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator

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


@pytest.fixture
def answered() -> Iterator[None]:
    """SIGINT is answered as Python does, also where the tests run in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("answered")
def test_it_waits_while_a_worker_is_started() -> None:
    inside = False
    with pytest.raises(KeyboardInterrupt), _interrupts_held():
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # a test runner may have other threads
        inside = True
    assert inside
