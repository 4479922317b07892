"""Pretraining that goes on with another's model: its first loss is that model's own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from test_pretrain import VOCABULARY, recipe_in, run
from torch.nn import functional
from transformers import AutoModelForCausalLM, Qwen2Config

from pipeline.errors import DataError
from pipeline.stages import stages
from pipeline.tokens.data import TokenData
from pipeline.train.pretrain import PretrainTask


def save_base(folder: Path, vocab_size: int) -> Path:
    torch.manual_seed(3)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=vocab_size, num_key_value_heads=1, max_position_embeddings=32, **shape)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) / 5)
    model.save_pretrained(folder)
    return folder


def test_the_first_loss_is_the_base_models(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", vocab_size=VOCABULARY + 8)
    recipe = recipe_in(tmp_path / "run", model={"base": str(folder)})
    made = run(recipe)
    final = tmp_path / "run" / "checkpoints" / "final"
    losses = json.loads((final / "losses.json").read_text(encoding="utf-8"))["losses"]
    stock = AutoModelForCausalLM.from_pretrained(folder)
    batch = PretrainTask(recipe, TokenData.open(tmp_path / "run" / "tokens")).batch(range(8))
    with torch.no_grad():
        logits = stock(input_ids=batch["inputs"]).logits
    expected = functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
    assert losses[0] == pytest.approx(float(expected), rel=1e-5)
    assert abs(losses[0] - math.log(VOCABULARY + 8)) > 0.1  # not that of a fresh model
    assert losses[-1] < losses[0]
    described = json.loads((final / "final.json").read_text(encoding="utf-8"))
    assert described["vocab_size"] == made.counts["vocab_size"] == VOCABULARY + 8
    assert "base" not in described["model"]
    assert described["model"]["qkv_bias"]


def test_a_base_with_fewer_words_than_the_tokenizer(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", vocab_size=VOCABULARY - 1)
    with pytest.raises(DataError, match=r"the tokenizer has 40 words, but .*base has 39"):
        run(recipe_in(tmp_path / "run", model={"base": str(folder)}))


def test_other_files_in_the_bases_folder_are_another_run(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", vocab_size=VOCABULARY)
    recipe = recipe_in(tmp_path / "run", model={"base": str(folder)})
    before = stages(recipe)["pretrain"].sources(recipe)
    (folder / "model.safetensors").write_bytes(b"other")
    assert stages(recipe)["pretrain"].sources(recipe)["base"] != before["base"]
    assert "base" not in stages(recipe)["pretrain"].settings(recipe)["model"]
