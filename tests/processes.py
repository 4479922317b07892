"""Processes that tests start: none of them, nor what they have started, goes on after a test that failed.

`subprocess.run(timeout=…)` ends its own child alone: the ranks, workers and agents that this one has started go on, eat
the cores, and may hold its pipes open.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

PATIENCE = 540.0  # seconds; less than a test may take (pyproject.toml), so that what the process said is shown
MARK, MINE = "STARTED_BY_TESTS_OF", secrets.token_hex(8)  # a variable that all bear who are started here
SERVICES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")  # Python's own: one for all tests


def end_trees(tops: Iterable[psutil.Process]) -> None:
    """SIGKILL for processes and all that they have started, also what is stopped or has gone to a group of its own."""
    waiting, found = list(tops), []
    while waiting:
        one = waiting.pop()
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGSTOP)  # it can start no more
            waiting += one.children()
            found.append(one)
    for one in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


@contextlib.contextmanager
def nothing_left_after_an_error() -> Iterator[None]:
    """Where the block fails, what was started in it is ended: children of this process, and also those who have lost
    their parent but still bear this process's mark in their environment."""
    os.environ[MARK] = MINE
    before = set(psutil.pids())
    try:
        yield
    except BaseException:
        me = psutil.Process()
        mine, family = me.children(), me.children(recursive=True)
        new = [one for one in psutil.process_iter() if one.pid not in before and (one in family or _is_marked(one))]
        end_trees(one for one in new if not (one in mine and _is_service(one)))
        raise


def _is_marked(process: psutil.Process) -> bool:
    try:
        return process.environ().get(MARK) == MINE and process.pid != os.getpid()
    except psutil.Error:  # it has ended, or is somebody else's
        return False


def _is_service(process: psutil.Process) -> bool:
    try:
        return any(name in " ".join(process.cmdline()) for name in SERVICES)
    except psutil.Error:
        return False


def run_to_end(
    command: Sequence[str | Path], timeout: float = PATIENCE, **options: Any
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run with its output captured. Where the process does not end in time, or the test is ended by its
    own limit, it is ended with all that it has started, and what it has said is printed."""
    words = list(map(str, command))
    options |= {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **options) as process:
        try:
            said, errors = process.communicate(timeout=timeout)
        except BaseException:
            with contextlib.suppress(psutil.NoSuchProcess):
                end_trees([psutil.Process(process.pid)])
            with contextlib.suppress(subprocess.TimeoutExpired):  # somebody else holds its pipes
                for text in process.communicate(timeout=60):
                    print(text[-10_000:], file=sys.stderr)
            raise
    return subprocess.CompletedProcess(words, process.returncode, said, errors)


def status_of(child: int, timeout: float = 300.0) -> int:
    """The exit status of a forked child, negative where a signal ended it. One that does not end in time is killed.

    Raises: TimeoutError. A forked child inherits each lock that another thread holds, and may wait for it for ever.
    """
    deadline = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"the forked process {child} has not ended within {timeout:.0f} s")
        time.sleep(0.002)
