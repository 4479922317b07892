"""Tasks on several processes of this machine: results in the order of the tasks, no process left behind.

Workers are spawned, not forked: the parent has threads (MLflow's, the bar's), and a fork would copy their locks.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TypeVar

from pipeline.cluster.parent import die_with_parent
from pipeline.errors import EnvironmentFault, Stopped
from pipeline.progress import Progress

Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Task, Callable[[int], None]], Result]  # a task, and what to tell of progress
_SECONDS = 0.5  # between two looks at the workers' progress


@dataclass(frozen=True)
class Shared:
    """What the workers share with their parent; without locks, since a worker may be killed while it holds one.

    done: bytes of input done, a number for each task that is under way; one task at a time adds to it.
    stop: not 0 when the workers are to stop. parent: its process id.
    """

    done: ctypes.Array[ctypes.c_uint64]
    stop: ctypes.c_uint64
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
            done, stop = context.RawArray(ctypes.c_uint64, self._window), context.RawValue(ctypes.c_uint64, 0)
            self._shared = Shared(done, stop, os.getpid())
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
        waiting = enumerate(tasks)
        shown = sum(self._shared.done)
        try:
            while True:
                for number, task in itertools.islice(waiting, self._window - len(running)):
                    with _interrupts_held():  # a slot is free again once the result of its last task is taken
                        running.append(self._pool.submit(_work, work, task, number % self._window))
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
            self._shared.stop.value = 1
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
    now = sum(shared.done)
    bar.advance(now - shown)
    return now


# --- in a worker ---------------------------------------------------------------------------------------------------

_shared: Shared | None = None


def _start_worker(shared: Shared) -> None:
    global _shared  # noqa: PLW0603 - a pool hands its initialiser's arguments over in no other way
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends the pool
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    die_with_parent(shared.parent)()  # a killed parent cannot end its workers, who would write beside its successor


def _work(work: Work[Task, Result], task: Task, slot: int) -> Result:
    return work(task, functools.partial(_advance, slot))


def _advance(slot: int, amount: int) -> None:
    """Raises: Stopped when the parent has met an error, or was interrupted: it waits for its workers."""
    assert _shared is not None
    if _shared.stop.value:
        raise Stopped("the other tasks were ended")
    _shared.done[slot] += amount
