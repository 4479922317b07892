"""tools/bench train: what it chooses for a machine, when its clock stops, its table; our loop and plain torch train."""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import PROJECT

from pipeline.cluster.device import find_device
from pipeline.cluster.ranks import ALONE
from pipeline.model.build import parameter_count

TOOL = PROJECT / "tools" / "bench"
Load = Callable[[str], Any]
CPU = torch.device("cpu")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(str(TOOL))
    return importlib.import_module


def options(load: Load, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    load("train_bench").add_options(parser)
    return parser.parse_args(words)


def names(load: Load, size: Any, gpus: int) -> list[str]:
    return [case.name for case in load("train_cases").cases(size, [], gpus, "bf16")]


def test_without_a_gpu_it_is_the_model_of_33_million_weights(load: Load) -> None:
    (size,) = load("train_cases").sizes([], 0, 0, 0)
    assert parameter_count(size.model, size.words) == pytest.approx(33e6, rel=0.05)
    assert (size.words, size.length) == (16_384, 512)
    found = names(load, size, 0)
    assert {"plain torch", "plain torch, compiled", "Headwater, 1 rank", "Headwater, 2 ranks, compiled"} <= set(found)
    assert sum("Trainer" in name for name in found) == 2


def test_on_a_gpu_it_is_the_recipes_at_both_lengths(load: Load) -> None:
    found = load("train_cases").sizes([], 1, 0, 0)
    weights = {size.name: parameter_count(size.model, size.words) for size in found}
    assert list(weights) == ["125m-2048", "125m-4096", "1b-2048", "1b-4096", "7b-2048", "7b-4096"]
    for part, expected in (("125m", 0.11e9), ("1b", 1.1e9), ("7b", 7.5e9)):
        assert weights[f"{part}-4096"] == pytest.approx(expected, rel=0.1)
    for size in found:
        assert size.model.max_seq_len >= size.length
        assert size.sequences % size.micro == 0
        found_names = names(load, size, 1)
        assert "plain torch, compiled" in found_names
        assert any(name.startswith("Headwater, 1 rank, compiled") for name in found_names)
    assert "plain torch, all in bf16, compiled" in names(load, found[-1], 1)


def test_a_case_is_the_same_after_json(load: Load) -> None:
    cases = load("train_cases")
    (case,) = cases.cases(cases.sizes(["1b-4096"], 1, 0, 0)[0], ["ours-compiled:2"], 1, "bf16", ["deepspeed=zero2"])
    assert cases.Case.read(json.loads(json.dumps(case.told()))) == case
    assert case.name == "Headwater, 2 ranks, compiled, deepspeed=zero2"


@pytest.mark.parametrize("name", ["theirs", "ours:two", "torch:2"])
def test_an_unknown_contender_is_named(load: Load, name: str) -> None:
    cases = load("train_cases")
    with pytest.raises(SystemExit, match=f"no contender {name}"):
        cases.cases(cases.sizes(["tiny"], 0, 0, 0)[0], [name], 0, "fp32")
    with pytest.raises(SystemExit, match="no size 33b; there are tiny, 33m"):
        cases.sizes(["33b"], 0, 0, 0)


def test_the_clock_leaves_out_the_first_steps(load: Load) -> None:
    clock = load("train_clock").Clock(CPU, 0.0, 2, 3)
    began, ticks = time.time(), time.perf_counter()
    assert [clock.over() for _ in range(6)] == [False] * 5 + [True]
    told = clock.told()
    assert told["steps"] == 3
    assert told["first"] >= began
    assert 0 < told["measured_seconds"] <= time.perf_counter() - ticks


def test_the_table_stands_beside_compiled_torch_and_tells_what_failed(load: Load) -> None:
    bench, cases = load("train_bench"), load("train_cases")
    (size,) = cases.sizes(["33m"], 0, 0, 0)
    ours, torch_compiled, other = cases.cases(size, ["ours", "torch-compiled", "trainer"], 0, "bf16")
    tokens = size.sequences * size.length
    told = {"steps": 10, "measured_seconds": 20.0, "first": 3.0, "gpu": 0, "memory": 1 << 30}
    found = {ours: told, torch_compiled: told | {"measured_seconds": 25.0}, other: {"failed": "out | of memory"}}
    peaks = [{"bf16": 1e12, "fp32": 1e11}, {"bf16": 2e12, "fp32": 1e11}]
    lines = bench._table(size, bench.Machine(0, "bf16", ""), found, peaks)
    speed, share = tokens * 10 / 20, tokens * 10 / 20 * size.flops / 2e12
    assert f"| Headwater, 1 rank | {speed:,.0f} | {share:.3f} | 1.25 | 1,024 | 3.0 | 10 |" in lines
    assert any("Trainer" in line and "out / of memory" in line for line in lines)
    on_gpu = bench._table(size, bench.Machine(1, "bf16", "NVIDIA H200"), found, peaks)
    assert "published 989" in on_gpu[0]
    assert any(f"| {speed * size.flops / 989e12:.3f} |" in line for line in on_gpu)


def test_it_lists_what_it_would_do(load: Load) -> None:
    found = load("train_bench").run(options(load, "--list", "--first-step", "--dtype", "fp32")).lines
    assert found[0].startswith("125m-")
    assert found[-1] == "- Headwater, 1 rank, compiled, cold and warm cache"


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_plain_torch_trains(load: Load, tmp_path: Path, dtype: str) -> None:
    cases = load("train_cases")
    (case,) = cases.cases(cases.sizes(["tiny"], 0, 0, 0)[0], ["torch"], 0, dtype)
    clock = load("train_clock").Clock(CPU, 0.0, 1, 2)
    load("train_torch").train(case, clock, ALONE, find_device(ALONE), tmp_path)
    assert clock.told()["steps"] == 2


def test_our_loop_is_measured_in_a_process_of_its_own(load: Load) -> None:
    bench, cases = load("train_bench"), load("train_cases")
    (case,) = cases.cases(cases.sizes(["tiny"], 0, 0, 0)[0], ["ours"], 0, "fp32", ["self_test=no"])
    told = bench._in_a_process(case, 0.0, 1, 2)
    assert told["steps"] == 2
    assert 0 < told["measured_seconds"] < told["first"] + 60
    assert told["memory"] > 50 << 20


def test_what_fails_is_told_by_its_error(load: Load) -> None:
    bench, cases = load("train_bench"), load("train_cases")
    (case,) = cases.cases(cases.sizes(["tiny"], 0, 0, 0)[0], ["ours"], 0, "fp32", ["deepspeed=zero9"])
    assert "zero9" in bench._in_a_process(case, 0.0, 1, 2)["failed"]
