"""`pipeline generate` on any model directory: beams, stop strings, JSON lines, encoder–decoders, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertForMaskedLM, T5Config
from transformers import T5ForConditionalGeneration as T5

from pipeline.errors import DataError
from pipeline.evaluate.chat import chat
from pipeline.evaluate.generate import GenerationSettings, continue_prompts, encode_prompt, generate_text
from pipeline.evaluate.generate_command import generate_command, read_prompts
from pipeline.evaluate.streaming import stream_text
from pipeline.model.directory import load_text_model
from pipeline.model.lstm import HeadwaterLstmConfig, HeadwaterLstmForCausalLM

SMALL = {"decoder_start_token_id": 1, "eos_token_id": 0, "pad_token_id": 1}


@pytest.fixture(scope="module")
def causal(run_folder: Path) -> tuple[Any, Any]:
    return load_text_model(run_folder / "model")


def saved(folder: Path, model: Any, tokenizer: Any, scale: float = 8.0) -> Path:
    """A model directory; large weights, so that answers differ."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bart(folder: Path, tokenizer: Any) -> Path:
    torch.manual_seed(4)
    width = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 40}
    depth = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = BartConfig(vocab_size=len(tokenizer), forced_eos_token_id=None, bos_token_id=0, **width, **depth, **SMALL)
    return saved(folder, BartForConditionalGeneration(config), tokenizer)


def t5(folder: Path, tokenizer: Any) -> Path:
    torch.manual_seed(5)
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, **SMALL)
    return saved(folder, T5(config), tokenizer, scale=2.0)


@pytest.mark.parametrize("make", [bart, t5])
def test_encoder_decoders_answer_the_same_in_a_batch_and_alone(tmp_path: Path, tokenizer: Any, make: Any) -> None:
    model, own = load_text_model(make(tmp_path / "model", tokenizer))
    prompts = ["The river", "A bridge stands over the water.", "床前明月光"]
    for beams in (1, 3):
        settings = GenerationSettings(max_tokens=6, temperature=0, beams=beams)
        found = generate_text(model, own, prompts, settings)
        assert found == [generate_text(model, own, [prompt], settings)[0] for prompt in prompts]
        for prompt, text in zip(prompts, found, strict=True):
            ids = torch.tensor([own(prompt)["input_ids"]])
            stock = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, num_beams=beams)
            assert text == own.decode(stock[0], skip_special_tokens=True)
    assert len(set(found)) > 1


def test_encoder_decoder_prompts_are_cut_to_what_it_reads(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.progress.log.propagate", True)
    model, own = load_text_model(bart(tmp_path / "model", tokenizer))
    generate_text(model, own, ["The river runs to the sea. " * 40], GenerationSettings(max_tokens=4, temperature=0))
    assert "cut from the right to 40 tokens" in caplog.text
    with pytest.raises(DataError, match="at most 39 tokens"):
        generate_text(model, own, ["rain"], GenerationSettings(max_tokens=40, temperature=0))


def test_an_answer_is_shown_without_the_question(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bart(tmp_path / "model", tokenizer)
    generate_command(folder, "The river", max_tokens=6, temperature=0)
    greedy = GenerationSettings(max_tokens=6, temperature=0)
    expected = generate_text(*load_text_model(folder), ["The river"], greedy)[0]
    assert capsys.readouterr().out == expected + "\n"
    (tmp_path / "p.txt").write_text("The river\n")
    generate_command(folder, None, tmp_path / "p.txt", max_tokens=6, temperature=0)
    assert capsys.readouterr().out == f"--- 1\n{expected}\n"


def test_beams_are_those_of_transformers(causal: tuple[Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = causal
    settings = GenerationSettings(max_tokens=8, beams=4)
    found = generate_text(model, tokenizer, ["The river", "A"], settings)
    ids = torch.tensor([encode_prompt(tokenizer, "The river", chat=False)])
    stock = model.generate(input_ids=ids, max_new_tokens=8, num_beams=4, do_sample=False)[0, ids.size(1) :]
    assert found[0] == tokenizer.decode(stock, skip_special_tokens=True)
    assert found == [generate_text(model, tokenizer, [prompt], settings)[0] for prompt in ("The river", "A")]
    assert stream_text(model, tokenizer, "A", settings) == found[1]
    assert capsys.readouterr().out == f"A{found[1]}\n"


def test_beams_of_the_recurrent_model(tmp_path: Path, tokenizer: Any) -> None:
    torch.manual_seed(6)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 64}
    config = HeadwaterLstmConfig(pad_token_id=1, eos_token_id=0, bos_token_id=0, **shape)
    folder = saved(tmp_path / "model", HeadwaterLstmForCausalLM(config), tokenizer)
    model, own = load_text_model(folder)
    settings = GenerationSettings(max_tokens=5, beams=3)
    found = generate_text(model, own, ["The river", "A"], settings)
    assert found == [generate_text(model, own, [prompt], settings)[0] for prompt in ("The river", "A")]


def test_text_ends_before_a_stop_string(causal: tuple[Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = causal
    prompts = ["The river", "A bridge", "über"]
    whole = continue_prompts(model, tokenizer, prompts, GenerationSettings(max_tokens=24, temperature=0))
    assert {made.ended for made in whole} <= {"length", "end"}
    stop = whole[0].text[5:8]
    settings = GenerationSettings(max_tokens=24, temperature=0, stop=(stop, "never written"))
    found = continue_prompts(model, tokenizer, prompts, settings)
    for before, after in zip(whole, found, strict=True):
        assert after.text == before.text.partition(stop)[0]
        assert (after.ended == "stop") == (stop in before.text)
    assert found[0].ended == "stop"
    assert found[0].tokens < whole[0].tokens
    assert stream_text(model, tokenizer, prompts[0], settings) == found[0].text
    assert capsys.readouterr().out == f"{prompts[0]}{found[0].text}\n"
    with pytest.raises(DataError, match="stop"):
        GenerationSettings(stop=("",))


def test_nothing_is_printed_before_a_refusal(run_folder: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(DataError, match="context is 64 tokens"):
        generate_command(run_folder / "model", "The river", max_tokens=64)
    assert capsys.readouterr().out == ""
    with pytest.raises(DataError, match=r"nowhere\.txt: cannot be read: No such file"):
        read_prompts(tmp_path / "nowhere.txt")


def test_json_lines(run_folder: Path, tmp_path: Path, causal: tuple[Any, Any], capsys: Any) -> None:
    path = tmp_path / "prompts.jsonl"
    prompts = ["The\nriver\u2028runs", "床前"]
    path.write_text("".join(json.dumps({"prompt": each}, ensure_ascii=False) + "\n" for each in prompts))
    greedy = GenerationSettings(max_tokens=5, temperature=0)
    generate_command(run_folder / "model", None, path, as_json=True, max_tokens=5, temperature=0)
    lines = [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]
    expected = continue_prompts(*causal, prompts, greedy)
    assert lines == [
        {"prompt": prompt, "text": made.text, "tokens": made.tokens, "ended": made.ended}
        for prompt, made in zip(prompts, expected, strict=True)
    ]
    path.write_text('{"prompt": "a"}\n\n{"text": "b"}\n')
    with pytest.raises(DataError, match=r'prompts\.jsonl:3: has no text under "prompt"'):
        read_prompts(path)
    path.write_text('{"prompt": "a"}\n{"prompt"\n')
    with pytest.raises(DataError, match=r"prompts\.jsonl:2: not valid JSON"):
        read_prompts(path)


def test_the_rate_of_a_batch_is_told(
    run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.progress.log.propagate", True)
    caplog.set_level("INFO", "pipeline")
    (tmp_path / "p.txt").write_text("The river\nA bridge\n")
    generate_command(run_folder / "model", None, tmp_path / "p.txt", max_tokens=5, temperature=0)
    assert " tokens/s" in caplog.text


def test_models_that_write_no_text_are_refused_by_name(run_folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    classifier = run_folder / "finetune" / "topic" / "model"
    for call in (generate_command, chat):
        with pytest.raises(DataError, match="LlamaForSequenceClassification labels or reads text and writes none"):
            call(classifier, "rain")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **shape))
    with pytest.raises(DataError, match="BertForMaskedLM"):
        generate_command(saved(tmp_path / "bert", encoder, tokenizer), "rain")
