"""When a training's steps are measured, and when it is enough; the tokens that all contenders learn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from train_cases import Size

ROWS = 64  # sequences that are made; they come again and again


class Tokens:
    """Random ids, the same for all: what is learnt does not matter here."""

    def __init__(self, size: Size) -> None:
        drawn = torch.Generator().manual_seed(1)
        self._rows = torch.randint(0, size.words, (ROWS, size.length + 1), generator=drawn)

    def rows(self, places: Sequence[int]) -> Tensor:
        """(len(places), length + 1) int64."""
        return self._rows[torch.tensor(places) % ROWS]


class Clock:
    """Measures from the end of `warm` steps on, for `seconds` and at least `least` steps. Seconds are wall time."""

    def __init__(self, device: torch.device, seconds: float, warm: int, least: int) -> None:
        self._device, self._seconds, self._warm, self._least = device, seconds, warm, least
        self._begun = -1  # steps
        self._start = self._end = 0.0
        self._first = 0.0  # when the first step was done, seconds since 1970

    def over(self) -> bool:
        """Asked before each step, by every rank; all of them are given the same answer."""
        self._begun += 1
        if self._begun == 1:
            self._wait()
            self._first = time.time()
        if self._begun <= self._warm:
            self._wait()
            self._start = time.perf_counter()
        steps = self._begun - self._warm
        enough = steps >= self._least and time.perf_counter() - self._start >= self._seconds
        if steps < 0 or not _agreed(enough, self._device):
            return False
        self._wait()
        self._end = time.perf_counter()
        return True

    def told(self) -> dict[str, Any]:
        """What was measured. gpu: bytes that this rank held at most on its GPU; 0 without one."""
        steps = self._begun - self._warm
        gpu = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0
        return {"first": self._first, "steps": steps, "measured_seconds": self._end - self._start, "gpu": gpu}

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _agreed(enough: bool, device: torch.device) -> bool:
    """Whether it is enough for one rank: then for all."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return enough
    # Trainer's ranks have nccl alone, which knows no CPU.
    flag = torch.tensor(float(enough), device=device if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)
