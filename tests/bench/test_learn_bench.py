"""tools/bench learn: the contenders train in our loop, what is told of them, table and picture."""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command import PROJECT

from pipeline.cluster.ranks import ALONE
from pipeline.config import load_recipe
from pipeline.model.build import parameter_count
from pipeline.recipe import ModelSettings
from pipeline.tokens.token_tars import Index, ShardWriter, write_index

TOOL = PROJECT / "tools" / "bench"
Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(str(TOOL))
    return importlib.import_module


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each token follows from the one before; 3 bytes each."""
    folder = tmp_path_factory.mktemp("tokens")
    parts: dict[str, Any] = {}
    for part, count in (("train", 4000), ("validation", 330)):
        with ShardWriter(folder, f"{part}/numbers-00000", np.dtype("uint16"), 10_000, 10_000) as writer:
            writer.add(1 + np.arange(count) % 7, np.array([count]), 3 * count)
        parts[part] = {"numbers": tuple(writer.shards)}
    write_index(folder, Index(40, 0, parts))
    return folder


@pytest.mark.parametrize("name", ["ours", "gpt2", "lstm", "muon"])
def test_each_contender_learns_and_tells_its_curve(load: Load, tokens: Path, tmp_path: Path, name: str) -> None:
    shape = "dim: 32, layers: 1, heads: 2, max_seq_len: 16, qk_norm: no"
    words = [f"workdir={tmp_path}", f"model={{{shape}}}", f"pretrain.tokens_from={tokens}", "pretrain.tokens=1000"]
    small = ["seq_len=16", "micro_batch=4", "validation_windows=4", "precision=fp32", "self_test=no", "ranks=1"]
    small += ["global_batch=4", "phases=[{from_tokens: 512, seq_len: 8, global_batch: 8}]"]
    recipe = load_recipe(str(TOOL / "learn" / f"{name}.yaml"), [*words, *(f"pretrain.{word}" for word in small)])
    told = load("learn_training").run(name, recipe, ALONE, 2)
    assert [point[0] for point in told["points"]] == [8 * 64, 16 * 64]
    assert told["tokens"] == 1024
    seconds = [point[1] for point in told["points"]]
    assert 0 < seconds[0] < seconds[1] == told["seconds"]
    assert 0 < told["bits_per_byte"] < told["points"][0][2] < math.log2(40) / 3 * 1.2


def test_the_baseline_is_gpt2_and_its_loss_is_the_cross_entropy(load: Load) -> None:
    settings = ModelSettings(dim=32, layers=2, heads=2, max_seq_len=16)
    model, again = (load("learn_gpt2").Gpt2(settings, 40, 3) for _ in range(2))
    assert "transformer.wpe.weight" in dict(model.model.named_parameters())  # learned positions
    rows = torch.randint(0, 40, (2, 17), generator=torch.Generator().manual_seed(1))
    logits = again.model(rows[:, :-1]).logits
    expected = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(model(rows[:, :-1], rows[:, 1:]), expected)


def test_phases_keep_their_shares_of_the_budget(load: Load) -> None:
    usual, less = (
        load("learn_training").read_recipe("ours", words).pretrain for words in ([], ["pretrain.tokens=2e5"])
    )
    assert usual.phases
    for one, other in zip(usual.phases, less.phases, strict=True):
        assert other.from_tokens / less.tokens == pytest.approx(one.from_tokens / usual.tokens, rel=1e-3)
        assert (one.seq_len, one.global_batch) == (other.seq_len, other.global_batch)


def test_contenders_are_about_as_large(load: Load) -> None:
    def settings(name: str) -> ModelSettings:
        return load_recipe(str(TOOL / "learn" / f"{name}.yaml")).model

    ours = parameter_count(settings("ours"), 8192)
    gpt2 = sum(weight.numel() for weight in load("learn_gpt2").Gpt2(settings("gpt2"), 8192, 1).parameters())
    assert gpt2 == pytest.approx(ours, rel=0.05)
    assert parameter_count(settings("lstm"), 8192) == pytest.approx(ours, rel=0.1)


def test_table_and_picture(load: Load, tmp_path: Path) -> None:
    def trained(bits: float) -> dict[str, Any]:
        points = [[500, 5.0, bits + 1], [1000, 10.0, bits + 0.1]]
        return {"points": points, "bits_per_byte": bits, "tokens": 1000, "seconds": 10.0, "parameters": 5000}

    found = {"ours": [trained(1.4), trained(1.5)], "gpt2": [trained(2.0), trained(1.9)]}
    bench, about = load("learn_bench"), argparse.Namespace(seeds=2, ranks=1)
    lines = bench._table(found, "tokens", 1000, about)
    assert "| Headwater | 5,000 | 1,000 | 10 | 1.450 (1.400–1.500) | -25.6% |" in lines
    assert "| GPT-2, AdamW | 5,000 | 1,000 | 10 | 1.950 (1.900–2.000) | +0.0% |" in lines
    pictures = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for picture in pictures:
        load("learn_picture").draw(picture, {"Headwater": found["ours"], "GPT-2": found["gpt2"]}, "tokens")
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert all(word in pictures[0].read_text(encoding="utf-8") for word in ("Headwater", "GPT-2", "bits per byte"))
