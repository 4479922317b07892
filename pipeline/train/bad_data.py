"""Data that turn out to be bad while a training goes on, and are left out by every rank from the same step on.

A rank may find a bad file when it makes a batch, or later, when its checksum is compared. Before each step all ranks
know whether any has found one (it rides on a number that they exchange anyway); if so they tell each other which, leave
out all windows in them, and make the batches ahead anew. What is left out is part of each checkpoint.
"""

from __future__ import annotations

from typing import Any

from pipeline.train.audit import Audit
from pipeline.train.collective import gather, reduce_max
from pipeline.train.steps import Steps
from pipeline.train.task import MayLeaveOut, Task

STATE = "left_out"  # in a checkpoint: name → the step from which it is left out


class BadData:
    """What a training leaves out. Every rank calls the same methods; does nothing for a task that skips nothing."""

    def __init__(self, task: Task, steps: Steps, audit: Audit) -> None:
        self.steps, self.audit = steps, audit
        self._task = task if isinstance(task, MayLeaveOut) and task.skips_bad else None
        self._left_out: dict[str, int] = {}

    def begin(self, step: int, state: dict[str, Any]) -> None:
        """Go on with what a checkpoint's state says, and agree on the first step. All ranks together."""
        if self._task is None:
            return
        self._left_out = {str(name): int(since) for name, since in state.get(STATE, {}).items()}
        if self._left_out:
            self._task.leave_out(self._left_out)
            self.steps.begin(step)
        if reduce_max([float(self.found())])[0]:
            self.agree(step)

    def found(self) -> bool:
        """Whether this rank has found bad data that are not left out yet; waits for the next step's batch."""
        if self._task is None:
            return False
        self.steps.wait_for_data()
        return bool(self._task.found_bad())

    def agree(self, step: int) -> None:
        """Leave out what any rank has found, from `step` on. All ranks together."""
        assert self._task is not None
        while True:  # the batches that are made anew may come upon more
            every = {name: why for found in gather(dict(self._task.found_bad())) for name, why in found.items()}
            if not every:
                return
            self._left_out.update(dict.fromkeys(sorted(every), step))
            self._task.leave_out(self._left_out)
            for name, why in sorted(every.items()):
                self.audit.event("bad_shard", step, file=name, why=why)
            self.steps.begin(step)
            self.steps.wait_for_data()

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {STATE: dict(self._left_out)} if self._left_out else {}
