"""The harness stage on local task files: its own numbers, and what is said where something is missing."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest

from pipeline.errors import DataError, EnvironmentFault, RecipeError
from pipeline.evaluate.harness import RESULTS, metrics_of, run
from pipeline.manifest import Work
from pipeline.recipe import Recipe
from pipeline.stages import stages
from pipeline.tracking import Tracker

TASK = """\
task: rivers
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
  cache_dir: {data}.cache
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
metadata:
  version: 1.0
"""


def with_tasks(recipe: Recipe, *tasks: str) -> Recipe:
    harness = recipe.evaluate.harness.model_copy(update={"tasks": tasks})
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"harness": harness})})


def work_of(recipe: Recipe) -> Work:
    (recipe.workdir / "harness").mkdir()
    return Work("harness", recipe.workdir / "harness", "key", {}, {})


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra eval-harness is not installed")
def test_a_local_task_without_network(recipe: Recipe, tmp_path: Path) -> None:
    data = tmp_path / "rivers.jsonl"
    rows = [{"question": f"{n} rivers run to the", "choices": ["sea", "moon"], "answer": n % 2} for n in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tmp_path / "rivers.yaml"
    task.write_text(TASK.format(data=data))
    made = run(with_tasks(recipe, str(task)), work_of(recipe), Tracker())
    found = json.loads((recipe.workdir / "harness" / RESULTS).read_text())
    assert made.counts == {"examples": {"rivers": 4}}
    accuracy = found["results"]["rivers"]["acc,none"]
    assert made.metrics["harness/rivers/acc"] == accuracy
    assert accuracy in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert math.isfinite(made.metrics["harness/rivers/acc_stderr"])
    with pytest.raises(DataError, match="knows no task 'no_such_task'"):
        run(with_tasks(recipe, "no_such_task"), Work("harness", tmp_path, "key", {}, {}), Tracker())


def test_a_missing_harness_is_said(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match=r"eval-harness"):
        run(with_tasks(recipe, "x"), work_of(recipe), Tracker())


def test_the_stage_is_there_when_tasks_are_named(recipe: Recipe, tmp_path: Path) -> None:
    assert "harness" not in stages(recipe)
    named = stages(with_tasks(recipe, "a", str(tmp_path / "b.yaml")))["harness"]
    with pytest.raises(RecipeError, match=r"b\.yaml: no such file"):
        named.sources(with_tasks(recipe, "a", str(tmp_path / "b.yaml")))
    (tmp_path / "b.yaml").write_text("task: b\n")
    assert set(named.sources(with_tasks(recipe, "a", str(tmp_path / "b.yaml")))) == {f"task:{tmp_path}/b.yaml"}
    assert recipe.evaluate.settings() == with_tasks(recipe, "a").evaluate.settings()  # nothing is measured again


def test_metrics_are_flat() -> None:
    results = {"a": {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": "a", "em,strict": 1, "x,none": "N/A"}}
    assert metrics_of(results) == {"harness/a/acc": 0.5, "harness/a/acc_stderr": 0.1, "harness/a/em strict": 1.0}
