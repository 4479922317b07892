"""Base models: what is refused, what is kept exact, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import write_bert, write_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.errors import DataError, PipelineError
from pipeline.recipe import FinetuneTask
from pipeline.train.base_model import (
    PLAIN_TEMPLATE,
    keep_rotary_frequencies,
    load_base,
    open_tokenizer,
    save_model,
    training_flops,
)

SFT = FinetuneTask(task="sft", seq_len=64)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "llama")


def refusal(folder: Path, task: FinetuneTask = SFT) -> str:
    with pytest.raises(DataError) as caught:
        tokenizer = open_tokenizer(folder, task, "mine")
        load_base(folder, task, ("a", "b"), tokenizer, seed=0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_bases_that_cannot_be_used_are_refused(llama: Path, tmp_path: Path) -> None:
    assert "no such model directory" in refusal(tmp_path / "nowhere")
    assert "seq_len (512) is longer than the 128 positions" in refusal(llama, FinetuneTask(task="sft", seq_len=512))
    assert "reads text in both directions" in refusal(write_bert(tmp_path / "bert"))
    change(llama, vocab_size=300)
    assert "its tokenizer has 303 words, but its model only 300" in refusal(llama)
    change(llama, vocab_size=320, model_type="no_such_model")
    assert "cannot be loaded" in refusal(llama)
    change(llama, model_type="llama", num_hidden_layers=3)
    assert "weights are missing" in refusal(llama)
    change(llama, num_hidden_layers=2)
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    assert "pickled" in refusal(llama)


def test_code_of_the_directory_is_not_run(llama: Path) -> None:
    (llama / "evil.py").write_text("raise SystemExit('code was run')\n")
    change(llama, model_type="evil", auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"})
    assert "cannot be loaded" in refusal(llama)


def test_a_base_without_chat_template_gets_a_plain_one(llama: Path) -> None:
    (llama / "chat_template.jinja").unlink()
    assert open_tokenizer(llama, SFT, "mine").chat_template == PLAIN_TEMPLATE


def test_rotary_frequencies_stay_exact_when_the_model_turns_to_bf16(llama: Path) -> None:
    model = load_base(llama, SFT, (), open_tokenizer(llama, SFT, "mine"), seed=0)
    before = model.model.rotary_emb.inv_freq.clone()
    model.bfloat16()
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(model.model.rotary_emb.inv_freq, before)


def test_rotary_frequencies_follow_to_another_device() -> None:
    module = torch.nn.LayerNorm(2)
    module.register_buffer("inv_freq", torch.ones(2))
    keep_rotary_frequencies(module)
    module.to("meta", torch.bfloat16)
    assert module.weight.dtype == torch.bfloat16
    assert (module.inv_freq.device.type, module.inv_freq.dtype) == ("meta", torch.float32)


def test_operations_are_counted_by_hand(llama: Path) -> None:
    model = load_base(llama, SFT, (), open_tokenizer(llama, SFT, "mine"), seed=0)
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 32
    assert training_flops(model, 10, 4) == 6 * ((2 * layer + 32) * 10 + 320 * 32 * 4)


def test_what_is_saved_is_what_was_trained(llama: Path, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(llama, SFT, "mine")
    model = load_base(llama, SFT, (), tokenizer, seed=0)
    weights = {name: weight + 0.01 for name, weight in model.state_dict().items()}
    inputs = {"input_ids": torch.arange(10)[None]}
    folder = tmp_path / "task" / "model"
    files = save_model(folder, model, weights, tokenizer, end=3, inputs=inputs)
    assert sorted(path.name for path in files) == sorted(path.name for path in folder.iterdir())
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(again.model.norm.weight, weights["model.norm.weight"])
    assert again.generation_config.eos_token_id == [0, 3]
    assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template
    assert save_model(folder, load_base(llama, SFT, (), tokenizer, 0), weights, tokenizer, 3, inputs) == files


def test_a_model_that_reads_back_otherwise_is_not_kept(llama: Path, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(llama, SFT, "mine")
    model = load_base(llama, SFT, (), tokenizer, seed=0)
    weights = dict(model.state_dict())
    model.config.rope_parameters["rope_theta"] = 9.0  # config.json will not say what the model computes
    with pytest.raises(PipelineError, match="logits differ"):
        save_model(tmp_path / "model", model, weights, tokenizer, 3, {"input_ids": torch.arange(40)[None]})
    assert not (tmp_path / "model").exists()
