"""The stage as a person runs it: `pipeline finetune`, killed and started again, and what stock transformers loads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import write_llama
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from pipeline.config import load_recipe
from pipeline.errors import DataError
from pipeline.manifest import Work
from pipeline.tracking import Tracker
from pipeline.train import finetune

ROOT = Path(__file__).parents[2]
RECIPE = """
name: tiny
workdir: {workdir}
tracking: {{enabled: false}}
finetune:
  answer: {{task: sft, train_files: {data}/sft.jsonl, {training}}}
  parity: {{task: classify, train_files: {data}/classify.jsonl, {training}}}
"""
TRAINING = (
    "base: {data}/base, ranks: 1, epochs: 2, global_batch: 8, micro_batch: 4, seq_len: 64, "
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

    def start(self, name: str, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipeline", "finetune", str(self.recipe), "--task", name, *words]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, name: str, *words: str) -> tuple[int, str]:
        process = self.start(name, *words)
        said, _ = process.communicate(timeout=240)
        return process.returncode, said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Run]:
    """Both tasks, never disturbed; one of them on two ranks."""
    run = Run(tmp_path_factory.mktemp("whole"), data)
    for name, *words in (["answer"], ["parity", "finetune.parity.ranks=2"]):
        status, said = run.finish(name, *words)
        assert status == 0, said
        assert "as the model sees it" in said
    yield run


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
    assert len(shown) == 3 and all(
        text.split("⟦")[1].startswith(("even", "odd")) and text.endswith("<|im_end|>⟧") for text in shown
    )
    assert len(list((whole.task("answer") / "checkpoints").glob("step-*"))) == 1


def test_killed_and_started_again_it_ends_alike(tmp_path: Path, data: Path, whole: Run) -> None:
    run = Run(tmp_path, data)
    process = run.start("answer", "finetune.answer.checkpoint_steps=1")
    reached = run.task("answer") / "checkpoints" / "step-000000003"
    deadline = time.monotonic() + 200
    while not reached.is_dir() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert reached.parent.is_dir() and not (run.task("answer") / "manifest.json").exists()
    status, said = run.finish("answer")  # how often it saves changes nothing
    assert status == 0 and "continues after step" in said, said
    names = [
        "model/model.safetensors",
        "model/generation_config.json",
        "examples/train.jsonl",
        "checkpoints/losses.jsonl",
    ]
    for name in names:
        assert (run.task("answer") / name).read_bytes() == (whole.task("answer") / name).read_bytes(), name


def test_bad_data_is_refused_before_anything_is_trained(tmp_path: Path, data: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "is this right?"}\n')
    recipe = load_recipe(str(Run(tmp_path, data).recipe), [f"finetune.answer.train_files={bad}"])
    work = Work("finetune.answer", tmp_path / "work", "key", {}, {})
    with pytest.raises(DataError, match=r"bad\.jsonl:1: key 'completion' is missing"):
        finetune.run(recipe, work, Tracker())
    assert not (work.folder / "checkpoints").exists()
