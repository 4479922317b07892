"""tools/bench zero: the ZeRO paper's rule, what an engine holds by that rule, turns, its table."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import PROJECT

from pipeline.cluster.device import Device
from pipeline.cluster.ranks import ALONE
from pipeline.model.build import build_model, parameter_count
from pipeline.recipe import ModelSettings, TrainingBase
from pipeline.train import engine

CPU = Device("cpu", 0, "a processor", 1, bf16=True)
MODEL = ModelSettings(dim=64, layers=2, heads=2, ffn_dim=1024, max_seq_len=8)
WORDS = 128
Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(str(PROJECT / "tools" / "bench"))
    return importlib.import_module


@pytest.mark.parametrize("ranks", [1, 2, 64])
def test_the_rule_is_the_papers(load: Load, ranks: int) -> None:
    """Section 3 and figure 1: 16 bytes a weight, of which 12, 14 or all are shared out. 16-bit gradients throughout."""
    expected = {0: 16, 1: 4 + 12 / ranks, 2: 2 + 14 / ranks, 3: 16 / ranks}
    for stage, bytes_a_weight in expected.items():
        assert sum(load("zero_bench").predicted(stage, True, False, ranks).values()) == pytest.approx(bytes_a_weight)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_an_engine_holds_what_the_rule_says(load: Load, stage: int, name: str) -> None:
    """One rank after a step, in the middle of the next, with two micro-batches a step."""
    settings = TrainingBase.model_validate({"precision": name, "deepspeed": f"zero{stage}"})
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
    with engine.process_group(ALONE, CPU):
        model = engine.start(build_model(MODEL, WORDS, 1), settings, CPU, engine.Plan(1, 2, 2, dtype, False))
        for _ in range(3):
            model.backward(model(tokens, tokens))
            model.step()
        held = load("zero_rank").held(model)
        model.destroy()
    weights = parameter_count(MODEL, WORDS)
    for kind, share in load("zero_bench").predicted(stage, name == "bf16", True, 1).items():
        assert held[kind] == pytest.approx(share * weights, rel=0.02), kind


def test_trainings_take_turns(load: Load, tmp_path: Path) -> None:
    """Three of one rank each; the last step of each is the one in which it leaves."""
    done: list[int] = []

    def train(number: int) -> None:
        turns = load("zero_rank").Turns(tmp_path / "turns", 1, 3, number, 0)
        for _ in range(2):
            turns.next()
            done.append(number)
        turns.next()
        turns.pass_on()
        assert len(turns.seconds) == 2

    threads = [threading.Thread(target=train, args=(number,), daemon=True) for number in (2, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert done == [0, 1, 2, 0, 1, 2]


def test_the_table_stands_beside_zero_0(load: Load) -> None:
    told = {"weights": 10**6, "precision": "bf16", "accumulation": 4, "resident": 20e6}
    held = {"weights": 2e6, "gradients": 2e6, "states": 6e6, "others": 1e6}
    found = {
        "zero0": told | {"seconds": [2.0, 4.0, 3.0], "held": held},
        "zero1": told | {"seconds": [2.2, 3.3, 9.0], "held": held},
    }
    bench = load("zero_bench")
    assert bench._times(found, "zero0")[-1] == "| zero1 | 2.200 | 3.300 | 1.10 | 1.10 | 1.1 |"
    assert bench._memory(found, 2)[-1] == "| zero1 | 2 · 2 | 2 · 2 | 6 · 6 | 10 · 10 | 1 | 20 |"
