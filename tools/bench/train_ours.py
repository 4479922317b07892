"""`train` through our own training loop, as `pipeline pretrain` runs it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from train_cases import Case
from train_clock import Clock, Tokens

from pipeline.cluster.device import Device
from pipeline.cluster.ranks import Ranks
from pipeline.errors import Stopped
from pipeline.model.build import build_model
from pipeline.recipe import TrainingBase
from pipeline.tracking import Tracker
from pipeline.train import loop
from pipeline.train.steps import split_batch
from pipeline.train.task import Batch, ReduceSum

STEPS = 1_000_000  # more than are done: the clock ends it


def train(case: Case, clock: Clock, ranks: Ranks, device: Device, folder: Path) -> None:
    """Train until the clock says that it is enough."""
    settings = TrainingBase.model_validate(
        {
            "micro_batch": case.size.micro,
            "global_batch": case.size.sequences,
            "precision": case.dtype,
            "compile": "yes" if case.compiled else "no",
            "checkpoint_minutes": 1e6,
            "validation_interval": STEPS,
            "optimizer": {"learning_rate": 1e-4},
            **dict(word.split("=", 1) for word in case.settings),
        }
    )
    with contextlib.suppress(Stopped):  # by the clock
        loop.train(_Task(case, settings.micro_batch, clock, ranks), settings, folder, 1, ranks, Tracker())


class _Task:
    """Random tokens; see pipeline/train/task.py."""

    name, fingerprint, steps = "train", "train", STEPS

    def __init__(self, case: Case, micro: int, clock: Clock, ranks: Ranks) -> None:
        size = case.size
        self.model = build_model(size.model, size.words, 1)
        self.sequences, self.tokens_per_step = size.sequences, size.sequences * size.length
        self.flops_per_step = size.flops * self.tokens_per_step
        self._tokens, self._clock = Tokens(size), clock
        self._accumulation = split_batch(size.sequences, micro, ranks.world_size)[1]
        self._calls = 0

    def targets(self, step: int) -> int:
        return self.tokens_per_step

    def batch(self, sequences: Sequence[int]) -> Batch:
        rows = self._tokens.rows(sequences)
        return {"inputs": rows[:, :-1].contiguous(), "targets": rows[:, 1:].contiguous()}

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        if self._calls % self._accumulation == 0 and self._clock.over():
            raise Stopped("as long as was asked for")
        self._calls += 1
        loss: Tensor = model(batch["inputs"], batch["targets"])
        return loss

    def validate(self, model: nn.Module, ranks: Ranks, reduce_sum: ReduceSum) -> dict[str, float]:
        return {}
