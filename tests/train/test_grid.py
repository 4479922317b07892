"""A grid: its combinations, the choice among them, killed in the middle, shared by tasks, its MLflow runs."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import forked
import pytest
from tiny_models import write_bert

from pipeline.cluster.job_array import Share
from pipeline.config import load_recipe
from pipeline.errors import DataError, EnvironmentFault, RecipeError
from pipeline.run import run_stage
from pipeline.stages import stages
from pipeline.tasks import run_trainings
from pipeline.train.grid import ranked

GRID = "{learning_rate: [0.001, 0.02]}"
RECIPE = """
name: tiny
workdir: {workdir}
tracking: {{enabled: {tracked}}}
finetune:
  parity: {{task: classify, train_files: {data}/rows.jsonl, base: {data}/bert, best_by: accuracy, grid: {grid},
    ranks: 1, epochs: 1, global_batch: 16, micro_batch: 16, seq_len: 32, precision: fp32, self_test: false,
    validation_interval: 1, checkpoint_steps: 1}}
"""
STAGES = [
    "finetune.parity@learning_rate=0.001",
    "finetune.parity@learning_rate=0.02",
    "finetune.parity",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_bert(folder / "bert")
    rows = [{"text": f"{number}?", "label": ["even", "odd"][number % 2]} for number in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_recipe(folder: Path, data: Path, grid: str = GRID, tracked: bool = False) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    text = RECIPE.format(workdir=folder / "run", data=data, grid=grid, tracked=str(tracked).lower())
    (folder / "recipe.yaml").write_text(text)
    return str(folder / "recipe.yaml")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, str]:
    """A grid that nobody disturbed, tracked; and what was said."""
    folder = tmp_path_factory.mktemp("whole")
    done = forked.run(folder, forked.stages, write_recipe(folder, data, tracked=True), STAGES)
    assert done.status == 0, done.said
    return folder / "run", done.said


def table(workdir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workdir / "finetune" / "parity" / "grid.json").read_text())
    return found


def manifest(workdir: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workdir / "finetune" / name / "manifest.json").read_text())
    return found


def test_the_best_combination_becomes_the_task(whole: tuple[Path, str]) -> None:
    workdir, said = whole
    found = table(workdir)
    rows = found["combinations"]
    numbers = {row["combination"]: row["accuracy"] for row in rows}
    assert set(numbers) == {"learning_rate=0.001", "learning_rate=0.02"}
    for name, accuracy in numbers.items():
        assert manifest(workdir, f"parity@{name}")["metrics"]["validation/accuracy"] == accuracy
    assert numbers[found["best"]] == max(numbers.values())
    assert all(row["seconds"] > 0 and row["steps"] == 4 for row in rows)
    best = workdir / "finetune" / f"parity@{found['best']}"
    for path in ("model/model.safetensors", "model/config.json", "examples/validation.jsonl", "examples/train.jsonl"):
        assert (workdir / "finetune/parity" / path).samefile(best / path)  # linked, not copied
    assert manifest(workdir, "parity")["counts"]["best_combination"] == found["best"]
    assert "held-out" in said and f"{numbers[found['best']]:.4f}" in said


def test_runs_of_the_combinations_stand_under_that_of_the_task(whole: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{whole[0].parent / 'mlflow.db'}")
    found = client.search_runs([each.experiment_id for each in client.search_experiments()])
    runs = {each.info.run_name: each for each in found}
    assert set(runs) == {"pipeline", *STAGES}
    task = runs["finetune.parity"]
    assert task.data.tags["mlflow.parentRunId"] == runs["pipeline"].info.run_id
    for name in STAGES[:2]:
        assert runs[name].data.tags["mlflow.parentRunId"] == task.info.run_id
        assert runs[name].data.params["optimizer.learning_rate"] == name.partition("learning_rate=")[2]
        assert "result/validation/accuracy" in runs[name].data.metrics
    assert {each.info.status for each in found} == {"FINISHED"}
    assert "grid.json" in {item.path for item in client.list_artifacts(task.info.run_id)}


def test_killed_in_the_second_combination_it_ends_alike(tmp_path: Path, data: Path, whole: tuple[Path, str]) -> None:
    recipe = write_recipe(tmp_path, data)
    assert forked.run(tmp_path, forked.stages, recipe, STAGES, (STAGES[1], 3)).status == -signal.SIGKILL
    workdir, first = tmp_path / "run", "finetune/parity@learning_rate=0.001/manifest.json"
    before = (workdir / first).read_bytes()
    assert not (workdir / "finetune/parity@learning_rate=0.02/manifest.json").exists()
    done = forked.run(tmp_path, forked.stages, recipe, STAGES)
    assert done.status == 0, done.said
    assert re.search("continues after step [23]", done.said)
    assert (workdir / first).read_bytes() == before  # skipped
    for name in ("parity", "parity@learning_rate=0.001", "parity@learning_rate=0.02"):
        assert manifest(workdir, name)["fingerprint"] == manifest(whole[0], name)["fingerprint"]

    # Another value: what is trained already stays, what is chosen is chosen again.
    more = load_recipe(write_recipe(tmp_path, data, "{learning_rate: [0.001, 0.02, 0.01]}"))
    assert list(stages(more))[:4] == [*STAGES[:2], "finetune.parity@learning_rate=0.01", STAGES[2]]
    for name in STAGES[:2]:
        assert run_stage(more, name).finished  # skipped: done
    with pytest.raises(DataError, match=r"needs .*parity@learning_rate=0\.01"):
        run_stage(more, STAGES[2])


def test_tasks_of_an_array_share_the_combinations_and_the_last_one_chooses(tmp_path: Path, data: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    listed = forked.run(tmp_path, forked.command, "finetune", recipe, "--list-tasks", "--task", "1/2")
    assert listed.said.split() == ["parity@learning_rate=0.02"]
    said = {}
    for task in ("1/2", "0/2", "2/3"):
        done = forked.run(tmp_path, forked.command, "finetune", recipe, "--task", task)
        assert done.status == 0, done.said
        said[task] = done.said
        done_now = {f"finetune.{path.parent.name}" for path in (tmp_path / "run/finetune").glob("*/manifest.json")}
        assert done_now == (set(STAGES[1:2]) if task == "1/2" else set(STAGES))
    assert "held-out" in said["0/2"]  # the table of the grid
    assert "none of the trainings is of task 2/3" in said["2/3"]

    # A launcher of two ranks trains a combination, and chooses, as one rank does.
    before = manifest(tmp_path / "run", "parity")
    for stage in STAGES[1:]:
        shutil.rmtree(tmp_path / "run/finetune" / stage.removeprefix("finetune."))
    for stage in STAGES[1:]:
        done = forked.run(tmp_path, forked.stages, recipe, [stage], ranks=2)
        assert done.status == 0, done.said
    after = manifest(tmp_path / "run", "parity")
    assert after["counts"]["best_combination"] == before["counts"]["best_combination"]
    assert after["metrics"]["validation/accuracy"] == pytest.approx(before["metrics"]["validation/accuracy"], abs=0.2)


def test_a_share_is_no_launch_of_several_ranks(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(write_recipe(tmp_path, data))
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EnvironmentFault, match="started 2 ranks; give it the names one by one"):
        run_trainings(recipe, Share(0, 2))


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ("{}", "names nothing to try"),
        ("{learning_rate: [0.001, 1e-3]}", "the same value stands twice"),
        ("{learning_rate: [-1]}", "greater than 0"),
        ("{learning_rates: [1]}", "learning_rate"),
        ("{rank: [4]}", "add `lora: {}`"),
        (
            "{learning_rate: [1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5, 7e-5], epochs: [1, 2, 3, 4, 5]}",
            r"35 combinations \(7 learning_rate × 5 epochs\) are more than 32",
        ),
    ],
)
def test_a_bad_grid_is_one_clear_line(tmp_path: Path, data: Path, grid: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as error:
        load_recipe(write_recipe(tmp_path, data, grid))
    assert "\n" not in str(error.value)


def test_a_task_without_a_grid_has_the_key_it_had(tmp_path: Path, data: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, data, "null"))
    assert next(iter(stages(recipe))) == "finetune.parity"
    assert "grid" not in recipe.task("parity").settings()


def test_the_order_of_the_table() -> None:
    rows = [{"n": n, "loss": loss} for n, loss in enumerate([2.0, float("nan"), 1.0, 1.0])]
    assert [row["n"] for row in ranked(rows, "loss")] == [2, 3, 0, 1]
    rows = [{"n": n, "accuracy": right} for n, right in enumerate([0.5, float("nan"), 0.75])]
    assert [row["n"] for row in ranked(rows, "accuracy")] == [2, 0, 1]
