"""What a training tells while it goes on: lines of the log, numbers for MLflow, events of steps that were skipped."""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.cluster.device import Device
from pipeline.cluster.ranks import Ranks
from pipeline.progress import Progress, log
from pipeline.recipe import TrainingBase
from pipeline.tracking import Tracker
from pipeline.train.audit import Audit
from pipeline.train.collective import by_rank, gather, reduce_max
from pipeline.train.compilation import COMPILER
from pipeline.train.hang_report import Peer
from pipeline.train.history import History, in_json
from pipeline.train.speed import Speed, peak_memory
from pipeline.train.step_times import StepTimes
from pipeline.train.steps import Done, Steps
from pipeline.train.task import Task, tokens_at

TOLD_WAIT = 0.01  # share of the time; less is not worth a word


class Telling:
    """Tells of one training. Methods that gather from all ranks say so; of the others, rank 0's words count."""

    def __init__(
        self,
        task: Task,
        settings: TrainingBase,
        ranks: Ranks,
        device: Device,
        history: History,
        audit: Audit,
        tracker: Tracker,
    ) -> None:
        self.task, self.settings, self.ranks, self.device = task, settings, ranks, device
        self.history, self.audit, self.tracker = history, audit, tracker
        self._step_times = StepTimes(settings.watchdog)
        self.compiled = False
        self.waited = 0.0  # share of the last interval

    def begins(self, zero_stage: int, micro: int, accumulation: int, peak: float) -> None:
        """How the training is laid out. peak: matrix products of all ranks, FLOP/s."""
        if self.ranks.first:
            world = self.ranks.world_size
            log.info(
                f"{self.task.name}: {world} rank{'s' * (world > 1)} ({self.ranks.launcher}), {self.device.describe()}, "
                f"ZeRO-{zero_stage}, {micro} × {accumulation} × {world} sequences a step, "
                f"matrix peak {peak / 1e12:.3g} TFLOP/s"
            )

    def first_step(self, step: int, seconds: float, compiled: bool) -> None:
        """The first step of this start is done, so many seconds after the engine was begun."""
        if self.ranks.first and compiled:
            COMPILER.first_step(self.task.name, seconds)
        self.compiled = compiled
        self.tracker.log_metrics({"seconds_to_first_step": seconds}, step)

    def step(self, bar: Progress) -> None:
        """A step is done."""
        if self.ranks.first:
            loss = self.history.recent(1)
            words = f"loss {loss:.3f}" if math.isfinite(loss) else ""
            if self.waited >= TOLD_WAIT:
                words += f", {self.waited:.0%} of the time waiting for data"
            bar.advance(self.task.tokens_per_step, words)

    def skipped(self, done: Done, loss: float, window: int) -> None:
        """A step that no rank applied, and whose fault that was. All ranks together, for the same step."""
        mine = float(done.loss)
        blamed = not math.isfinite(mine) or not done.finite
        told = {"rank": self.ranks.rank, "host": socket.gethostname(), "loss": in_json(mine), "gradient_finite": False}
        found = [each for each in gather(told if blamed else None) if each]
        self.audit.event("skipped", done.step + 1, window=window, loss=in_json(loss), ranks=found)

    def interval(self, step: int, engine: Any, steps: Steps, speed: Speed, peers: Sequence[Peer]) -> None:
        """Numbers after `step` steps, and ranks that are slow. All ranks together; losses were just fetched."""
        norm = engine.get_global_grad_norm()
        memory = reduce_max([peak_memory(self.device.kind)])[0]
        measured = speed.interval()
        self.waited = measured.get("data_wait", 0.0)
        own = self._step_times.compare(by_rank(steps.own.take()), measured.get("step_seconds", 0.0))
        for slow in self._step_times.news:
            self.audit.event("slow_rank", step, host=peers[slow.rank].host, **asdict(slow))
        found = {
            "loss": self.history.recent(self.settings.log_interval),
            "learning_rate": steps.learning_rate,
            "tokens": float(tokens_at(self.task, step)),
            "memory_gib": memory / 2**30,
            **measured,
            **own,
        }
        if self.compiled:
            found["compiled_graphs"] = float(COMPILER.graphs)
            if self.ranks.first:
                COMPILER.news(self.task.name)
        if norm is not None:
            found["gradient_norm"] = float(norm)
        self.tracker.log_metrics(found, step)

    def validated(self, step: int, found: Mapping[str, float]) -> None:
        """Numbers on held-out data."""
        self.tracker.log_metrics({f"validation/{name}": value for name, value in found.items()}, step)
        if self.ranks.first:
            words = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in found.items())
            log.info(f"{self.task.name}: step {step:,} of {self.task.steps:,}: held-out {words}")
