"""Evaluations of an encoder–decoder, of several labels, of numbers and of chats: the libraries' own numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import f1_score, mean_absolute_error, r2_score, roc_auc_score
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
)

from pipeline.evaluate.answers import conversation, shortened
from pipeline.evaluate.baselines import lead_sentence
from pipeline.evaluate.compare import compare_runs
from pipeline.evaluate.evaluate import run
from pipeline.evaluate.generate import encode_messages
from pipeline.evaluate.text_metrics import Words
from pipeline.manifest import Work
from pipeline.recipe import Recipe
from pipeline.tracking import Tracker

Lines = Callable[[Path, list[dict[str, Any]]], None]
LABELS = ["cold", "fast", "new"]
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}


def evaluate(workdir: Path, tasks: dict[str, Any]) -> dict[str, Any]:
    """Measure fine-tuned models alone. Returns the tasks' files."""
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "workdir": workdir,
            "finetune": {name: {"train_files": "x.jsonl", "seq_len": 48, **task} for name, task in tasks.items()},
            "evaluate": {"max_examples": 6, "max_new_tokens": 6, "batch": 4},
        }
    )
    (workdir / "evaluation").mkdir(parents=True)
    run(recipe, Work("evaluate", workdir / "evaluation", "key", {}, {}), Tracker())
    return {name: json.loads((workdir / "evaluation" / f"{name}.json").read_text()) for name in tasks}


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def classifier(tokenizer: Any, folder: Path, seed: int = 0, **more: Any) -> Path:
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.5, **shape, **ENDS, **more
    )
    return save(BertForSequenceClassification(config), tokenizer, folder)


def logits_of(folder: Path, texts: list[str]) -> torch.Tensor:
    """As a user of stock transformers has them, one text at a time."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = []
        for text in texts:
            encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=48)
            rows.append(model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[0])
    return torch.stack(rows).double()


def test_an_encoder_decoder(tmp_path: Path, tokenizer: Any, write_lines: Lines) -> None:
    names = [f"{part}_{what}" for part in ("encoder", "decoder") for what in ("layers", "attention_heads", "ffn_dim")]
    for seed, folder in enumerate((tmp_path / "base", tmp_path / "finetune/say/model")):
        torch.manual_seed(seed)
        config = BartConfig(
            vocab_size=len(tokenizer), d_model=16, max_position_embeddings=64, init_std=0.5, decoder_start_token_id=0,
            forced_eos_token_id=0, **dict.fromkeys(names, 2), **ENDS,
        )  # fmt: skip
        save(BartForConditionalGeneration(config), tokenizer, folder)
    sources = [f"The river {n} runs to the sea. A bridge stands over the water." for n in range(5)]
    targets = [f"The river {n} runs. Water" for n in range(5)]
    rows = [{"id": f"s{n}", "source": sources[n], "target": targets[n]} for n in range(5)]
    write_lines(tmp_path / "finetune/say/examples/validation.jsonl", rows)
    task = {"task": "seq2seq", "base": str(tmp_path / "base"), "prompt": "say: {source}"}
    found = evaluate(tmp_path, {"say": task})["say"]

    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "finetune/say/model")
    answers = []
    for source in sources:
        ids = tokenizer(f"say: {source}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)[0]
        answers.append(tokenizer.decode(out, skip_special_tokens=True))
    assert [row["finetuned"] for row in found["samples"]] == answers
    lead = [lead_sentence(source) for source in sources]
    assert lead[0] == "The river 0 runs to the sea."
    scorer = RougeScorer(["rouge1", "rougeL"], tokenizer=Words())
    for label, texts in (("finetuned", answers), ("copy_source", sources), ("lead_sentence", lead)):
        assert found[label]["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, [targets]).score)
        assert found[label]["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [targets]).score)
        assert found[label]["ter"] == pytest.approx(sacrebleu.corpus_ter(texts, [targets]).score)
        for name in ("rouge1", "rougeL"):
            scores = [scorer.score(*pair)[name].fmeasure for pair in zip(targets, texts, strict=True)]
            assert found[label][name] == pytest.approx(np.mean(scores))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    """Two runs with other weights, each with a model of several labels and one of numbers."""
    runs = {}
    for seed, name in enumerate(("ours", "theirs")):
        workdir = runs[name] = tmp_path_factory.mktemp(name)
        names = dict(enumerate(LABELS))
        about = {"id2label": names, "label2id": {label: n for n, label in names.items()}}
        folder = workdir / "finetune"
        classifier(tokenizer, folder / "tags/model", seed, problem_type="multi_label_classification", **about)
        classifier(tokenizer, folder / "stars/model", seed, problem_type="regression", num_labels=1)
        tags: list[dict[str, Any]] = [
            {"id": f"t{n}", "text": f"river {n}", "label": [LABELS[n % 3], *LABELS[2:][: n % 2]]} for n in range(6)
        ]
        stars = [{"id": f"n{n}", "text": f"moon {n}", "label": n / 2} for n in range(6)]
        for task, rows in (("tags", tags), ("stars", stars)):
            for part in ("train", "validation"):
                path = folder / task / "examples" / f"{part}.jsonl"
                path.parent.mkdir(exist_ok=True)
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tasks = {"tags": {"problem": "multi_label"}, "stars": {"problem": "regression"}}
        evaluate(workdir, {one: {"task": "classify", "base": "there", **task} for one, task in tasks.items()})
    return runs


def test_several_labels_at_once(judged: dict[str, Path]) -> None:
    found = json.loads((judged["ours"] / "evaluation/tags.json").read_text())
    texts = [f"river {n}" for n in range(6)]
    true = np.array([[name in {LABELS[n % 3], *LABELS[2:][: n % 2]} for name in LABELS] for n in range(6)], dtype=int)
    scores = logits_of(judged["ours"] / "finetune/tags/model", texts).sigmoid().numpy()
    given = (scores > 0.5).astype(int)
    assert found["macro_f1"] == pytest.approx(f1_score(true, given, average="macro", zero_division=0))
    assert found["micro_f1"] == pytest.approx(f1_score(true, given, average="micro", zero_division=0))
    assert found["auc"] == pytest.approx(roc_auc_score(true, scores, average="macro"))
    assert found["accuracy"] == np.mean((true == given).all(-1))


def test_numbers(judged: dict[str, Path]) -> None:
    found = json.loads((judged["ours"] / "evaluation/stars.json").read_text())
    true = np.arange(6) / 2
    said = logits_of(judged["ours"] / "finetune/stars/model", [f"moon {n}" for n in range(6)])[:, 0].numpy()
    assert found["rmse"] == pytest.approx(float(np.sqrt(np.mean((true - said) ** 2))), rel=1e-5)
    assert found["mae"] == pytest.approx(mean_absolute_error(true, said), rel=1e-5)
    assert found["r2"] == pytest.approx(r2_score(true, said), rel=1e-5)


def test_both_are_compared_with_another_run(judged: dict[str, Path]) -> None:
    parts = compare_runs(judged["ours"], judged["theirs"])["parts"]
    files = {
        (run, task): json.loads((judged[run] / "evaluation" / f"{task}.json").read_text())
        for run in judged
        for task in ("tags", "stars")
    }
    for task, names in (("tags", ("accuracy", "macro_f1", "micro_f1")), ("stars", ("rmse", "mae"))):
        assert parts[task]["examples"] == 6
        for name in names:
            row = parts[task][name]
            assert row["ours"] == pytest.approx(files["ours", task][name])
            assert row["theirs"] == pytest.approx(files["theirs", task][name])
            assert row["interval"][0] <= row["difference"] <= row["interval"][1]
            assert 2 / 2**6 <= row["p"] <= 1
    same = compare_runs(judged["ours"], judged["ours"])["parts"]
    assert all(row["difference"] == 0 and row["p"] == 1 for row in (same["tags"]["micro_f1"], same["stars"]["rmse"]))


def test_of_a_chat_the_last_answer_is_asked_for_after_all_before_it(
    workdir: Path, tokenizer: Any, write_lines: Lines
) -> None:
    turns = [("system", "be short"), ("user", "hi"), ("assistant", "ho"), ("user", "and now? Then"), ("assistant", "a")]
    messages = [{"role": role, "content": content} for role, content in turns]
    flat = "\n\n".join(f"{role}: {content}" for role, content in turns[:-1])
    rows = [
        {"id": "a", "prompt": flat, "completion": "a", "messages": messages},
        {"id": "b", "prompt": "hi", "completion": "ho"},
    ]
    write_lines(workdir / "finetune/answer/examples/validation.jsonl", rows)
    found = evaluate(workdir, {"answer": {"task": "sft", "base": str(workdir / "model")}})["answer"]

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(workdir / "finetune/answer/model")
    for row, chat in zip(found["samples"], (messages[:-1], [messages[1]]), strict=True):
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert row["finetuned"] == tokenizer.decode(out, skip_special_tokens=True).strip()
    copied = sacrebleu.corpus_chrf(["and now? Then", "hi"], [["a", "ho"]]).score
    assert found["copy_source"]["chrf"] == pytest.approx(copied)  # the last question


def test_a_long_chat_loses_its_oldest_turns_then_the_questions_end(tokenizer: Any) -> None:
    turns = [("system", "s"), ("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    messages = [{"role": role, "content": content} for role, content in turns]
    chat = conversation({"messages": json.dumps(messages)})
    assert chat == messages[:-1]
    size = len(encode_messages(tokenizer, chat))
    assert shortened(tokenizer, chat, size) == chat
    assert shortened(tokenizer, chat, size - 1) == [messages[0], messages[3]]
    least = len(encode_messages(tokenizer, [messages[0], messages[3]]))
    cut = shortened(tokenizer, chat, least - 1)
    assert isinstance(cut, list) and cut[0] == messages[0]
    assert cut[1]["content"] and "three".startswith(cut[1]["content"]) and cut[1]["content"] != "three"
    assert len(encode_messages(tokenizer, cut)) <= least - 1
