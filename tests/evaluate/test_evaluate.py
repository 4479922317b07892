"""The stage: its files' shapes, the same numbers everywhere, and going on after a kill."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline import manifest
from pipeline.config import save_recipe
from pipeline.errors import DataError
from pipeline.evaluate.answers import answer
from pipeline.evaluate.compressors import compressor_bits_per_byte
from pipeline.evaluate.evaluate import numbers_of, run
from pipeline.evaluate.generate import GenerationSettings
from pipeline.evaluate.text_metrics import text_metrics
from pipeline.manifest import Manifest, Work
from pipeline.model.directory import load_causal_model
from pipeline.model.lstm import (
    HeadwaterLstmConfig,
    HeadwaterLstmForCausalLM,
    HeadwaterLstmForSequenceClassification,
)
from pipeline.recipe import Recipe
from pipeline.tracking import Tracker

RECORDS = {"language_model.jsonl", "answer.jsonl", "topic.jsonl"}
FILES = {"language_model.json", "answer.json", "topic.json", "samples.json"} | RECORDS


class Kept(Tracker):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is None
        self.metrics |= metrics


def work_of(recipe: Recipe) -> Work:
    folder = recipe.workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    return Work("evaluate", folder, "key", {}, {})


def evaluate(recipe: Recipe, tracker: Tracker | None = None) -> Manifest:
    return run(recipe, work_of(recipe), tracker or Tracker())


def read(recipe: Recipe, name: str) -> Any:
    return json.loads((recipe.workdir / "evaluation" / name).read_text(encoding="utf-8"))


def test_files_and_numbers(recipe: Recipe) -> None:
    tracker = Kept()
    made = evaluate(recipe, tracker)
    assert {output.path for output in made.outputs} == FILES
    assert tracker.metrics == made.metrics

    text = read(recipe, "language_model.json")
    assert set(text["by_source"]) == {"prose", "verse"}
    for name in ("tokens", "bytes", "documents"):
        assert text[name] == sum(source[name] for source in text["by_source"].values())
    assert (text["documents"], text["context"], text["stride"]) == (5, 32, 16)
    prose = list(_held_out(recipe))
    assert text["bytes"] == sum(len(document.encode()) for document in prose)
    assert text["baselines"] == compressor_bits_per_byte(prose)
    assert made.metrics["language_model/baselines/xz -9"] == text["baselines"]["xz -9"]
    assert made.counts == {
        "text": {"tokens": text["tokens"], "bytes": text["bytes"], "documents": 5},
        "examples": {"answer": 6, "topic": 6},
    }

    replies = read(recipe, "answer.json")
    assert (replies["task"], replies["examples"], len(replies["samples"])) == ("sft", 6, 6)
    references = [row["reference"] for row in replies["samples"]]
    for label, folder in (("base", "model"), ("finetuned", "finetune/answer/model")):
        model, tokenizer = load_causal_model(recipe.workdir / folder)
        greedy = GenerationSettings(max_tokens=5, temperature=0)
        prompts = [row["prompt"] for row in replies["samples"]]
        own = answer(model, tokenizer, prompts, greedy, longest=48)
        assert [row[label] for row in replies["samples"]] == own
        assert replies[label] == text_metrics(references, own).values
        assert made.metrics[f"answer/{label}/rougeL"] == replies[label]["rougeL"]
    assert replies["samples"][0]["base"] != replies["samples"][0]["finetuned"]

    topic = read(recipe, "topic.json")
    assert (topic["task"], topic["examples"]) == ("classify", 6)
    assert topic["labels"] == ["bridge", "moon", "river"]
    assert topic["majority_label"] == "river"
    assert sum(map(sum, topic["confusion"])) == 6
    assert made.metrics["topic/per_class/moon/f1"] == topic["per_class"]["moon"]["f1"]

    samples = read(recipe, "samples.json")
    assert [sample["prompt"] for sample in samples] == ["The river", ""]
    assert all(set(sample) == {"prompt", "text"} for sample in samples)


def _held_out(recipe: Recipe) -> list[str]:
    from pipeline.corpus.text_tars import read_text_tar, text_tars

    return [doc.text for tar in text_tars(recipe.workdir / "text", "validation") for doc in read_text_tar(tar)]


def test_finished_files_are_kept_and_the_rest_is_made_the_same(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(recipe)
    folder = recipe.workdir / "evaluation"
    (folder / manifest.MANIFEST).unlink()
    (folder / "answer.json").unlink()
    (folder / "samples.json").unlink()
    times = {name: (folder / name).stat().st_mtime_ns for name in ("language_model.json", "topic.json")}
    again = evaluate(recipe)
    assert again.outputs == whole.outputs
    assert again.metrics == whole.metrics
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times


def test_killed_evaluation_goes_on(recipe: Recipe, tmp_path: Path) -> None:
    whole = evaluate(recipe)
    folder = recipe.workdir / "evaluation"
    for path in folder.iterdir():
        path.unlink()
    (tmp_path / "tiny.yaml").write_text(save_recipe(recipe))
    script = """
        import sys
        from pathlib import Path
        from pipeline.config import load_recipe
        from pipeline.evaluate.evaluate import run
        from pipeline.manifest import Work
        from pipeline.tracking import Tracker
        recipe = load_recipe(sys.argv[1])
        run(recipe, Work("evaluate", recipe.workdir / "evaluation", "key", {}, {}), Tracker())
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "tiny.yaml")]
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None and not (folder / "language_model.json").exists():
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):  # it was quicker: told below
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (folder / "language_model.json").exists()
    assert evaluate(recipe).outputs == whole.outputs


def test_no_held_out_example_is_said(recipe: Recipe) -> None:
    (recipe.workdir / "finetune/topic/examples/validation.jsonl").write_text("")
    with pytest.raises(DataError, match="nothing to evaluate topic on"):
        evaluate(recipe)


def test_nothing_of_finetuning_is_needed_without_tasks(recipe: Recipe) -> None:
    made = evaluate(recipe.model_copy(update={"finetune": {}}))
    assert {output.path for output in made.outputs} == {"language_model.json", "language_model.jsonl", "samples.json"}
    assert made.counts["examples"] == {}


def test_numbers_of_leaves_out_what_is_no_number() -> None:
    found = {"task": "sft", "a": 1, "b": {"c": 0.5, "d": {"e f": 2}}, "list": [1, 2], "none": None}
    assert numbers_of(found, "x") == {"x/a": 1.0, "x/b/c": 0.5, "x/b/d/e f": 2.0}


def test_recurrent_models_are_measured_too(recipe: Recipe, tokenizer: Any) -> None:
    shape = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 64}
    config = HeadwaterLstmConfig(**shape, bos_token_id=0, eos_token_id=0, pad_token_id=1)
    for folder in ("model", "finetune/answer/model"):
        HeadwaterLstmForCausalLM(config).save_pretrained(recipe.workdir / folder)
    labels = dict(enumerate(["bridge", "moon", "river"]))
    names = {"id2label": labels, "label2id": {label: number for number, label in labels.items()}}
    config = HeadwaterLstmConfig(**shape, **names, bos_token_id=0, eos_token_id=0, pad_token_id=1)
    HeadwaterLstmForSequenceClassification(config).save_pretrained(recipe.workdir / "finetune/topic/model")
    made = evaluate(recipe)
    uniform = math.log2(len(tokenizer)) * made.counts["text"]["tokens"] / made.counts["text"]["bytes"]
    assert made.metrics["language_model/bits_per_byte"] == pytest.approx(uniform, rel=0.02)  # untrained: no idea
    assert sum(map(sum, read(recipe, "topic.json")["confusion"])) == 6
