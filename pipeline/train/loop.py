"""One training loop for everything that learns: steps, data, logging, validation, checkpoints, resuming, stopping.

Whatever is trained is a `Task` (task.py); one step of it is in steps.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.cluster.device import Device, find_device, matmul_peak
from pipeline.cluster.ranks import Ranks
from pipeline.errors import Stopped
from pipeline.owner import Fence
from pipeline.progress import Progress, log, progress
from pipeline.recipe import TrainingBase
from pipeline.tracking import Tracker
from pipeline.train import engine, self_test
from pipeline.train.audit import Audit
from pipeline.train.bad_data import BadData
from pipeline.train.best import best_step, has_waited_enough
from pipeline.train.checkpoint_files import Checkpoint, every, path_of, step_of
from pipeline.train.checkpoints import Checkpoints
from pipeline.train.collective import broadcast, reduce_max, reduce_sum
from pipeline.train.deepspeed_files import zero_stage
from pipeline.train.history import History
from pipeline.train.loss_policy import Spike, Watch
from pipeline.train.resume import Resume, about_of
from pipeline.train.signals import StopRequest
from pipeline.train.speed import Speed
from pipeline.train.steps import Steps, split_batch
from pipeline.train.task import Phase, Task, TrainResult, all_steps, tokens_at
from pipeline.train.telling import Telling
from pipeline.train.time_limit import TimeLimit, time_left
from pipeline.train.watchdog import Watchdog

FENCE_SECONDS = 1.0  # between two looks whether another command has taken over


def train(
    task: Task | Sequence[Phase],
    settings: TrainingBase,
    folder: Path,
    seed: int,
    ranks: Ranks,
    tracker: Tracker,
    fence: Fence | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train to the end, from the last good checkpoint in `folder` if there is one. Every rank calls it.

    task: or several phases of one training, the first of which begins at step 0; each goes on where the last one ended.

    fence: asked about once a second, and before each commit, whether the folder is still ours. recipe: the resolved
    one, kept in each checkpoint beside the id of the MLflow run, so that a checkpoint alone says what it is of.
    Raises: Stopped after SIGTERM, SIGUSR1 or SIGINT, or at the time limit, once a checkpoint is saved; RecipeError when
    steps go wrong again and again; DataError when a checkpoint belongs to other data, or data is missing;
    EnvironmentFault when the self-test fails, the disk is full or another command has taken the folder over.
    """
    self_test.check_version()
    device = find_device(ranks)
    phases = task if isinstance(task, Sequence) else _alone(task)
    task = phases[number := _phase_to_go_on_with(phases, folder)].make()
    about = {"steps": all_steps(task), "tokens_per_step": task.tokens_per_step}
    with (
        StopRequest() as stop,
        engine.process_group(ranks, device),
        Watchdog(folder, ranks, settings.watchdog, tracker, about) as watchdog,
    ):
        compiled = _compiles(task, settings, device, ranks)
        self_test.check_agreement(task.fingerprint, settings, device, compiled, ranks)
        if settings.self_test:
            self_test.check_gradients(settings, device, engine.precision(settings, device), ranks)
        while True:
            torch.manual_seed(seed + ranks.rank)
            run = _Run(task, settings, folder, ranks, tracker, stop, watchdog, fence or Fence())
            run.origin = {"recipe": dict(recipe or {}), "tracking": tracker.run_id()}
            try:
                if run.step < phases[number].first:  # its checkpoint was damaged, the one before is of the last phase
                    number -= 1
                else:
                    if phases[number].about and run.step == phases[number].first:
                        run.audit.event("phase", run.step, tokens=tokens_at(task, run.step), **phases[number].about)
                    result = run.to_the_end(last := number == len(phases) - 1)
                    if last:
                        return result
                    number += 1
            finally:
                run.close()
            del run  # its weights make room for those of the next
            task = phases[number].make()


def _alone(task: Task) -> list[Phase]:
    """A training of one phase."""
    return [Phase(0, lambda: task)]


def _compiles(task: Task, settings: TrainingBase, device: Device, ranks: Ranks) -> bool:
    return engine.compiles(settings, device, task.model, task.flops_per_step * all_steps(task) / ranks.world_size)


def _phase_to_go_on_with(phases: Sequence[Phase], folder: Path) -> int:
    """The number of the phase in which the newest checkpoint lies; each rank finds the same."""
    newest = max((step_of(path) for path in every(folder)), default=0)
    return max(number for number, phase in enumerate(phases) if phase.first <= newest)


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
        watchdog: Watchdog,
        fence: Fence,
    ) -> None:
        self.began = time.perf_counter()
        self.task, self.settings, self.folder, self.ranks = task, settings, folder, ranks
        self.watchdog = watchdog
        self.origin: dict[str, Any] = {}
        self.tracker, self.stop, self.fence = tracker, stop, fence
        self.device = find_device(ranks)
        self.dtype = engine.precision(settings, self.device)
        self.zero_stage = zero_stage(settings.deepspeed)
        self.micro, self.accumulation = split_batch(task.sequences, settings.micro_batch, ranks.world_size)
        self.peak = reduce_sum([matmul_peak(self.device, self.dtype)])[0]
        # Weights and two states of the optimizer in fp32; counted before ZeRO-3 takes the weights apart.
        self.checkpoint_bytes = 12.0 * sum(weight.numel() for weight in task.model.parameters() if weight.requires_grad)
        self.plan = engine.Plan(
            ranks.world_size,
            self.micro,
            self.accumulation,
            self.dtype,
            _compiles(task, settings, self.device, ranks),
        )
        self.engine = engine.start(task.model, settings, self.device, self.plan)
        self.history = History(folder, ranks.first)
        self.audit = Audit(folder, ranks, tracker, self.fence)
        self.telling = Telling(task, settings, ranks, self.device, self.history, self.audit, tracker)
        self.telling.begins(self.zero_stage, self.micro, self.accumulation, self.peak)
        self.policy = Watch(settings.loss_policy)
        self.checkpoints = Checkpoints(folder, ranks, settings, fence.check, self.audit)
        self.owed = False  # a save that was due, and put off
        self.steps = Steps(
            task,
            self.engine,
            settings,
            ranks,
            self.device.torch_device,
            self.micro,
            self.accumulation,
            self.policy.window,
        )
        self.back = Resume(task, self.engine, ranks, self.checkpoints, self.history, self.policy, self.audit, tracker)
        self.bad = BadData(task, self.steps, self.audit)
        self.step = self.back.begin(self.zero_stage, self.dtype)
        self.saved = self.step or -1  # step of the checkpoint that was written or loaded last
        self.steps.begin(self.step)
        self.bad.begin(self.step, self.back.state)
        self.audit.event("resumed" if self.step else "start", self.step, world_size=ranks.world_size)
        self.speed = Speed(task.tokens_per_step, task.flops_per_step, self.peak)
        self.last_save = time.monotonic()
        self.limit = self._time_limit()

    def close(self) -> None:
        self.steps.close()
        self.checkpoints.close()
        self.history.close()
        self.audit.close()
        self.engine.destroy()

    def to_the_end(self, last: bool = True) -> TrainResult:
        """last: of the phases."""
        task, done = self.task, tokens_at(self.task, self.step)
        interval = self.settings.validation_interval or max(1, math.ceil(all_steps(task) / 10))
        total = tokens_at(task, task.steps)
        with progress(task.name if self.ranks.first else "", total, "tok", done) as bar:
            while self.step < task.steps and not has_waited_enough(task, self.history.validations()):
                try:
                    self._turn(bar, interval)
                except Spike as spike:
                    at = self.step
                    with self.watchdog.doing("rollback"):
                        self._roll_back(spike)
                    bar.advance((self.step - at) * task.tokens_per_step)
        if self.step < task.steps and self.ranks.first:
            log.info(f"{task.name}: stops after step {self.step:,} of {task.steps:,}: no better validation came")
        if self.saved != self.step:
            self._save()
        with self.watchdog.doing("save"):
            self.checkpoints.wait()
        if last:
            self.audit.event("finished", self.step, **self.policy.told())
        best = best_step(task, self.history.validations())
        return TrainResult(
            path_of(self.folder, self.step if best is None else best),
            self.step,
            self.history.losses(),
            self.history.validations(),
            self.ranks.world_size,
            self.speed.metrics(),
            self.speed.seconds,
            self.policy.told(),
        )

    def _turn(self, bar: Progress, interval: int) -> None:
        """One step, and what is due after it. Raises: Spike."""
        began = time.perf_counter()
        waited = self.steps.do(self.step)
        self.step += 1
        if self.device.kind == "cpu" or self.step % self.settings.log_interval == 0:
            self._flush()
        self.watchdog.beat(self.step, synced=not self.steps.pending)
        if self.speed.steps == 0:
            if self.device.kind == "cuda":
                torch.cuda.synchronize()
            self.telling.first_step(self.step, time.perf_counter() - self.began, self.plan.compile)
        self.speed.add(time.perf_counter() - began, waited)
        self.telling.step(bar)
        last = self.step == self.task.steps
        better = False
        if self.step % interval == 0 or last:
            self._flush()
            self._validate()
            better = best_step(self.task, self.history.validations()) == self.step
        self.limit.stepped(time.perf_counter() - began)
        self._decide(last, better)

    # --- numbers ---------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Bring pending losses to the host, summed over ranks; judge them; log at the interval. Raises: Spike."""
        found = self.steps.losses()
        if not found:
            return
        for done, loss in found:
            # In fp16 a gradient that overflows is how DeepSpeed finds the scale of the loss.
            applied = done.applied or (self.dtype == torch.float16 and math.isfinite(loss))
            self.history.add_loss(done.step, loss)
            if not applied:
                self.telling.skipped(done, loss, self.policy.window(done.step))
            self.policy.observe(done.step, loss, applied)
        if self.step % self.settings.log_interval == 0 or self.step == self.task.steps:
            self.telling.interval(self.step, self.engine, self.steps, self.speed, self.watchdog.peers)

    def _validate(self) -> None:
        was_training = self.engine.module.training
        self.engine.eval()
        with torch.no_grad(), self.watchdog.doing("validate"):
            found = self.task.validate(self.engine, self.ranks, reduce_sum)
        self.engine.train(was_training)
        self.history.add_validation(self.step, found)
        self.telling.validated(self.step, found)

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def _decide(self, last: bool, better: bool = False) -> None:
        """Save or stop, all ranks alike: one rank's signal counts for all, and the clock of rank 0. better: these
        weights are the best until now, and are to be kept."""
        self.fence.check(within=FENCE_SECONDS)
        if committed := self.checkpoints.committed():
            self.limit.saved(committed.snapshot_seconds + committed.write_seconds)
        due = time.monotonic() - self.last_save >= 60 * self.settings.checkpoint_minutes
        interval = self.settings.checkpoint_steps
        asked, late, save, bad = reduce_max(
            [
                float(self.stop.asked),
                float(self.ranks.first and self.limit.reached()),
                float((due and self.ranks.first) or (interval > 0 and self.step % interval == 0) or self.owed),
                float(not last and self.bad.found()),
            ]
        )
        if bad:
            self.bad.agree(self.step)
        stops = bool(asked or late) and not last
        if last or stops or save:
            self._flush()  # a step that went wrong must not be saved as good
        if stops or (better and not last) or (save and not last and not self.policy.suspicious):
            self._save()
        self.owed = bool(save) and self.saved != self.step
        if stops:
            with self.watchdog.doing("save"):
                self.checkpoints.wait()
            why = "a signal" if asked else broadcast(self.limit.why)
            self.audit.event("stopped", self.step, why=why)
            raise Stopped(
                f"{self.task.name}: stopped after step {self.step:,} of {self.task.steps:,} ({why}), a checkpoint is "
                "saved; the same command continues"
            )

    def _save(self) -> None:
        self.history.sync()
        about = Checkpoint(
            step=self.step,
            fingerprint=self.task.fingerprint,
            world_size=self.ranks.world_size,
            zero_stage=self.zero_stage,
            dtype=str(self.dtype),
            state={
                "loss_policy": self.policy.saved(),
                "suspicious": self.policy.suspicious,
                "about": about_of(self.task),
                "best": best_step(self.task, self.history.validations()),
                **self.bad.saved(),
                **self.origin,
            },
        )
        with self.watchdog.doing("save"):
            self.checkpoints.save(self.engine, about)
        self.last_save, self.saved = time.monotonic(), self.step

    def _roll_back(self, spike: Spike) -> None:
        self.step = self.saved = self.back.roll_back(spike)
        self.last_save, self.owed = time.monotonic(), False
        self.steps.begin(self.step)

    def _time_limit(self) -> TimeLimit:
        """Of this start, on rank 0; the others follow it."""
        left, why = time_left(self.settings.max_hours) if self.ranks.first else (None, "")
        limit = TimeLimit(left, why, self.checkpoint_bytes)
        if left is not None:
            log.info(f"{self.task.name}: {left / 3600:.2f} hours are left ({why}); stops in time to save")
        return limit
