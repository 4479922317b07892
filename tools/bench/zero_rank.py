"""One process of `zero`: zero_rank.py FOLDER. Its number says which file it trains under, and as which rank."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from pipeline.cluster.device import find_device, gpu_count
from pipeline.cluster.ranks import Ranks, read_ranks
from pipeline.errors import Stopped
from pipeline.model.build import build_model, parameter_count
from pipeline.recipe import ModelSettings, TrainingBase
from pipeline.tracking import Tracker
from pipeline.train import loop
from pipeline.train.engine import precision
from pipeline.train.steps import split_batch
from pipeline.train.task import Batch, ReduceSum

WARM = 2  # steps of each training before any is measured; memory is looked at in the second
PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
STEPS = 1_000_000  # more than are done
WAIT = timedelta(minutes=20)  # for one's turn


class Turns:
    """One step of one training at a time. Turn k belongs to training k mod `trainings`."""

    def __init__(self, path: Path, ranks: int, trainings: int, training: int, rank: int) -> None:
        self._store = torch.distributed.FileStore(str(path), ranks * trainings)  # type: ignore[attr-defined]
        self._store.set_timeout(WAIT)
        self._ranks, self._trainings, self._training, self._rank = ranks, trainings, training, rank
        self._turn = -1
        self._began = 0.0
        self.seconds: list[float] = []  # of each step done

    def next(self) -> None:
        """End this turn, if one was begun, and return when the next one of this training begins."""
        if self._turn >= 0:
            self.seconds.append(time.perf_counter() - self._began)
            self.pass_on()
            self._turn += self._trainings
        else:
            self._turn = self._training
        if self._turn > 0:
            self._store.wait([f"{self._turn - 1}-{rank}" for rank in range(self._ranks)])
        self._began = time.perf_counter()

    def pass_on(self) -> None:
        """Whoever comes next may begin."""
        self._store.set(f"{self._turn}-{self._rank}", "")


class Task:
    """Random tokens: what is learnt does not matter here. See pipeline/train/task.py."""

    name, fingerprint, steps, flops_per_step = "zero", "zero", STEPS, 1.0

    def __init__(self, asked: dict[str, Any], turns: Turns) -> None:
        model = ModelSettings(
            dim=asked["dim"], layers=asked["layers"], heads=asked["dim"] // 64, max_seq_len=asked["length"]
        )
        self.start = psutil.Process().memory_info().rss
        self.model = build_model(model, asked["words"], 1)
        self.weights = parameter_count(model, asked["words"])
        self.sequences: int = asked["sequences"]
        self.tokens_per_step: int = self.sequences * asked["length"]
        self.accumulation = split_batch(asked["sequences"], asked["micro"], asked["ranks"])[1]
        self.turns, self.last = turns, WARM + asked["rounds"]
        drawn = torch.Generator().manual_seed(1)
        self.rows = torch.randint(0, asked["words"], (asked["sequences"], asked["length"] + 1), generator=drawn)
        self.held: dict[str, int] = {}
        self.resident, self.calls = 0, 0

    def targets(self, step: int) -> int:
        return self.tokens_per_step

    def batch(self, sequences: Sequence[int]) -> Batch:
        rows = self.rows[torch.tensor(sequences) % len(self.rows)]
        return {"inputs": rows[:, :-1].contiguous(), "targets": rows[:, 1:].contiguous()}

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        step, place = divmod(self.calls, self.accumulation)
        self.calls += 1
        if place == 0:
            self.turns.next()
            if step == self.last:
                self.turns.pass_on()
                raise Stopped("as many steps as were asked for")
        elif place == self.accumulation - 1 and step == WARM - 1:  # not in a step that is measured
            self.held = held(model)
            self.resident = psutil.Process().memory_info().rss - self.start
        loss: Tensor = model(batch["inputs"], batch["targets"])
        return loss

    def validate(self, model: nn.Module, ranks: Ranks, reduce_sum: ReduceSum) -> dict[str, float]:
        return {}


def held(engine: Any) -> dict[str, int]:
    """Bytes of all tensors of this process, by what they are for; memory that several share is counted once."""
    optimizer, seen = engine.optimizer, set()
    inner = getattr(optimizer, "optimizer", optimizer)
    weights = list(engine.module.parameters())
    kinds: dict[str, Iterable[Any]] = {
        "weights": [weights, [getattr(weight, "ds_tensor", None) for weight in weights]],
        "gradients": [
            [(weight.grad, getattr(weight, "grad_accum", None)) for weight in weights],
            *(vars(optimizer).get(name) for name in ("averaged_gradients", "all_grad_tensors")),
            vars(optimizer).get("grad_partitions_flat_buffer"),
        ],
        "states": [
            list(inner.state.values()),
            *(
                vars(optimizer).get(name)
                for name in (
                    "single_partition_of_fp32_groups",
                    "fp32_groups_flat_partition",
                    "fp32_partitioned_groups_flat",
                )
            ),
        ],
        "others": [found for found in gc.get_objects() if issubclass(type(found), Tensor)],
    }
    found = {}
    for kind, tensors in kinds.items():
        found[kind] = 0
        for tensor in _tensors(tensors):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                found[kind] += storage.nbytes()
    return found


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested lists and mappings."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def main() -> None:
    folder = Path(sys.argv[1])
    asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    training, rank = divmod(int(os.environ["RANK"]), asked["ranks"])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(asked["ranks"]), "LOCAL_WORLD_SIZE": str(asked["ranks"])}
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + training)
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpu_count() else "cpu")
    importlib.import_module("deepspeed")  # its own megabytes are not the training's
    ranks = read_ranks()
    assert ranks is not None
    settings = TrainingBase.model_validate(
        {
            "micro_batch": asked["micro"],
            "global_batch": asked["sequences"],
            "precision": asked["precision"],
            "deepspeed": asked["configs"][training],
            "compile": "no",
            "checkpoint_minutes": 1e6,
            "validation_interval": STEPS,
            "log_interval": STEPS,
            "watchdog": {"hang_seconds": 0},  # waiting for one's turn is no hang
            "self_test": False,
            "optimizer": {"learning_rate": 1e-4},
        }
    )
    task = Task(asked, Turns(folder / "turns", asked["ranks"], len(asked["configs"]), training, rank))
    with contextlib.suppress(Stopped):  # after as many steps as were asked for
        loop.train(task, settings, folder / f"run-{training}", 1, ranks, Tracker())
    if ranks.first:
        told = {key: getattr(task, key) for key in ("weights", "held", "resident", "accumulation")}
        told["precision"] = PRECISIONS[precision(settings, find_device(ranks))]
        told["seconds"] = task.turns.seconds[WARM:]
        (folder / f"told-{training}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
