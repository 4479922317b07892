"""A tiny language model on made-up sequences, as a `Task`; also a program that trains it on the ranks it is started on.

    python tiny_task.py '[{"folder": "/tmp/a", "settings": {…}, "steps": 8}, …]'

Optional keys: accident (rank, step, what): there this rank sends itself the signal `what`, has a loss of `nan` or a
gradient that is (`nan_gradient`), or finds data that never come (`sleep`) or come late from then on (`slow`);
or data with another fingerprint (`other_data`), or a disk on which no save comes to its end any more (`stalled_disk`);
awaits: name of what must lie in the folder before the signal is sent, such as a checkpoint, which is written behind the
steps; patience: seconds that another rank has for its answer in a report of a hang; spoiled: windows whose targets are
words that are never seen elsewhere.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.cluster.launch import free_port
from pipeline.cluster.ranks import ALONE, Ranks, read_ranks
from pipeline.errors import PipelineError, Stopped
from pipeline.files import write_text
from pipeline.model.build import build_model
from pipeline.progress import log, start_logging
from pipeline.recipe import ModelSettings, TrainingBase
from pipeline.tracking import Tracker
from pipeline.train import watchdog
from pipeline.train.loop import train
from pipeline.train.snapshot import Snapshot
from pipeline.train.task import Batch, ReduceSum, TrainResult

MODEL = ModelSettings(dim=32, layers=2, heads=2, kv_heads=1, ffn_dim=64, max_seq_len=32)
VOCABULARY = 64
LENGTH = 16
GLOBAL_BATCH = 6
HELD_OUT = 10_000  # sequences from here on
STALLED = "stalled"  # ends the name of what a rank leaves beside a save that it never finishes
LATE = {"sleep": 3600.0, "slow": 1.0}  # seconds that a batch takes after such an accident


class TinyTask:
    """Sequence k counts upwards from k with a stride of its own; every third has its first half masked."""

    name = "tiny"
    sequences = GLOBAL_BATCH
    tokens_per_step = GLOBAL_BATCH * LENGTH
    flops_per_step = 1e6

    def __init__(self, steps: int = 8, seed: int = 1, data: str = "counting", spoiled: Collection[int] = ()) -> None:
        self.model = build_model(MODEL, VOCABULARY, seed)
        self.steps, self.fingerprint, self.spoiled = steps, data, spoiled
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
            if number >= 0 and number // GLOBAL_BATCH in self.spoiled:
                targets[row] = 32 + (7 * tokens[row, 1:] + number) % 32
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
        batch = self.batch([HELD_OUT + ranks.rank])
        found = [float(self.loss_sum(model, batch)), float((batch["targets"] != -100).sum())]
        loss, targets = reduce_sum(found)
        return {"loss": loss / targets}


def stalled_write(_: Snapshot, folder: Path, prefix: str) -> NoReturn:
    """In place of a rank's part of a save: a file that says so, and then nothing more."""
    (folder.parent / f"{prefix}-{STALLED}").touch()
    while True:
        time.sleep(1)


class AccidentalTask(TinyTask):
    """Something happens to one rank in one step: a signal to itself, a loss or gradient that is not finite, data that
    do not come."""

    def __init__(
        self, steps: int, step: int, what: str, spoiled: Collection[int] = (), awaits: Path | None = None
    ) -> None:
        super().__init__(steps, spoiled=spoiled)
        self.step, self.what, self.awaits, self.happened = step, what, awaits, False
        if what == "other_data":
            self.fingerprint = "other"

    def batch(self, sequences: Sequence[int]) -> Batch:
        if self.step * GLOBAL_BATCH <= sequences[0] < HELD_OUT:
            time.sleep(LATE.get(self.what, 0.0))
        return super().batch(sequences)

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        loss = super().loss_sum(model, batch)
        now = torch.is_grad_enabled() and int(getattr(model, "global_steps", -1)) == self.step
        if now and not self.happened and self.what not in LATE:
            self.happened = True
            if self.what == "nan":
                return loss * float("nan")
            if self.what == "nan_gradient":
                loss.register_hook(lambda gradient: gradient * float("nan"))  # type: ignore[no-untyped-call]
                return loss
            if self.what == "stalled_disk":
                Snapshot.write = stalled_write  # type: ignore[method-assign]
                return loss
            while self.awaits and not self.awaits.exists():
                time.sleep(0.01)
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
            "self_test": False,
            "optimizer": {"learning_rate": 1e-2},
            **values,
        }
    )


def run(folder: Path, task: TinyTask | None = None, ranks: Ranks = ALONE, **values: Any) -> TrainResult:
    """Train in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    return train(task or TinyTask(), settings(**values), folder, 1, ranks, Tracker())


def each_training(wanted: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Ranks]]:
    """The trainings that one process does in turn, and its ranks, which meet at another port for each: the store of
    the last training may still be there. Rank 0 chooses it, and leaves it for the others in a file."""
    first = os.environ.get("MASTER_PORT")
    for number, training in enumerate(wanted):
        ranks = read_ranks() or ALONE
        if first and number:
            chosen = Path(training["folder"], f"port-{first}-{number}")
            if ranks.first:
                chosen.parent.mkdir(parents=True, exist_ok=True)
                write_text(chosen, str(free_port()))
            while not chosen.exists():
                time.sleep(0.01)
            os.environ["MASTER_PORT"] = chosen.read_text(encoding="utf-8")
        yield training, read_ranks() or ALONE


def cut_or_whole(training: dict[str, Any], ranks: Ranks, steps: int) -> TinyTask:
    """A task of so many steps; SIGTERM comes to the first rank in the last one before `cut`, where it is given."""
    cut = training.get("cut", 0)
    return AccidentalTask(steps, cut - 1, "SIGTERM") if cut and ranks.first else TinyTask(steps)


def main() -> None:
    start_logging()
    try:
        for wanted, ranks in each_training(json.loads(sys.argv[1])):
            rank, step, what = wanted.get("accident", (-1, 0, ""))
            steps = wanted.get("steps", 8)
            spoiled = wanted.get("spoiled", ())
            mine, folder = rank == ranks.rank, Path(wanted["folder"])
            awaits = folder / wanted["awaits"] if "awaits" in wanted else None
            task = AccidentalTask(steps, step, what, spoiled, awaits) if mine else TinyTask(steps, spoiled=spoiled)
            watchdog.LEAST_PATIENCE = wanted.get("patience", watchdog.LEAST_PATIENCE)
            run(folder, task, ranks, **wanted.get("settings", {}))
    except (PipelineError, Stopped) as error:
        log.error("%s", error)
        sys.exit(error.status)


if __name__ == "__main__":
    main()
