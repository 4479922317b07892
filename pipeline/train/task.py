"""What the training loop trains: a `Task`; and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from pipeline.cluster.ranks import Ranks

Batch = dict[str, Tensor]
ReduceSum = Callable[[Sequence[float]], list[float]]


class Task(Protocol):
    """What is trained. Everything in it is a pure function of the recipe and the data.

    name: title of the progress bar. model: in fp32 on the CPU, the same on every rank. steps: optimizer steps in all.
    sequences: G, the global batch. tokens_per_step, flops_per_step: over all ranks, for tokens/s and MFU.
    fingerprint: names the data and whatever must not change between save and resume.

    Data is counted in windows of a global batch: step t works on window t, but for windows that the loss policy passes
    over. There may be more windows than steps.
    """

    name: str
    model: nn.Module
    steps: int
    sequences: int
    tokens_per_step: int
    flops_per_step: float
    fingerprint: str

    def targets(self, step: int) -> int:
        """Number of targets (tokens, or examples) in this global batch: by how much its loss is divided."""
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


@runtime_checkable
class MayLeaveOut(Protocol):
    """A task that can go on without data that turn out to be bad.

    skips_bad: whether it shall. Windows that are left out have no targets.
    """

    skips_bad: bool

    def found_bad(self) -> Mapping[str, str]:
        """What this rank has found to be bad and does not leave out yet: name → what is wrong."""
        ...

    def leave_out(self, names: Collection[str]) -> None:
        """From now on leave out all of these."""
        ...


@dataclass(frozen=True)
class Phase:
    """A part of a training whose batches differ from those before. first: its first step (from 0, over all phases);
    make: its task, whose `steps` is where it ends; about: what is new in it, for the audit."""

    first: int
    make: Callable[[], Task]
    about: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Phased(Protocol):
    """A task that is one of several phases of a training.

    all_steps: of all phases, for the learning rate. earlier: fingerprint → the last step that a checkpoint of it may
    have done, of the phases before.
    """

    all_steps: int
    earlier: Mapping[str, int]

    def tokens_at(self, step: int) -> int:
        """Tokens that were trained on in the first `step` steps."""
        ...


def tokens_at(task: Task, step: int) -> int:
    """Tokens that were trained on in the first `step` steps."""
    return task.tokens_at(step) if isinstance(task, Phased) else step * task.tokens_per_step


def all_steps(task: Task) -> int:
    """Steps of the whole training."""
    return task.all_steps if isinstance(task, Phased) else task.steps


@dataclass(frozen=True)
class TrainResult:
    """checkpoint: the last one, or the best where the task asks (best.py); losses: mean loss of each step from 0,
    resumed or not; validations: step → numbers.

    A step that was skipped for a loss that is not finite has nan. metrics: of this process's part of the run
    (tokens_per_second, mfu, data_wait, …). seconds: spent in steps. happened: what the loss policy did, as JSON types.
    """

    checkpoint: Path
    steps: int
    losses: list[float]
    validations: dict[int, dict[str, float]]
    world_size: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    happened: dict[str, Any] = field(default_factory=dict)
