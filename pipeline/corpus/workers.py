"""Tasks on several processes of this machine: results in the order of the tasks, no process left behind.

Workers are spawned, not forked: the parent has threads (MLflow's, the bar's), and a fork would copy their locks.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import TypeVar

from pipeline.errors import EnvironmentFault, Stopped
from pipeline.progress import Progress

Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Task, Callable[[int], None]], Result]  # a task, and what to tell of progress
_SECONDS = 0.5  # between two looks at the workers' progress
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Shared:
    """What the workers share with their parent: bytes of input done by all, a sign to stop, the parent's process id."""

    done: Synchronized[int]
    stop: Event
    parent: int


class Workers:
    """Processes that do tasks until the block ends. Use as a context manager.

    count: how many; 1: no process but this one. A worker is killed by Linux when its parent dies.
    """

    def __init__(self, count: int) -> None:
        self._shared: Shared | None = None
        self._pool: ProcessPoolExecutor | None = None
        self._window = 2 * count
        if count > 1:
            context = multiprocessing.get_context("spawn")
            self._shared = Shared(context.Value(ctypes.c_uint64, 0), context.Event(), os.getpid())
            self._pool = ProcessPoolExecutor(count, context, initializer=_start_worker, initargs=(self._shared,))

    def run(self, work: Work[Task, Result], tasks: Iterable[Task], bar: Progress) -> Iterator[Result]:
        """Do `work` (a function of a module) on each task; yield the results in the order of the tasks.

        tasks: asked for one at a time, at most 2 a worker ahead of the results, so that they may end when enough is
        done. The bar advances by what the work tells.
        Raises: what the work raises, and EnvironmentFault when a worker was killed.
        """
        if self._pool is None or self._shared is None:
            for task in tasks:
                yield work(task, bar.advance)
            return
        running: deque[Future[Result]] = deque()
        waiting = iter(tasks)
        shown = int(self._shared.done.value)
        try:
            while True:
                for task in itertools.islice(waiting, self._window - len(running)):
                    with _interrupts_held():
                        running.append(self._pool.submit(_work, work, task))
                if not running:
                    return
                while wait([running[0]], timeout=_SECONDS).not_done:
                    shown = _show(bar, self._shared, shown)
                shown = _show(bar, self._shared, shown)
                yield running.popleft().result()
        except BrokenProcessPool:
            raise EnvironmentFault(
                "a worker process was killed, most likely for want of memory; set the stage's `workers` to a smaller "
                "number and give the same command again, it continues"
            ) from None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None and self._shared is not None:
            self._shared.stop.set()
            self._pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits a moment: a worker that is started here inherits that, until `_start_worker` can ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _show(bar: Progress, shared: Shared, shown: int) -> int:
    now = int(shared.done.value)
    bar.advance(now - shown)
    return now


# --- in a worker ---------------------------------------------------------------------------------------------------

_shared: Shared | None = None


def _start_worker(shared: Shared) -> None:
    global _shared  # noqa: PLW0603 - a pool hands its initialiser's arguments over in no other way
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends the pool
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if sys.platform == "linux":  # a parent that is killed cannot end its workers, who would write beside its successor
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != shared.parent:
        os._exit(1)


def _work(work: Work[Task, Result], task: Task) -> Result:
    return work(task, _advance)


def _advance(amount: int) -> None:
    """Raises: Stopped when the parent has met an error, or was interrupted: it waits for its workers."""
    assert _shared is not None
    if _shared.stop.is_set():
        raise Stopped("the other tasks were ended")
    if amount:
        with _shared.done.get_lock():
            _shared.done.value += amount
