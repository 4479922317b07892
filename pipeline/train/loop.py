"""One training loop for everything that learns: steps, data, logging, validation, checkpoints, resuming, stopping.

Whatever is trained is a `Task`. Step t works on the global sequences t·G … (t+1)·G-1, wherever they are computed: the
loop deals them out to ranks and micro-batches, and scales the loss so that a step's gradient is the mean over the
step's targets for every number of ranks and every micro-batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.cluster.device import find_device, matmul_peak
from pipeline.cluster.ranks import Ranks
from pipeline.errors import DataError, RecipeError, Stopped
from pipeline.progress import Progress, log, progress
from pipeline.recipe import TrainingBase
from pipeline.tracking import Tracker
from pipeline.train import checkpoints, engine
from pipeline.train.checkpoints import Checkpoint
from pipeline.train.collective import broadcast, reduce_max, reduce_sum, wait_for_all
from pipeline.train.history import History
from pipeline.train.parameters import layout
from pipeline.train.prefetch import Prefetch
from pipeline.train.schedule import learning_rate_factor
from pipeline.train.signals import StopRequest
from pipeline.train.speed import Speed, peak_memory

Batch = dict[str, Tensor]
ReduceSum = Callable[[Sequence[float]], list[float]]


class Task(Protocol):
    """What is trained. Everything in it is a pure function of the recipe and the data.

    name: title of the progress bar. model: in fp32 on the CPU, the same on every rank. steps: optimizer steps in all.
    sequences: G, the global batch. tokens_per_step, flops_per_step: over all ranks, for tokens/s and MFU.
    fingerprint: names the data and whatever must not change between save and resume.
    """

    name: str
    model: nn.Module
    steps: int
    sequences: int
    tokens_per_step: int
    flops_per_step: float
    fingerprint: str

    def targets(self, step: int) -> int:
        """Number of targets (tokens, or examples) in the step's global batch: by how much its loss is divided."""
        ...

    def batch(self, sequences: Sequence[int]) -> Batch:
        """CPU tensors, batch first, of these global sequence numbers; -1 is padding, whose targets are all -100.

        Called from another thread than the rest.
        """
        ...

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum (not mean) of the loss over the targets of a micro-batch, an fp32 scalar. Calls model(…), the engine."""
        ...

    def validate(self, model: nn.Module, ranks: Ranks, reduce_sum: ReduceSum) -> dict[str, float]:
        """Numbers on held-out data, the same on every rank. Ranks call the model equally often (for ZeRO-3)."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """checkpoint: the last one; losses: mean loss of each step from 0, resumed or not; validations: step → numbers.

    metrics: of this process's part of the run (tokens_per_second, mfu, data_wait, …). seconds: spent in steps.
    """

    checkpoint: Path
    steps: int
    losses: list[float]
    validations: dict[int, dict[str, float]]
    world_size: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def train(task: Task, settings: TrainingBase, folder: Path, seed: int, ranks: Ranks, tracker: Tracker) -> TrainResult:
    """Train to the end, from the last good checkpoint in `folder` if there is one. Every rank calls it.

    Raises: Stopped after SIGTERM, SIGUSR1 or SIGINT, once a checkpoint is saved; RecipeError when the loss is no
    longer finite; DataError when a checkpoint belongs to other data; EnvironmentFault.
    """
    device = find_device(ranks)
    with StopRequest() as stop, engine.process_group(ranks, device):
        torch.manual_seed(seed + ranks.rank)
        run = _Run(task, settings, folder, ranks, tracker, stop)
        try:
            return run.to_the_end()
        finally:
            run.close()


class _Run:
    """The state of one call of `train`."""

    def __init__(
        self,
        task: Task,
        settings: TrainingBase,
        folder: Path,
        ranks: Ranks,
        tracker: Tracker,
        stop: StopRequest,
    ) -> None:
        self.task, self.settings, self.folder, self.ranks = task, settings, folder, ranks
        self.tracker, self.stop = tracker, stop
        self.device = find_device(ranks)
        self.dtype = engine.precision(settings, self.device)
        self.zero_stage = engine.zero_stage(settings.deepspeed)
        self.micro, self.accumulation = split_batch(task.sequences, settings.micro_batch, ranks.world_size)
        self.peak = reduce_sum([matmul_peak(self.device, self.dtype)])[0]
        self._announce()
        plan = engine.Plan(
            ranks.world_size,
            self.micro,
            self.accumulation,
            self.dtype,
            engine.compiles(settings, self.device),
        )
        self.layout = layout(task.model, settings.optimizer)
        self.engine = engine.start(task.model, settings, self.device, plan)
        self.rates = [group["lr"] for group in self.engine.optimizer.param_groups]
        self.history = History(folder, ranks.first)
        self.saved = -1  # step of the checkpoint that was written or loaded last
        self.step = self._resume()
        self.data = Prefetch(self._batches, self.step, task.steps)
        self.pending: list[tuple[int, Tensor]] = []  # steps whose loss has not been brought to the host
        self.speed = Speed(task.tokens_per_step, task.flops_per_step, self.peak)
        self.last_save = time.monotonic()

    def close(self) -> None:
        self.data.close()
        self.history.close()
        self.engine.destroy()

    def to_the_end(self) -> TrainResult:
        task, done = self.task, self.step * self.task.tokens_per_step
        interval = self.settings.validation_interval or max(1, math.ceil(task.steps / 10))
        total = task.steps * task.tokens_per_step
        with progress(task.name if self.ranks.first else "", total, "tok", done) as bar:
            while self.step < task.steps:
                self._one_step()
                self._show(bar)
                last = self.step == task.steps
                if self.step % interval == 0 or last:
                    self._flush()
                    self._validate()
                self._decide(last)
        if self.saved != self.step:
            self._save()
        return TrainResult(
            checkpoints.path_of(self.folder, self.step),
            self.step,
            self.history.losses(),
            self.history.validations(),
            self.ranks.world_size,
            self.speed.metrics(),
            self.speed.seconds,
        )

    # --- one step --------------------------------------------------------------------------------------------------

    def _one_step(self) -> None:
        began = time.perf_counter()
        batches = self.data.next()
        waited = time.perf_counter() - began
        factor = learning_rate_factor(self.settings.schedule, self.step, self.task.steps)
        for group, rate in zip(self.engine.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        targets = self.task.targets(self.step)
        # DeepSpeed averages over ranks and micro-batches; this makes of it the mean over the step's targets.
        scale = self.ranks.world_size * self.accumulation / targets
        total = torch.zeros((), dtype=torch.float64 if self.device.kind == "cpu" else torch.float32)
        total = total.to(self.device.torch_device)
        for batch in batches:
            on_device = {name: value.to(self.device.torch_device, non_blocking=True) for name, value in batch.items()}
            loss = self.task.loss_sum(self.engine, on_device)
            self.engine.backward(loss * scale)
            self.engine.step()
            total += loss.detach()
        self.pending.append((self.step, total / targets))
        self.step += 1
        if self.device.kind == "cpu" or self.step % self.settings.log_interval == 0:
            self._flush()
        self.speed.add(time.perf_counter() - began, waited)

    def _batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step."""
        first, found = step * self.task.sequences, []
        for index in range(self.accumulation):
            start = (index * self.ranks.world_size + self.ranks.rank) * self.micro
            places = range(start, start + self.micro)
            batch = self.task.batch([first + place if place < self.task.sequences else -1 for place in places])
            if self.device.kind == "cuda":  # only pinned memory is copied while the GPU computes
                batch = {name: value.pin_memory() for name, value in batch.items()}
            found.append(batch)
        return found

    def _flush(self) -> None:
        """Bring pending losses to the host, summed over ranks; stop at one that is not finite; log at the interval."""
        if not self.pending:
            return
        losses = reduce_sum(torch.stack([loss for _, loss in self.pending]).tolist())
        for (step, _), loss in zip(self.pending, losses, strict=True):
            if not math.isfinite(loss):
                last = (
                    f"the last checkpoint is from step {self.saved}"
                    if self.saved > 0
                    else "no checkpoint was saved yet"
                )
                raise RecipeError(
                    f"step {step + 1}: the loss is {loss}; lower optimizer.learning_rate, raise schedule.warmup or set "
                    f"precision=fp32; {last}"
                )
            self.history.add_loss(step, loss)
        self.pending.clear()
        if self.step % self.settings.log_interval == 0 or self.step == self.task.steps:
            self._log()

    def _log(self) -> None:
        norm = self.engine.get_global_grad_norm()
        memory = reduce_max([peak_memory(self.device.kind)])[0]
        factor = learning_rate_factor(self.settings.schedule, self.step - 1, self.task.steps)
        found = {
            "loss": self.history.recent(self.settings.log_interval),
            "learning_rate": self.rates[0] * factor,
            "tokens": float(self.step * self.task.tokens_per_step),
            "memory_gib": memory / 2**30,
            **self.speed.interval(),
        }
        if norm is not None:
            found["gradient_norm"] = float(norm)
        self.tracker.log_metrics(found, self.step)

    def _validate(self) -> None:
        was_training = self.engine.module.training
        self.engine.eval()
        with torch.no_grad():
            found = self.task.validate(self.engine, self.ranks, reduce_sum)
        self.engine.train(was_training)
        self.history.add_validation(self.step, found)
        self.tracker.log_metrics({f"validation/{name}": value for name, value in found.items()}, self.step)
        if self.ranks.first:
            words = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in found.items())
            log.info(f"{self.task.name}: step {self.step:,} of {self.task.steps:,}: held-out {words}")

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def _decide(self, last: bool) -> None:
        """Save or stop, all ranks alike: one rank's signal or clock counts for all."""
        due = time.monotonic() - self.last_save >= 60 * self.settings.checkpoint_minutes
        every = self.settings.checkpoint_steps
        asked, save = reduce_max(
            [float(self.stop.asked), float((due and self.ranks.first) or (every > 0 and self.step % every == 0))]
        )
        if last:
            self._flush()
        elif asked or save:
            self._save()
        if asked and not last:
            raise Stopped(
                f"{self.task.name}: stopped after step {self.step:,} of {self.task.steps:,}, a checkpoint is saved; "
                "the same command continues"
            )

    def _save(self) -> None:
        self._flush()  # a step with a bad loss must not be saved as good
        self.history.sync()
        about = Checkpoint(
            step=self.step,
            fingerprint=self.task.fingerprint,
            world_size=self.ranks.world_size,
            zero_stage=self.zero_stage,
            dtype=str(self.dtype),
            layout=self.layout,
        )
        checkpoints.save(self.engine, self.folder, self.ranks, about)
        if self.ranks.first:
            checkpoints.prune(self.folder, self.settings.keep_checkpoints)
        wait_for_all()
        self.last_save, self.saved = time.monotonic(), self.step

    def _resume(self) -> int:
        """Load the last good checkpoint. Returns the number of steps done."""
        found = broadcast(checkpoints.latest(self.folder) if self.ranks.first else None)
        if found is None:
            self.history.cut(0)
            self.tracker.rewind(0)
            return 0
        path, saved = found
        if (saved.fingerprint, saved.layout) != (self.task.fingerprint, self.layout):
            what = "data or settings" if saved.layout == self.layout else "code: its weights are ordered otherwise"
            raise DataError(f"{path}: made from other {what}; move {self.folder} away, or set workdir=…")
        if (saved.world_size, saved.zero_stage) != (self.ranks.world_size, self.zero_stage):
            raise RecipeError(
                f"{path}: saved by {saved.world_size} ranks with ZeRO-{saved.zero_stage}, but here are "
                f"{self.ranks.world_size} with ZeRO-{self.zero_stage}; continue with ranks={saved.world_size}"
            )
        if saved.dtype != str(self.dtype):
            raise RecipeError(
                f"{path}: computed in {saved.dtype}, but here precision={self.settings.precision} gives {self.dtype}; "
                f"continue on a machine like the one before, or move {self.folder} away to begin anew"
            )
        checkpoints.load(self.engine, path, self.ranks)
        self.history.cut(saved.step)
        self.tracker.rewind(saved.step)
        if self.ranks.first:
            log.info(f"{self.task.name}: continues after step {saved.step:,} of {self.task.steps:,}")
        self.saved = saved.step
        return saved.step

    # --- words -----------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        if self.ranks.first:
            ranks = f"{self.ranks.world_size} rank{'s' * (self.ranks.world_size > 1)}"
            log.info(
                f"{self.task.name}: {ranks} ({self.ranks.launcher}), {self.device.describe()}, ZeRO-{self.zero_stage}, "
                f"{self.micro} × {self.accumulation} × {self.ranks.world_size} sequences a step, "
                f"matrix peak {self.peak / 1e12:.3g} TFLOP/s"
            )

    def _show(self, bar: Progress) -> None:
        if self.ranks.first:
            loss = self.history.recent(1)
            bar.advance(self.task.tokens_per_step, f"loss {loss:.3f}" if math.isfinite(loss) else "")


def split_batch(sequences: int, micro_batch: int, world_size: int) -> tuple[int, int]:
    """Micro-batch and accumulation steps that deal `sequences` to `world_size` ranks, with the least padding.

    The micro-batch is at most `micro_batch`. Example: 16 sequences on 3 ranks, at most 8 each: (6, 1), 2 padded.
    """
    accumulation = math.ceil(sequences / (world_size * micro_batch))
    return math.ceil(sequences / (world_size * accumulation)), accumulation
