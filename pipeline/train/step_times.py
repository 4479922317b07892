"""Which ranks are slow: each rank's own part of a step, compared with the median over all ranks.

A step ends on all ranks at once, since they wait for each other; so the whole step's seconds name nobody. Compared is
what a rank does before it needs the others: waiting for its data and the forward passes. With ZeRO-3 the forward pass
fetches weights from the others and so waits for the slowest of them: there only the wait for data tells ranks apart.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pipeline.settings.training import WatchdogSettings

LEAST = 0.1  # share of the whole step that a rank must cost before it is worth a line


class OwnTime:
    """Adds up what this rank does alone: on a GPU by events in its stream, read when the step is long over.

    steps: how many it is of; whoever measures counts them.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds, self.steps = 0.0, 0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Count the block."""
        if self._on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    def take(self) -> float:
        """Mean seconds a step since the last call. On a GPU call it where losses have just been fetched: it waits."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._events.clear()
        found = self._seconds / max(1, self.steps)
        self._seconds, self.steps = 0.0, 0
        return found


@dataclass(frozen=True)
class Slow:
    """A rank that is slow; it is named once, until it recovers. seconds: its own part of a step; median: that of all
    ranks; recovered: it was slow and is no longer."""

    rank: int
    seconds: float
    median: float
    recovered: bool = False


class StepTimes:
    """Compares the ranks at each log interval. news: ranks that the last comparison found slow for `slow_intervals`
    intervals running, and named ones that have recovered."""

    def __init__(self, settings: WatchdogSettings) -> None:
        self.news: list[Slow] = []
        self._factor, self._intervals = settings.slow_factor, settings.slow_intervals
        self._running: Counter[int] = Counter()  # rank → intervals in which it was slow, without a break
        self._named: set[int] = set()

    def compare(self, own: Sequence[float], step_seconds: float) -> dict[str, float]:
        """own: each rank's own seconds a step in this interval, in the order of ranks; step_seconds: of a whole step.

        Returns numbers for the log: the slowest rank's own seconds, and the median's.
        """
        median = statistics.median_low(own)
        self.news = []
        for rank, seconds in enumerate(own):
            if seconds > self._factor * median and seconds - median > LEAST * step_seconds:
                self._running[rank] += 1
                if self._running[rank] >= self._intervals and rank not in self._named:
                    self._named.add(rank)
                    self.news.append(Slow(rank, seconds, median))
            else:
                self._running[rank] = 0
                if rank in self._named:
                    self._named.remove(rank)
                    self.news.append(Slow(rank, seconds, median, recovered=True))
        return {"step_seconds/slowest": max(own), "step_seconds/median": median}
