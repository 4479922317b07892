"""The shard stage as a job array: whoever does what and when, the bytes are those of the plain command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import clean_environment, run_pipeline
from processes import status_of
from small_corpora import MakeRecipe, Plain, prose, tree, write_jsonl

from pipeline.cluster.job_array import Share
from pipeline.errors import DataError, EnvironmentFault
from pipeline.locks import hold
from pipeline.recipe import Recipe
from pipeline.run import run_stage
from pipeline.tasks import run_decision, run_task


def corpus(folder: Path) -> dict[str, Any]:
    """Two sources, both with an end: one whose text is less than what is stored, and one without a bound."""
    if not folder.exists():
        write_jsonl(folder / "a.jsonl", [prose(n % 30) for n in range(60)] + ["short"])
        write_jsonl(folder / "b.jsonl", [prose(n) for n in range(25, 60)])
        (folder / "poor.jsonl").write_text(
            "".join(f'{{"junk": "{"x" * 900}", "text": "{prose(n)[:-1]}"}}\n' for n in range(100, 160))
        )
    return {
        "sources": [
            {"name": "poor", "type": "jsonl", "path": str(folder / "poor.jsonl"), "max_bytes": 12_000},
            {"name": "web", "type": "jsonl", "path": str(folder / "[ab].jsonl"), "max_bytes": 30_000},
            {"name": "more", "type": "jsonl", "path": str(folder / "b.jsonl")},
        ],
        "split_bytes": 5_000,
        "shard_bytes": 3_000,
        "validation": 0.1,
        "workers": 1,
    }


def write_recipe(path: Path, recipe: Recipe) -> Path:
    path.write_text(yaml.safe_dump({"corpus": recipe.corpus.model_dump(mode="json"), "tracking": {"enabled": False}}))
    return path


def do(recipe: Recipe, count: int, order: Sequence[int]) -> None:
    for number in order:
        run_task(recipe, "shard", Share(number, count))


@pytest.mark.parametrize(("reading", "writing"), [(1, 1), (2, 3), (3, 2)])
def test_the_bytes_do_not_depend_on_the_tasks(
    tmp_path: Path, recipe_in: MakeRecipe, plain: Plain, reading: int, writing: int
) -> None:
    recipe = recipe_in(tmp_path)
    parts = tmp_path / "text" / "parts"
    do(recipe, reading, range(reading)[::-1])
    read = len(list(parts.glob("*.read.json")))
    assert read > 15
    run_decision(recipe, "shard")
    assert len(list(parts.glob("*.read.json"))) == read  # what the tasks guessed to be needed was enough
    assert not (tmp_path / "text" / "train").exists()
    do(recipe, writing, range(writing)[::-1])
    assert not list(parts.glob("*.records.zst")) or reading > 1  # of splits that do not count, read beside others
    assert not (tmp_path / "text" / "manifest.json").exists()
    made = run_stage(recipe, "shard")
    assert (tree(tmp_path / "text"), made.fingerprint) == (plain.files, plain.made.fingerprint)
    do(recipe, 5, [3])  # done: nothing happens
    assert tree(tmp_path / "text") == plain.files


def test_the_plain_command_does_what_tasks_left(tmp_path: Path, recipe_in: MakeRecipe, plain: Plain) -> None:
    """Whatever is missing: tasks that never ran, a decision, all of it."""
    left: dict[str, list[Callable[[Recipe], None]]] = {
        "no decision": [lambda r: do(r, 3, [1])],
        "half of each": [lambda r: do(r, 2, [1]), lambda r: run_decision(r, "shard"), lambda r: do(r, 4, [2, 2, 0])],
        "read twice": [lambda r: do(r, 2, [0, 1]), lambda r: do(r, 3, [0, 1, 2])],
        "decision alone": [lambda r: run_decision(r, "shard"), lambda r: run_decision(r, "shard")],
    }
    for name, steps in left.items():
        recipe = recipe_in(tmp_path / name)
        for step in steps:
            step(recipe)
        run_stage(recipe, "shard")
        assert tree(tmp_path / name / "text") == plain.files, name


# --- killed --------------------------------------------------------------------------------------------------------

# The tasks of an array in forked children, each killed before its n-th rename and then repeated, for every n.
EVERY_RENAME = """
import signal, sys
from pathlib import Path
from dying import forked
from pipeline import tasks
from pipeline.cluster.job_array import Share
from pipeline.config import load_recipe
from pipeline.corpus import shard  # once, not in each child
from pipeline.run import run_stage

def run(workdir, step):
    recipe = load_recipe(sys.argv[1], [f"workdir={workdir}"])
    if step == "plain":
        run_stage(recipe, "shard")
    elif step == "decide":
        tasks.run_decision(recipe, "shard")
    else:
        tasks.run_task(recipe, "shard", Share(step, 2))

for number in range(1, 1000):
    workdir = Path(sys.argv[2]) / str(number)
    alive = 0
    for step in (0, 1, "decide", 1, 0, "plain"):
        status = forked(workdir, number, run, step)
        if status:
            assert status == -signal.SIGKILL, status
            assert forked(workdir, -1, run, step) == 0
        alive += not status
    if alive == 6:
        break
print(number)
"""


def test_killed_before_every_rename(tmp_path: Path, recipe_in: MakeRecipe, plain: Plain) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_in(tmp_path, split_bytes=15_000, shard_bytes=9_000))
    command = [sys.executable, "-c", EVERY_RENAME, str(recipe), str(tmp_path / "runs")]
    beside = clean_environment(PYTHONPATH=str(Path(__file__).parent))  # dying.py
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800, env=beside)
    assert done.returncode == 0, done.stderr
    runs = sorted((tmp_path / "runs").iterdir(), key=lambda path: int(path.name))
    assert len(runs) == int(done.stdout) > 10
    unbroken = tree(runs[-1] / "text")
    assert len(unbroken) > 10
    for run in runs:
        assert tree(run / "text") == unbroken


# --- at the same time ----------------------------------------------------------------------------------------------


def together(recipe: Path, workdir: Path, shares: Sequence[str]) -> None:
    """Commands started at the same moment, as Slurm starts the elements of an array."""
    words = [sys.executable, "-m", "pipeline", "shard", str(recipe), f"workdir={workdir}", "--task"]
    running = [
        subprocess.Popen([*words, share], stderr=subprocess.PIPE, text=True, env=clean_environment())
        for share in shares
    ]
    told = [process.communicate(timeout=900)[1] for process in running]
    assert [process.returncode for process in running] == [0] * len(shares), told


def test_tasks_at_the_same_time_even_the_same_one_twice(tmp_path: Path, recipe_in: MakeRecipe, plain: Plain) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_in(tmp_path))
    workdir = tmp_path / "run"
    together(recipe, workdir, ["0/2", "1/2", "1/2"])  # they find no folder: one of them makes it
    done = run_pipeline("shard", recipe, f"workdir={workdir}", "--decide")
    assert done.returncode == 0, done.stderr
    together(recipe, workdir, ["0/2", "0/2", "1/2"])
    done = run_pipeline("shard", recipe, f"workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert tree(workdir / "text") == plain.files
    assert {path.name for path in (workdir / "logs").glob("*.log")} == {
        "shard.decide.log", "shard.log", "shard.task-0.log", "shard.task-1.log"
    }  # fmt: skip


def test_the_plain_command_does_not_work_beside_tasks(tmp_path: Path, recipe_in: MakeRecipe) -> None:
    recipe = recipe_in(tmp_path)
    do(recipe, 3, [0])
    with hold(tmp_path / "logs", "shard", shared=True):
        child = os.fork()
        if not child:  # another process: one and the same may hold a lock twice
            try:
                with hold(tmp_path / "logs", "shard", patience=0.2):
                    os._exit(1)
            except EnvironmentFault:
                os._exit(7)
        assert status_of(child) == 7
        do(recipe, 3, [1])
    run_stage(recipe, "shard")


# --- another recipe ------------------------------------------------------------------------------------------------


def test_half_done_work_of_another_recipe_is_not_touched(tmp_path: Path, recipe_in: MakeRecipe, plain: Plain) -> None:
    recipe, other = recipe_in(tmp_path), recipe_in(tmp_path, validation=0.2)
    do(recipe, 3, [1])
    before = tree(tmp_path / "text")
    refused = r"half-done work of another recipe \(validation was 0\.1, is 0\.2\)"
    with pytest.raises(DataError, match=refused):
        do(other, 3, [1])
    with pytest.raises(DataError, match=refused):
        run_decision(other, "shard")
    assert tree(tmp_path / "text") == before
    run_stage(recipe, "shard")
    assert tree(tmp_path / "text") == plain.files
    do(other, 3, [1, 0])
    assert (tmp_path / "previous" / "shard-1" / "manifest.json").is_file()  # finished work is set aside
    assert (tmp_path / "text" / "building.json").is_file()
    with pytest.raises(DataError, match=r"half-done work of another recipe"):
        do(recipe, 3, [1])
    run_stage(other, "shard")
    do(recipe, 3, [1])  # what its settings made lies under previous/
    assert tree(tmp_path / "text") == plain.files


def test_an_attempt_that_made_nothing_is_no_half_done_work(tmp_path: Path, recipe_in: MakeRecipe) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{oops\n")
    source = {"name": "web", "type": "jsonl", "path": str(bad)}
    with pytest.raises(DataError, match=r"bad\.jsonl:1: not valid JSON"):
        do(recipe_in(tmp_path / "run", sources=[source]), 1, [0])
    do(recipe_in(tmp_path / "run"), 2, [0])


def test_several_ranks_are_refused(tmp_path: Path, recipe_in: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(EnvironmentFault, match=r"shard: a task of a job array is one process"):
        do(recipe_in(tmp_path), 3, [1])


def test_a_number_out_of_range(tmp_path: Path, recipe_in: MakeRecipe) -> None:
    wrong = run_pipeline("shard", write_recipe(tmp_path / "recipe.yaml", recipe_in(tmp_path)), "--task", "3/3")
    assert wrong.returncode == 2
    assert wrong.stderr.strip() == "error: --task 3/3: tasks are counted from 0; of 3 the last is 2/3"
