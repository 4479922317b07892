"""Adapters: what is learnt and what is frozen, and that merged they are the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import write_bert, write_llama, write_lstm, write_model

from pipeline.errors import DataError, PipelineError
from pipeline.recipe import FinetuneTask
from pipeline.train import lora
from pipeline.train.base_model import fill, load_base, open_tokenizer

INPUTS = {"input_ids": torch.arange(4, 24)[None]}


def settings(task: str) -> FinetuneTask:
    return FinetuneTask.model_validate({"task": task, "seq_len": 64, "lora": {"rank": 4, "alpha": 8}})


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5"])
def test_merged_it_is_adapters_and_base(tmp_path: Path, kind: str) -> None:
    """By hand: W + alpha / rank · B A; and stock peft reads the adapters."""
    from peft import PeftModel

    if kind == "llama":
        folder = write_llama(tmp_path / "base")
    elif kind == "bert":
        folder = write_bert(tmp_path / "base")
    else:
        folder = write_model(tmp_path / "base", {"gpt2": "GPT2LMHeadModel", "t5": "T5ForConditionalGeneration"}[kind])
    task = settings({"bert": "classify", "t5": "seq2seq"}.get(kind, "sft"))
    assert task.lora is not None
    tokenizer = open_tokenizer(folder, task, "mine")
    model = load_base(folder, task, ("a", "b"), tokenizer, seed=1)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    adapted = lora.adapt(model, task.lora, task, seed=1)
    learnt, every = lora.trainable(model)
    assert 0 < learnt < 0.5 * every
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(len(name)))
    inputs = INPUTS | ({"decoder_input_ids": torch.tensor([[1, 5, 6]])} if kind == "t5" else {})
    model.eval()
    with torch.no_grad():
        apart = model(**inputs).logits
    files = lora.save_adapter(tmp_path / "adapter", adapted)
    assert {path.name for path in files} == {"adapter_config.json", "adapter_model.safetensors"}
    if kind == "llama":
        (a,), (b,) = (
            [weight for name, weight in model.named_parameters() if f"layers.0.self_attn.q_proj.{part}" in name]
            for part in ("lora_A", "lora_B")
        )
        by_hand = before["model.layers.0.self_attn.q_proj.weight"] + 2 * b @ a
    merged, difference = lora.merge(adapted, inputs)
    assert difference < 1e-5
    assert {name for name, _ in merged.named_parameters()} == set(before)
    if kind == "llama":
        torch.testing.assert_close(merged.model.layers[0].self_attn.q_proj.weight, by_hand)
    base = load_base(folder, task, ("a", "b"), tokenizer, seed=1)
    with torch.no_grad():
        again = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(**inputs).logits
    torch.testing.assert_close(again, apart)


def test_frozen_layers_stay_the_bases_own(tmp_path: Path) -> None:
    """A checkpoint of a run in bf16 holds them rounded."""
    folder, task = write_llama(tmp_path), settings("sft")
    assert task.lora is not None
    model = load_base(folder, task, (), open_tokenizer(folder, task, "mine"), seed=1)
    exact = model.model.norm.weight.clone()
    lora.adapt(model, task.lora, task, seed=1)
    weights = {name: torch.full_like(weight, 0.3) for name, weight in model.named_parameters()}
    fill(model, weights.items())
    assert torch.equal(model.model.norm.weight, exact)
    assert all(bool((weight == 0.3).all()) for name, weight in model.named_parameters() if "lora" in name)
    del weights["model.layers.0.self_attn.q_proj.lora_A.default.weight"]
    with pytest.raises(PipelineError, match="the checkpoint has no model"):
        fill(model, weights.items())


def test_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    folder, task = write_lstm(tmp_path), settings("sft")
    assert task.lora is not None
    model = load_base(folder, task, (), open_tokenizer(folder, task, "mine"), seed=1)
    with pytest.raises(DataError, match="no linear layer that lora could adapt"):
        lora.adapt(model, task.lora, task, seed=1)
