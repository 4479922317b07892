"""Continuations and conversations, with a real tiny model that `transformers` saved."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.errors import DataError
from pipeline.evaluate.chat import chat
from pipeline.evaluate.generate import (
    GenerationSettings,
    encode_prompt,
    generate_ids,
    generate_text,
)
from pipeline.evaluate.generate_command import generate_command
from pipeline.model.directory import load_causal_model

SPECIAL = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GREEDY = GenerationSettings(max_tokens=8, temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: 64 tokens of context, weights drawn at random and large, so that answers differ."""
    made = tmp_path_factory.mktemp("model dir")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        ["rain on hills"] * 9, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=SPECIAL[0], eos_token=SPECIAL[0], pad_token=SPECIAL[1], chat_template=CHATML
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    tokenizer.save_pretrained(str(made))
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.5,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=1,
        )
    )
    model.generation_config.eos_token_id = [0, 3]
    model.save_pretrained(str(made))
    return made


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return load_causal_model(folder)


def by_hand(model: Any, ids: list[int], steps: int) -> list[int]:
    """Greedy, one whole forward pass a token, no cache, no padding."""
    row, made = list(ids), []
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([row])).logits[0, -1].argmax())
        if token in (0, 3):
            break
        made.append(token)
        row.append(token)
    return made


def test_greedy_is_the_likeliest_token_whatever_the_batch(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    prompts = ["rain", "on hills and a longer prompt", "", "河"]
    expected = [
        tokenizer.decode(by_hand(model, encode_prompt(tokenizer, prompt, chat=False), 8), skip_special_tokens=True)
        for prompt in prompts
    ]
    assert len(set(expected)) > 1
    for batch in (1, 3, 16):
        settings = GenerationSettings(max_tokens=8, temperature=0, batch=batch)
        assert generate_text(model, tokenizer, prompts, settings) == expected


def test_text_ends_at_the_end_token(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = encode_prompt(tokenizer, "rain on", chat=False)
    whole = generate_ids(model, tokenizer, [ids], GREEDY)[0]
    stop = whole[3]
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [stop]
    try:
        rows = generate_ids(model, tokenizer, [ids, ids], GREEDY)
    finally:
        model.generation_config.eos_token_id = before
    assert rows == [whole[: whole.index(stop)]] * 2


def test_sampling_follows_the_seed_and_leaves_the_global_state(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded

    def draw(seed: int, **changes: Any) -> list[str]:
        settings = GenerationSettings(**({"max_tokens": 12, "temperature": 1.0, "seed": seed} | changes))
        return generate_text(model, tokenizer, ["rain", "hills"], settings)

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = draw(1)
    assert torch.equal(torch.rand(1), expected)
    assert draw(1) == first
    assert draw(2) != first
    greedy = generate_text(model, tokenizer, ["rain", "hills"], GenerationSettings(max_tokens=12, temperature=0))
    assert draw(1, top_k=1) == draw(2, top_p=1e-6) == greedy


def test_long_prompts_are_cut_from_the_left_and_it_is_said(
    loaded: tuple[Any, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    monkeypatch.setattr("pipeline.progress.log.propagate", True)
    long = "rain on hills " * 60
    found = generate_text(model, tokenizer, [long, "rain"], GREEDY)
    ids = encode_prompt(tokenizer, long, chat=False)[-(64 - 8) :]
    assert found[0] == tokenizer.decode(by_hand(model, ids, 8), skip_special_tokens=True)
    assert "1 of 2 prompts: cut from the left to 56 tokens" in caplog.text
    with pytest.raises(DataError, match="context is 64 tokens"):
        generate_text(model, tokenizer, ["rain"], GenerationSettings(max_tokens=64))


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"temperature": 1e9}]
)
def test_settings_out_of_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=next(iter(wrong)).replace("_", "-")):
        GenerationSettings(**wrong)


def test_streamed_text_is_the_batch_text(
    folder: Path, loaded: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = generate_text(*loaded, ["rain 河"], GREEDY)[0]
    generate_command(folder, "rain 河", max_tokens=8, temperature=0)
    assert capsys.readouterr().out == f"rain 河{expected}\n"


def test_prompts_file(
    folder: Path, loaded: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("rain\n\non hills\n", encoding="utf-8")
    generate_command(folder, prompts_file=path, max_tokens=8, temperature=0)
    first, second = generate_text(*loaded, ["rain", "on hills"], GREEDY)
    assert capsys.readouterr().out == f"--- 1\nrain{first}\n--- 2\non hills{second}\n"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        generate_command(folder, prompts_file=path)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no prompt"):
        generate_command(folder, prompts_file=path)
    with pytest.raises(DataError, match="give --prompt"):
        generate_command(folder)


def test_chat_prompts_use_the_template(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = encode_prompt(tokenizer, "rain?", chat=True)
    assert tokenizer.decode(ids) == "<|im_start|>user\nrain?<|im_end|>\n<|im_start|>assistant\n"
    expected = tokenizer.decode(by_hand(model, ids, 8), skip_special_tokens=True)
    assert generate_text(model, tokenizer, ["rain?"], GREEDY, chat=True) == [expected]


def test_chat_through_a_pipe(
    folder: Path, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two turns, then a new conversation whose first answer must be the same as at first."""
    monkeypatch.setattr("sys.stdin", io.StringIO("rain?\n\non hills\n/new\nrain?\n"))
    chat(folder, max_tokens=6, temperature=0)
    said = capsys.readouterr().out
    answers = said.splitlines()
    assert answers[0] == answers[-1]
    short = GenerationSettings(max_tokens=6, temperature=0)
    assert said.startswith(generate_text(*loaded, ["rain?"], short, chat=True)[0])


def test_a_conversation_outgrows_the_context(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.progress.log.propagate", True)
    monkeypatch.setattr("sys.stdin", io.StringIO("rain\nhills\nrain on hills " + "so long " * 30 + "\n"))
    chat(folder, max_tokens=8, temperature=0)
    assert "its oldest turn is forgotten" in caplog.text
    assert "only its last 56 tokens are read" in caplog.text


# --- folders that hold no usable model -----------------------------------------------------------------------------


def copy_without(folder: Path, target: Path, *names: str) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        if path.name not in names:
            (target / path.name).write_bytes(path.read_bytes())
    return target


def refused(folder: Path, pattern: str) -> None:
    with pytest.raises(DataError, match=pattern) as error:
        generate_command(folder, "rain", max_tokens=4)
    assert "\n" not in str(error.value)


def test_unusable_folders_get_one_clear_line(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such model directory")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"no config\.json")
    refused(copy_without(folder, tmp_path / "a", "model.safetensors"), "no weights")
    pickled = copy_without(folder, tmp_path / "b", "model.safetensors")
    torch.save({}, pickled / "pytorch_model.bin")
    refused(pickled, "pickled")
    refused(copy_without(folder, tmp_path / "c", "tokenizer.json"), "no tokenizer")
    damaged = copy_without(folder, tmp_path / "d")
    whole = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(damaged, "cannot be loaded")
    (damaged / "model.safetensors").write_bytes(whole)
    (damaged / "tokenizer.json").write_text("{", encoding="utf-8")
    refused(damaged, "tokenizer cannot be read")
    (damaged / "config.json").write_text("{", encoding="utf-8")
    refused(damaged, "not valid JSON")


def test_config_that_does_not_fit_the_weights(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for number, (change, pattern) in enumerate(
        [
            ({"num_hidden_layers": 3}, r"9 weights are missing, the first is model\.layers\.2"),
            (
                {"intermediate_size": 40},
                r"mlp\.\w+\.weight is \(\d+, \d+\) in its weights and \(.*40.*\) by its config",
            ),
            ({"model_type": "no_such_type"}, "cannot be loaded"),
            ({"model_type": "bert", "architectures": ["BertModel"]}, r"weights are missing"),
        ]
    ):
        made = copy_without(folder, tmp_path / str(number))
        (made / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
        refused(made, pattern)


def test_weights_without_a_place_are_told(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.progress.log.propagate", True)
    made = copy_without(folder, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (made / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}), encoding="utf-8")
    load_causal_model(made)
    assert "9 weights have no place" in caplog.text


def test_remote_code_is_not_run(folder: Path, tmp_path: Path) -> None:
    made = copy_without(folder, tmp_path / "remote")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
    (made / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (made / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n", encoding="utf-8")
    refused(made, "cannot be loaded")
    assert not (tmp_path / "ran").exists()


def test_chat_without_a_template(folder: Path, tmp_path: Path) -> None:
    made = copy_without(folder, tmp_path / "plain", "chat_template.jinja")
    path = made / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(DataError, match="no chat template"):
        chat(made)
