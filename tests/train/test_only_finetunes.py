"""A recipe that fine-tunes somebody else's model and does nothing else: no corpus, no pretraining."""

from __future__ import annotations

import json
from pathlib import Path

import forked
import pytest
from tiny_models import write_bert

from pipeline.config import load_recipe
from pipeline.errors import RecipeError
from pipeline.stages import named_stage, stages

RECIPE = """
name: labels
workdir: {folder}/run
tracking: {{enabled: false}}
finetune:
  kind:
    task: classify
    base: {folder}/bert
    train_files: {folder}/labels.jsonl
    validation: 0.25
    epochs: 1
    global_batch: 8
    seq_len: 32
    ranks: 1
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    rows = [{"text": f"number {number} is here", "label": "odd" if number % 2 else "even"} for number in range(32)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = tmp_path / "labels.yaml"
    path.write_text(RECIPE.format(folder=tmp_path), encoding="utf-8")
    return path


def test_it_runs_and_is_skipped_the_second_time(recipe_file: Path, tmp_path: Path) -> None:
    write_bert(tmp_path / "bert")
    done = forked.run(tmp_path, forked.command, "run", recipe_file)
    assert done.status == 0, done.said
    assert "kind: accuracy" in done.said
    assert "bits per byte" not in done.said
    found = json.loads((tmp_path / "run" / "evaluation" / "kind.json").read_text(encoding="utf-8"))
    assert found["examples"] == 8
    assert (tmp_path / "run" / "report.html").is_file()
    assert not (tmp_path / "run" / "checkpoints").exists()
    again = forked.run(tmp_path, forked.command, "run", recipe_file)
    assert again.status == 0, again.said
    assert again.said.count("skipped: made on") == 2
    plan = forked.run(tmp_path, forked.command, "run", recipe_file, "--dry-run")
    assert "pretraining" not in plan.said
    assert "classify, all examples" in plan.said


def test_its_stages_are_the_tasks_and_their_evaluation(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file), [])
    assert list(stages(recipe)) == ["finetune.kind", "evaluate"]
    assert stages(recipe)["evaluate"].needs == ("finetune.kind",)


def test_a_task_without_a_base_needs_all_stages(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file), ["finetune.kind.base=null", "model.max_seq_len=2048"])
    assert "pretrain" in stages(recipe)


def test_a_stage_that_it_lacks_is_named(recipe_file: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        named_stage(load_recipe(str(recipe_file), []), "pretrain")
    assert str(caught.value) == "pretrain: not a stage of recipe labels; its stages are finetune.kind, evaluate"


def test_the_harness_has_no_model_to_measure(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file), ["evaluate.harness.tasks=[arc_easy]"])
    with pytest.raises(
        RecipeError, match="measures the language model that a recipe pretrains, and labels pretrains none"
    ):
        stages(recipe)
