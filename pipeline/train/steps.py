"""One optimizer step on all ranks: data dealt out, forward and backward in micro-batches, the update.

Step t works on the global sequences w·G … (w+1)·G-1, where w is t but for data that was passed over (loss_policy.py),
wherever they are computed: they are dealt out to ranks and micro-batches, and the loss is scaled so that a step's
gradient is the mean over the step's targets for every number of ranks and every micro-batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.cluster.ranks import Ranks
from pipeline.errors import RecipeError
from pipeline.recipe import TrainingBase
from pipeline.train.collective import reduce_sum
from pipeline.train.loss_policy import CURE, GradientWatch, skip_bad_updates
from pipeline.train.prefetch import Prefetch
from pipeline.train.schedule import learning_rate_factor
from pipeline.train.step_times import OwnTime
from pipeline.train.task import Batch, Task, all_steps


@dataclass(frozen=True)
class Done:
    """A step on the device. step: from 0; loss: of this rank, a share of the step's mean; applied: on all ranks alike,
    whether the weights were updated; finite: whether this rank's own gradient was (where it was looked at)."""

    step: int
    loss: Tensor
    applied: bool
    finite: bool = True


class Steps:
    """Does steps of `task` on `engine` (deepspeed.DeepSpeedEngine, fresh: before a checkpoint is loaded).

    micro, accumulation: as `split_batch` says. window: the number of the global batch that a step works on. Losses stay
    on the device until `losses` is called.
    """

    def __init__(
        self,
        task: Task,
        engine: Any,
        settings: TrainingBase,
        ranks: Ranks,
        device: torch.device,
        micro: int,
        accumulation: int,
        window: Callable[[int], int] = lambda step: step,
    ) -> None:
        self.task, self.engine, self.settings, self.ranks = task, engine, settings, ranks
        self.device, self.micro, self.accumulation, self.window = device, micro, accumulation, window
        self.rates = [group["lr"] for group in engine.optimizer.param_groups]
        self.own = OwnTime(device)
        self.data: Prefetch[list[Batch]] | None = None
        self.pending: list[Done] = []  # steps whose loss has not been brought to the host
        self.guarded = settings.loss_policy.enabled
        if self.guarded:
            skip_bad_updates(engine)
            self.gradients = GradientWatch(task.model, device)

    def begin(self, first: int) -> None:
        """Make ready for the steps from `first` on."""
        self.close()
        self.pending.clear()
        self.data = Prefetch(self._batches, first, self.task.steps)

    def wait_for_data(self) -> None:
        """Return when the next step's data are made."""
        if self.data is not None:
            self.data.wait()

    def close(self) -> None:
        if self.data is not None:
            self.data.close()

    def do(self, step: int) -> float:
        """One step. Returns the seconds that its data was waited for.

        A loss that is not finite makes the gradient NaN, so that no rank applies it.
        """
        began = time.perf_counter()
        assert self.data is not None, "begin(step) comes first"
        self.own.steps += 1
        with self.own.measured():
            batches = self.data.next()
        waited = time.perf_counter() - began
        factor = learning_rate_factor(self.settings.schedule, step, all_steps(self.task))
        for group, rate in zip(self.engine.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        targets = self.task.targets(self.window(step))
        # DeepSpeed averages over ranks and micro-batches; this makes of it the mean over the step's targets.
        scale = self.ranks.world_size * self.accumulation / targets
        exact = torch.float64 if self.device.type == "cpu" else torch.float32
        total = torch.zeros((), dtype=exact, device=self.device)
        if self.guarded:
            self.gradients.reset()
        for batch in batches:
            on_device = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
            with self.own.measured():
                loss = self.task.loss_sum(self.engine, on_device)
            if self.guarded:
                self.engine.backward(loss * torch.where(torch.isfinite(loss.detach()), scale, math.nan))
            else:
                self.engine.backward(loss * scale)
            update(self.engine)
            total += loss.detach()
        applied = not self.guarded or bool(self.engine.was_step_applied())
        finite = applied or self.gradients.finite()
        if finite and not applied:
            self.gradients.look_closer()
        self.pending.append(Done(step, total / targets, applied, finite))
        return waited

    @property
    def learning_rate(self) -> float:
        """Of the last step, for the first group."""
        return float(self.engine.optimizer.param_groups[0]["lr"])

    def losses(self) -> list[tuple[Done, float]]:
        """The steps since the last call, with the mean loss over all ranks. Waits for the device."""
        if not self.pending:
            return []
        done = list(self.pending)
        self.pending.clear()
        return list(zip(done, reduce_sum(torch.stack([each.loss for each in done]).tolist()), strict=True))

    def _batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step."""
        first, found = self.window(step) * self.task.sequences, []
        for index in range(self.accumulation):
            start = (index * self.ranks.world_size + self.ranks.rank) * self.micro
            places = range(start, start + self.micro)
            batch = self.task.batch([first + place if place < self.task.sequences else -1 for place in places])
            if self.device.type == "cuda":  # only pinned memory is copied while the GPU computes
                batch = {name: value.pin_memory() for name, value in batch.items()}
            found.append(batch)
        return found


def update(engine: Any) -> None:
    """DeepSpeed's step. Raises: RecipeError when fp16 finds no scale for the loss; all ranks alike."""
    try:
        engine.step()
    except Exception as error:  # DeepSpeed has no type of its own for it
        if "loss scale already at minimum" not in str(error):
            raise
        raise RecipeError(
            f"precision=fp16: the gradient is not finite at the smallest loss scale; set precision=bf16, or {CURE}"
        ) from error


def split_batch(sequences: int, micro_batch: int, world_size: int) -> tuple[int, int]:
    """Micro-batch and accumulation steps that deal `sequences` to `world_size` ranks, with the least padding.

    The micro-batch is at most `micro_batch`. Example: 16 sequences on 3 ranks, at most 8 each: (6, 1), 2 padded.
    """
    accumulation = math.ceil(sequences / (world_size * micro_batch))
    return math.ceil(sequences / (world_size * accumulation)), accumulation
