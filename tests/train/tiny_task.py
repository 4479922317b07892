"""A tiny language model on made-up sequences, as a `Task`; also a program that trains it on the ranks it is started on.

    python tiny_task.py '[{"folder": "/tmp/a", "settings": {…}, "steps": 8}, …]'

Optional key: accident (rank, step, what): there this rank sends itself the signal `what`, or has a loss of `nan`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.cluster.ranks import ALONE, Ranks, read_ranks
from pipeline.errors import PipelineError
from pipeline.model.build import build_model
from pipeline.progress import log, start_logging
from pipeline.recipe import ModelSettings, TrainingBase
from pipeline.tracking import Tracker
from pipeline.train.loop import Batch, ReduceSum, TrainResult, train

MODEL = ModelSettings(dim=32, layers=2, heads=2, kv_heads=1, ffn_dim=64, max_seq_len=32)
VOCABULARY = 64
LENGTH = 16
GLOBAL_BATCH = 6


class TinyTask:
    """Sequence k counts upwards from k with a stride of its own; every third has its first half masked."""

    name = "tiny"
    sequences = GLOBAL_BATCH
    tokens_per_step = GLOBAL_BATCH * LENGTH
    flops_per_step = 1e6

    def __init__(self, steps: int = 8, seed: int = 1, data: str = "counting") -> None:
        self.model = build_model(MODEL, VOCABULARY, seed)
        self.steps, self.fingerprint = steps, data
        self.seen: list[int] = []

    def targets(self, step: int) -> int:
        numbers = range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)
        return sum(LENGTH // 2 if number % 3 == 0 else LENGTH for number in numbers)

    def batch(self, sequences: Sequence[int]) -> Batch:
        tokens = torch.zeros(len(sequences), LENGTH + 1, dtype=torch.int64)
        for row, number in enumerate(sequences):
            if number >= 0:
                start, stride = np.random.default_rng(number).integers(0, 8, 2)
                tokens[row] = (int(start) + (1 + int(stride) % 2) * torch.arange(LENGTH + 1)) % 8
        targets = tokens[:, 1:].clone()
        for row, number in enumerate(sequences):
            if number < 0:
                targets[row] = -100
            elif number % 3 == 0:
                targets[row, : LENGTH // 2] = -100
        self.seen += [number for number in sequences if number >= 0]
        return {"inputs": tokens[:, :-1].contiguous(), "targets": targets}

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = model(batch["inputs"], batch["targets"])
        return loss

    def validate(self, model: nn.Module, ranks: Ranks, reduce_sum: ReduceSum) -> dict[str, float]:
        batch = self.batch([10_000 + ranks.rank])
        found = [float(self.loss_sum(model, batch)), float((batch["targets"] != -100).sum())]
        loss, targets = reduce_sum(found)
        return {"loss": loss / targets}


class AccidentalTask(TinyTask):
    """Something happens to one rank in one step: SIGKILL or SIGTERM to itself, or a loss that is not finite."""

    def __init__(self, steps: int, step: int, what: str) -> None:
        super().__init__(steps)
        self.step, self.what, self.happened = step, what, False

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        loss = super().loss_sum(model, batch)
        now = torch.is_grad_enabled() and int(getattr(model, "global_steps", -1)) == self.step
        if now and not self.happened:
            self.happened = True
            if self.what == "nan":
                return loss * float("nan")
            os.kill(os.getpid(), getattr(signal, self.what))
        return loss


def settings(**values: Any) -> TrainingBase:
    """Defaults for tests: three sequences at once, fp32, a checkpoint every third step."""
    return TrainingBase.model_validate(
        {
            "micro_batch": 3,
            "global_batch": GLOBAL_BATCH,
            "precision": "fp32",
            "checkpoint_steps": 3,
            "log_interval": 2,
            "optimizer": {"learning_rate": 1e-2},
            **values,
        }
    )


def run(folder: Path, task: TinyTask | None = None, ranks: Ranks = ALONE, **values: Any) -> TrainResult:
    """Train in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    return train(task or TinyTask(), settings(**values), folder, 1, ranks, Tracker())


def main() -> None:
    start_logging()
    port = int(os.environ.get("MASTER_PORT", "0"))
    try:
        for index, wanted in enumerate(json.loads(sys.argv[1])):
            os.environ["MASTER_PORT"] = str(port + index)  # the store of the last training may still be there
            ranks = read_ranks() or ALONE
            rank, step, what = wanted.get("accident", (-1, 0, ""))
            steps = wanted.get("steps", 8)
            task = AccidentalTask(steps, step, what) if rank == ranks.rank else TinyTask(steps)
            run(Path(wanted["folder"]), task, ranks, **wanted.get("settings", {}))
    except PipelineError as error:
        log.error("%s", error)
        sys.exit(error.status)


if __name__ == "__main__":
    main()
