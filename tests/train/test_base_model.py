"""Base models: what is refused, what is kept exact, what is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import KINDS, write_bert, write_llama, write_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.errors import DataError, PipelineError
from pipeline.model.hub import local_folder
from pipeline.recipe import FinetuneTask
from pipeline.train.base_model import (
    PLAIN_TEMPLATE,
    fill,
    keep_rotary_frequencies,
    load_base,
    open_tokenizer,
    save_model,
    training_flops,
)

SFT = FinetuneTask(task="sft", seq_len=64)
CLASSIFY = FinetuneTask(task="classify", seq_len=64)


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


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda base: (base / "config.json").unlink(), "no config.json"),
    "half a config": (lambda base: (base / "config.json").write_text("{"), "config.json: not valid JSON"),
    "another file's config": (lambda base: (base / "config.json").write_text("{}"), "names no model_type"),
    "no weights": (lambda base: (base / "model.safetensors").unlink(), "no weights"),
    "half the weights": (lambda base: os.truncate(base / "model.safetensors", 9_000), "cannot be loaded"),
    "a part of the weights": (
        lambda base: (base / "model.safetensors").rename(base / "model-00001-of-00002.safetensors"),
        "cannot be loaded",
    ),
    "no tokenizer": (lambda base: (base / "tokenizer.json").unlink(), "no tokenizer"),
    "half a tokenizer": (lambda base: (base / "tokenizer.json").write_text("{"), "its tokenizer cannot be read"),
    "another size": (lambda base: change(base, intermediate_size=48), "(32, 64) in its weights and (32, 48) by its"),
}


@pytest.mark.parametrize("what", list(BROKEN))
def test_missing_and_broken_files_get_one_line(llama: Path, what: str) -> None:
    breaks, said = BROKEN[what]
    breaks(llama)
    for task in (SFT, CLASSIFY):
        assert said in refusal(llama, task)


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
    fill(model, weights.items())
    files = save_model(folder, model, tokenizer, end=3, inputs=inputs)
    assert sorted(path.name for path in files) == sorted(path.name for path in folder.iterdir())
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(again.model.norm.weight, weights["model.norm.weight"])
    assert again.generation_config.eos_token_id == [0, 3]
    assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template
    assert save_model(folder, model, tokenizer, 3, inputs) == files


def test_a_model_that_reads_back_otherwise_is_not_kept(llama: Path, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(llama, SFT, "mine")
    model = load_base(llama, SFT, (), tokenizer, seed=0)
    model.config.rope_parameters["rope_theta"] = 9.0  # config.json will not say what the model computes
    with pytest.raises(PipelineError, match="logits differ"):
        save_model(tmp_path / "model", model, tokenizer, 3, {"input_ids": torch.arange(40)[None]})
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_kind_of_base_opens_for_its_tasks(tmp_path: Path, kind: str) -> None:
    folder = write_model(tmp_path / "base", kind)
    two_parts = kind.endswith("ConditionalGeneration")
    writes = FinetuneTask(task="seq2seq" if two_parts else "sft", seq_len=64)
    inputs = {"input_ids": torch.arange(4, 12)[None]}
    for task in (CLASSIFY, writes):
        if task is writes and "Masked" in kind:
            assert "reads text in both directions" in refusal(folder, task)
            continue
        if task is CLASSIFY and two_parts:
            assert "classify needs an encoder or a causal model" in refusal(folder, task)
            continue
        tokenizer = open_tokenizer(folder, task, "mine")
        model = load_base(folder, task, ("a", "b"), tokenizer, seed=0)
        assert model.training
        more = {"decoder_input_ids": torch.tensor([[1, 5]])} if two_parts else {}
        made = tmp_path / task.task
        save_model(made, model, tokenizer, None, inputs | more)
        stock = getattr(transformers, type(model).__name__).from_pretrained(made)
        assert sum(weight.numel() for weight in stock.parameters()) == sum(w.numel() for w in model.parameters())
        if task.task == "sft":
            chat = [{"role": "user", "content": "Is 3 odd?"}]
            text = AutoTokenizer.from_pretrained(made).apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True
            )
            assert text == "<|im_start|>user\nIs 3 odd?<|im_end|>\n<|im_start|>assistant\n"


def test_an_encoder_decoder_is_no_chat_model(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "T5ForConditionalGeneration")
    assert "is an encoder–decoder; use task: seq2seq, not sft" in refusal(folder)
    change(folder, decoder_start_token_id=None)
    assert "decoder_start_token_id is not set" in refusal(folder, FinetuneTask(task="seq2seq", seq_len=64))


def test_positions_of_roberta_begin_after_paddings(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "RobertaForMaskedLM")
    assert "longer than the 128 positions" in refusal(folder, FinetuneTask(task="classify", seq_len=129))


def test_dropout_is_the_models_own_unless_switched_off(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    for dropout in (True, False):
        task = FinetuneTask(task="classify", seq_len=64, dropout=dropout)
        model = load_base(folder, task, ("a", "b"), open_tokenizer(folder, task, "mine"), seed=0)
        first, second = (model(input_ids=torch.arange(10)[None]).logits for _ in range(2))
        assert torch.equal(first, second) is not dropout


def test_code_of_the_directory_runs_only_where_the_recipe_says_so(llama: Path, tmp_path: Path) -> None:
    (llama / "own_code.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_kind'\n\n\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
    change(llama, model_type="own_kind", architectures=["OwnModel"], auto_map=auto)
    assert "cannot be loaded" in refusal(llama)
    task = FinetuneTask(task="sft", seq_len=64, trust_remote_code=True)
    tokenizer = open_tokenizer(llama, task, "mine")
    model = load_base(llama, task, (), tokenizer, seed=0)
    inputs = {"input_ids": torch.arange(10)[None]}
    made = save_model(tmp_path / "model", model, tokenizer, 3, inputs, code_from=llama)
    assert "own_code.py" in {path.name for path in made}


def test_a_name_that_the_hub_cannot_give_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        DataError, match="nobody/nothing: no such folder, and as a name on the Hugging Face hub"
    ) as caught:
        local_folder("nobody/nothing")
    assert "\n" not in str(caught.value)
    assert local_folder(str(tmp_path)) == tmp_path
