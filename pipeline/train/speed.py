"""How fast training goes: tokens a second, MFU, the share of time spent waiting for data, memory."""

from __future__ import annotations

import torch

from pipeline.memory import peak_resident


def peak_memory(kind: str) -> float:
    """Most memory this rank has held, in bytes: of the GPU, or of the process."""
    if kind == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return float(peak_resident())


class Speed:
    """Counts steps, their seconds, and the seconds of those in which data was waited for.

    tokens, flops: of a step, over all ranks; peak: FLOP/s that all devices together reach.
    """

    def __init__(self, tokens: int, flops: float, peak: float) -> None:
        self.tokens, self.flops, self.peak = tokens, flops, peak
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0
        self.last: tuple[int, float, float] = (0, 0.0, 0.0)

    def add(self, seconds: float, waited: float) -> None:
        self.steps, self.seconds, self.waited = self.steps + 1, self.seconds + seconds, self.waited + waited

    def interval(self) -> dict[str, float]:
        """Numbers since the last call."""
        steps, seconds, waited = (
            now - then for now, then in zip((self.steps, self.seconds, self.waited), self.last, strict=True)
        )
        self.last = (self.steps, self.seconds, self.waited)
        return self._rates(int(steps), seconds, waited)

    def metrics(self) -> dict[str, float]:
        """Numbers since the start."""
        return self._rates(self.steps, self.seconds, self.waited)

    def _rates(self, steps: int, seconds: float, waited: float) -> dict[str, float]:
        if not steps or not seconds:
            return {}
        return {
            "tokens_per_second": steps * self.tokens / seconds,
            "mfu": steps * self.flops / seconds / self.peak,
            "data_wait": waited / seconds,
            "step_seconds": seconds / steps,
        }
