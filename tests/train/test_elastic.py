"""The world may change: a run saved by some ranks and ZeRO stage goes on with others, by itself. Also a program:

    python test_elastic.py '[{"folder": "/tmp/a", "settings": {…}, "cut": 3}, …]'

trains each, to the end or until `cut` steps are done.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import cut_or_whole, each_training, run

from pipeline.cluster import device
from pipeline.errors import Stopped
from pipeline.progress import start_logging
from pipeline.train.audit import events
from pipeline.train.checkpoint_files import every, weights

STEPS, CUT = 8, 3
LAUNCH = "from pipeline.cluster import launch; from pipeline.progress import start_logging; import sys; "
LAUNCH += "start_logging(); launch.GRACE = 300.0; sys.exit(launch.launch_command(sys.argv[2:], int(sys.argv[1])))"

ADAMW = {"optimizer": {"name": "adamw", "learning_rate": 1e-2}}
MUON = {"optimizer": {"name": "muon", "learning_rate": 1e-2}}
BF16 = {"precision": "bf16"}
ACCUMULATES = {"micro_batch": 1}

# What must be restored bit for bit in the same world: every way in which DeepSpeed lays out the training state.
LAYOUTS: dict[str, dict[str, Any]] = {
    "zero0-bf16": {"deepspeed": "zero0", **BF16, **ADAMW},
    "zero1-bf16": {"deepspeed": "zero1", **ADAMW, **BF16, **ACCUMULATES},
    "zero1-muon": {"deepspeed": "zero1", **MUON},
    "zero2-muon-bf16": {"deepspeed": "zero2", **MUON, **BF16},
    "zero2-bf16": {"deepspeed": "zero2", **ADAMW, **BF16, **ACCUMULATES},
    "zero3-bf16": {"deepspeed": "zero3", **ADAMW, **BF16, **ACCUMULATES},
}

# One run through several worlds: ranks, ZeRO stage, steps done at its end.
JOURNEY = ((2, "zero1", 2), (1, "zero3", 4), (4, "zero2", 6), (3, "zero1", STEPS))
KINDS: dict[str, dict[str, Any]] = {"adamw": ADAMW, "adamw-bf16": {**ADAMW, **BF16}, "muon": MUON}


def train_all(wanted: list[dict[str, Any]]) -> None:
    """Each training in turn, on the ranks of this process."""
    device.PEAK_SECONDS = 0.01  # nobody reads these runs' speed
    for training, ranks in each_training(wanted):
        task = cut_or_whole(training, ranks, STEPS)
        with contextlib.suppress(Stopped):
            run(Path(training["folder"]), task, ranks, **training["settings"])


def launch(ranks: int, wanted: list[dict[str, Any]]) -> None:
    """The same on so many ranks."""
    launch_program(ranks, [__file__, json.dumps(wanted)])


def launch_program(ranks: int, arguments: list[str]) -> None:
    """A Python program on so many ranks, which must end well."""
    from processes import run_to_end  # this file is such a program too, and does not see it then

    command = [sys.executable, "-c", LAUNCH, str(ranks), sys.executable, *arguments]
    ended = run_to_end(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr[-4000:]


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "losses.jsonl").read_text(encoding="utf-8").splitlines()]
    return [record["loss"] for record in records if "loss" in record]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every layout on two ranks, whole and cut; every kind through the journey, and whole on two ranks."""
    folder = tmp_path_factory.mktemp("elastic")
    every_layout = [
        {"folder": str(folder / place / name), "settings": chosen, "cut": cut}
        for place, cut in (("whole", 0), ("again", CUT), ("again", 0))
        for name, chosen in LAYOUTS.items()
    ]
    unbroken = [{"folder": str(folder / "unbroken" / name), "settings": chosen} for name, chosen in KINDS.items()]
    legs = [
        [
            {"folder": str(folder / "journey" / name), "settings": {**chosen, "deepspeed": stage}, "cut": until % STEPS}
            for name, chosen in KINDS.items()
        ]
        for _, stage, until in JOURNEY
    ]
    launch(2, [*every_layout, *unbroken, *legs[0]])
    train_all(legs[1])
    launch(4, legs[2])
    launch(3, legs[3])
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_world_goes_on_bit_equal(trained: Path, name: str) -> None:
    kinds = [event["kind"] for event in events(trained / "again" / name)]
    assert "resumed" in kinds and "world_changed" not in kinds
    assert losses(trained / "again" / name) == losses(trained / "whole" / name)
    found = dict(weights(every(trained / "again" / name)[-1]))
    for weight, tensor in weights(every(trained / "whole" / name)[-1]):
        assert torch.equal(tensor, found[weight]), weight


@pytest.mark.parametrize("name", KINDS)
def test_a_journey_through_worlds_agrees_with_the_unbroken_run(trained: Path, name: str) -> None:
    expected, found = losses(trained / "unbroken" / name), losses(trained / "journey" / name)
    assert len(found) == len(expected) == STEPS
    largest = max(abs(one - other) / other for one, other in zip(found, expected, strict=True))
    print(f"{name}: largest relative difference of a step's loss {largest:.2e}")
    assert largest < 1e-3
    changes = [event for event in events(trained / "journey" / name) if event["kind"] == "world_changed"]
    assert [(change["step"], change["now"]["ranks"], change["now"]["zero"]) for change in changes] == [
        (2, 1, 3),
        (4, 4, 2),
        (6, 3, 1),
    ]


if __name__ == "__main__":
    start_logging()
    train_all(json.loads(sys.argv[1]))
