"""The ways back to a checkpoint: when a training continues, and when it leaves a spike behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from pipeline.cluster.ranks import Ranks
from pipeline.errors import DataError
from pipeline.progress import log
from pipeline.spool import ROUNDING
from pipeline.tracking import Tracker
from pipeline.train.audit import Audit
from pipeline.train.checkpoint_files import Checkpoint, discard, every, step_of
from pipeline.train.checkpoints import Checkpoints
from pipeline.train.collective import broadcast
from pipeline.train.history import History
from pipeline.train.loss_policy import Spike, Watch
from pipeline.train.task import Phased, Task


class Resume:
    """Puts engine, history, policy and tracker back to where a checkpoint was. Every rank calls the same methods.

    engine: deepspeed.DeepSpeedEngine.
    """

    def __init__(
        self,
        task: Task,
        engine: Any,
        ranks: Ranks,
        checkpoints: Checkpoints,
        history: History,
        policy: Watch,
        audit: Audit,
        tracker: Tracker,
    ) -> None:
        self.task, self.engine, self.ranks, self.checkpoints = task, engine, ranks, checkpoints
        self.history, self.policy, self.audit, self.tracker = history, policy, audit, tracker
        self.state: dict[str, Any] = {}  # of the checkpoint that was loaded

    def begin(self, zero_stage: int, dtype: torch.dtype) -> int:
        """Load the last good checkpoint if there is one. Returns the number of steps done.

        Raises: DataError when it belongs to other data, or there are some and none is whole.
        """
        found = self.checkpoints.latest()
        if found is None:
            self.history.cut(0)
            self.tracker.rewind(0, ROUNDING)  # perhaps there were other ranks
            return 0
        path, saved = found
        earlier = self.task.earlier if isinstance(self.task, Phased) else {}
        if saved.fingerprint != self.task.fingerprint and saved.step > earlier.get(saved.fingerprint, -1):
            raise DataError(
                f"{path}: made from other data or settings{_changed(saved.state.get('about'), about_of(self.task))}; "
                f"move {path.parent} away, or set workdir=…"
            )
        before, now = (
            {"ranks": world, "zero": stage, "dtype": word.removeprefix("torch.")}
            for world, stage, word in (
                (saved.world_size, saved.zero_stage, saved.dtype),
                (self.ranks.world_size, zero_stage, str(dtype)),
            )
        )
        if before != now:
            self.audit.event("world_changed", saved.step, before=before, now=now)
        self.policy.restore(saved.state["loss_policy"])
        self._go_on_from(path, saved, ROUNDING if before != now else None)
        if self.ranks.first:
            log.info(f"{self.task.name}: continues after step {saved.step:,} of {self.task.steps:,}")
        return saved.step

    def roll_back(self, spike: Spike) -> int:
        """Go back to the last checkpoint from before a spike, and around its data. Returns the number of steps done.

        Raises: RecipeError when there is none, or there were too many spikes; EnvironmentFault when another command
        has taken over.
        """
        self.audit.event("spike", spike.last + 1, first=spike.first + 1, **spike.values)
        self.policy.check(spike)
        self.checkpoints.settle()
        folder = self.checkpoints.folder
        steps = broadcast([step_of(path) for path in every(folder)] if self.ranks.first else [])
        good = self.policy.good(spike, steps)
        if self.ranks.first:
            for path in reversed(every(folder)):
                if step_of(path) > good:  # a kill from now on must not resume from it
                    self.checkpoints.fence()
                    discard(path)
        found = self.checkpoints.latest()
        if found is None:
            raise self.policy.no_way_back(spike)
        path, saved = found
        windows = self.policy.around(spike, saved.step, saved.state["loss_policy"])
        self._go_on_from(path, saved, 0.0)
        self.audit.event(
            "rollback",
            saved.step,
            spike=spike.first + 1,
            windows_passed_over=[windows[0], windows[-1]],
            rollbacks=self.policy.state.rollbacks,
        )
        return saved.step

    def _go_on_from(self, path: Path, saved: Checkpoint, rounding: float | None) -> None:
        self.state = dict(saved.state)
        self.checkpoints.load(self.engine, path)
        self.history.cut(saved.step)
        self.tracker.rewind(saved.step, rounding)


def about_of(task: Task) -> dict[str, Any]:
    """What a task says of its data, to be kept in checkpoints: JSON types."""
    return dict(getattr(task, "about", {}))


def _changed(before: object, now: dict[str, Any]) -> str:
    """In words, what differs in two tasks; empty where nobody can tell."""
    if not isinstance(before, dict):
        return ""
    after = json.loads(json.dumps(now))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    words = [f"{name} was {before.get(name)!r}, is {after.get(name)!r}" for name in names]
    return f" ({'; '.join(words)})" if words else ""
