"""The stage as a person runs it: `pipeline finetune`, and what stock transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import forked
import pytest
import torch
from command import clean_environment, run_pipeline
from tiny_models import write_llama
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from pipeline.config import load_recipe
from pipeline.errors import DataError
from pipeline.manifest import Work
from pipeline.tracking import Tracker
from pipeline.train import finetune

RECIPE = """
name: tiny
workdir: {workdir}
tracking: {{enabled: false}}
finetune:
  answer: {{task: sft, train_files: {data}/sft.jsonl, {training}, base: {data}/base}}
  parity: {{task: classify, train_files: {data}/classify.jsonl, {training}, base: {data}/base}}
"""
TRAINING = (
    "ranks: 1, epochs: 2, global_batch: 8, micro_batch: 4, seq_len: 64, "
    "precision: fp32, optimizer: {{learning_rate: 0.02}}"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_llama(folder / "base")
    rows = [(f"is {number} even or odd?", ["even", "odd"][number % 2]) for number in range(80)]
    for kind, names in (("sft", ("prompt", "completion")), ("classify", ("text", "label"))):
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


class Run:
    """A recipe, and the command on it."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.recipe = folder, folder / "recipe.yaml"
        training = TRAINING.format(data=data)
        self.recipe.write_text(RECIPE.format(workdir=folder / "run", data=data, training=training))

    def task(self, name: str) -> Path:
        return self.folder / "run" / "finetune" / name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Run:
    """Both tasks, one of them by the plain command on two ranks."""
    run = Run(tmp_path_factory.mktemp("whole"), data)
    alone = forked.run(run.folder, forked.command, "finetune", run.recipe, "--task", "answer")
    assert alone.status == 0 and "as the model sees it" in alone.said, alone.said
    environment = clean_environment(OMP_NUM_THREADS="1")
    words = ("finetune", run.recipe, "--task", "parity", "finetune.parity.ranks=2")
    done = run_pipeline(*words, environment=environment)
    assert done.returncode == 0 and "as the model sees it" in done.stderr, done.stderr
    return run


def test_stock_transformers_loads_and_runs_both_models(whole: Run) -> None:
    folder = whole.task("answer") / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "is 3 even or odd?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) in ("even", "odd")
    assert answer[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")  # it has learnt to stop

    folder = whole.task("parity") / "model"
    classifier, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    assert classifier.config.id2label == {0: "even", 1: "odd"}
    assert tokenizer.model_max_length == 64
    with torch.no_grad():
        logits = classifier(**tokenizer(["is 3 even or odd?"], return_tensors="pt")).logits
    assert logits.shape == (1, 2)


def test_manifest_tells_what_was_learnt(whole: Run) -> None:
    answer = json.loads((whole.task("answer") / "manifest.json").read_text())
    assert (answer["counts"]["train"], answer["counts"]["validation"], answer["counts"]["steps"]) == (72, 8, 18)
    assert answer["counts"]["truncated"] == 0
    losses = [json.loads(line) for line in (whole.task("answer") / "checkpoints" / "losses.jsonl").open()]
    first = next(record["loss"] for record in losses if "loss" in record)
    assert answer["metrics"]["validation/loss"] < 0.5 * first
    parity = json.loads((whole.task("parity") / "manifest.json").read_text())
    assert parity["counts"]["classes"] and 0.0 <= parity["metrics"]["validation/accuracy"] <= 1.0
    shown = json.loads((whole.task("answer") / "examples" / "shown.json").read_text())
    assert len(shown) == 3
    for sample in shown:
        assert sample["text"].split("⟦")[1].startswith(("even", "odd")) and sample["text"].endswith("<|im_end|>⟧")
        learnt = [piece for piece, marked in zip(sample["pieces"], sample["learnt"], strict=True) if marked]
        assert "".join(learnt) == sample["text"].split("⟦")[1].removesuffix("⟧")
        assert len(sample["tokens"]) == len(sample["pieces"])
    assert len(list((whole.task("answer") / "checkpoints").glob("step-*"))) == 1


def test_bad_data_is_refused_before_anything_is_trained(tmp_path: Path, data: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "is this right?"}\n')
    recipe = load_recipe(str(Run(tmp_path, data).recipe), [f"finetune.answer.train_files={bad}"])
    work = Work("finetune.answer", tmp_path / "work", "key", {}, {})
    with pytest.raises(DataError, match=r"bad\.jsonl:1: key 'completion' is missing"):
        finetune.run(recipe, work, Tracker())
    assert not (work.folder / "checkpoints").exists()
