"""One rank of the training that save_bench.py measures: RUN TOLD LAST STEPS EVERY SEQUENCES."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.cluster.ranks import ALONE, read_ranks
from pipeline.errors import Stopped
from pipeline.model.build import build_model
from pipeline.progress import start_logging
from pipeline.recipe import ModelSettings, TrainingBase
from pipeline.tracking import Tracker
from pipeline.train import loop
from pipeline.train.checkpoints import Checkpoints
from pipeline.train.steps import Steps

WORDS, LENGTH = 16_384, 512


class Task:
    """Random tokens: what is learnt does not matter here. See train/task.py."""

    name, tokens_per_step, flops_per_step, fingerprint = "save", 0, 1.0, "save"

    def __init__(self, steps: int, sequences: int) -> None:
        self.model = build_model(ModelSettings(dim=512, layers=8, heads=8, max_seq_len=LENGTH), WORDS, 1)
        self.steps, self.sequences = steps, sequences
        self.tokens_per_step = sequences * LENGTH

    def targets(self, step: int) -> int:
        return self.tokens_per_step

    def batch(self, places: Sequence[int]) -> dict[str, torch.Tensor]:
        drawn = torch.Generator().manual_seed(abs(places[0]) + 1)
        tokens = torch.randint(0, WORDS, (len(places), LENGTH + 1), generator=drawn)
        return {"inputs": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}

    def loss_sum(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(batch["inputs"], batch["targets"])  # type: ignore[no-any-return]

    def validate(self, *about: object) -> dict[str, float]:
        return {"loss": 1.0}


class Watched:
    """When steps and saves of this rank begin and end; the run itself is as it always is."""

    def __init__(self, last: int) -> None:
        self.steps: list[tuple[float, float]] = []
        self.saves: list[tuple[float, float, float]] = []  # begun, seconds that training stood still, committed
        self.bytes = 0
        do, save, committed = Steps.do, Checkpoints.save, Checkpoints.committed

        def timed_step(steps: Steps, step: int) -> float:
            if step == last:
                raise Stopped("as many steps as were asked for")
            began = time.time()
            waited = do(steps, step)
            self.steps.append((began, time.time()))
            return waited

        def timed_save(checkpoints: Checkpoints, engine: Any, about: Any) -> None:
            began = time.time()
            save(checkpoints, engine, about)
            self.saves.append((began, time.time() - began, 0.0))

        def told(checkpoints: Checkpoints) -> Any:
            saved = committed(checkpoints)
            if saved is not None:
                begun, stood, _ = self.saves[-1]
                self.saves[-1] = (begun, stood, begun + stood + saved.write_seconds)
                self.bytes = saved.bytes
            return saved

        Steps.do, Checkpoints.save, Checkpoints.committed = timed_step, timed_save, told  # type: ignore[method-assign]


def main() -> None:
    run, told = Path(sys.argv[1]), Path(sys.argv[2])
    last, steps, every, sequences = map(int, sys.argv[3:7])
    ranks = read_ranks() or ALONE
    start_logging()
    settings = TrainingBase.model_validate(
        {
            "micro_batch": 4,
            "global_batch": sequences,
            "precision": "bf16",
            "checkpoint_steps": every,
            "log_interval": 10,
            "validation_interval": 10_000,
            "deepspeed": "zero1",
            "optimizer": {"learning_rate": 1e-4},
        }
    )
    watched = Watched(last)
    with contextlib.suppress(Stopped):  # after as many steps as were asked for
        loop.train(Task(steps, sequences), settings, run, 1, ranks, Tracker())  # type: ignore[arg-type]
    if ranks.first:
        saves = [save for save in watched.saves if save[2]]
        told.write_text(json.dumps({"steps": watched.steps, "saves": saves, "bytes": watched.bytes}))


if __name__ == "__main__":
    main()
