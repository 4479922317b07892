"""The run driver: locks, ranks that wait for rank 0, signals, words."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command import PROJECT, Pipeline, clean_environment

from pipeline import manifest as manifests
from pipeline import run as driver
from pipeline.config import load_recipe
from pipeline.errors import EnvironmentFault, Stopped, UserError
from pipeline.locks import hold
from pipeline.progress import log, log_file, start_logging
from pipeline.recipe import Recipe
from pipeline.stage_state import prepare, status
from pipeline.stages import stages


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "a.txt").write_text("text\n", encoding="utf-8")
    path = tmp_path / "r.yaml"
    path.write_text(
        f"workdir: {tmp_path / 'run'}\ncorpus:\n  sources: [{{name: a, type: text, path: '{tmp_path}/a.txt'}}]\n",
        encoding="utf-8",
    )
    return load_recipe(str(path))


def test_other_ranks_wait_until_rank_0_of_their_launch_has_prepared(recipe: Recipe) -> None:
    waited = threading.Thread(target=driver._wait_for_rank_0, args=(recipe, "shard", "srun 17"))
    waited.start()
    logs = recipe.workdir / "logs"
    with hold(logs, "shard", launch="an earlier one") as fence:
        prepare(recipe, status(recipe, "shard"))
        fence.ready(status(recipe, "shard").work.key)
        time.sleep(0.5)
        assert waited.is_alive()
    with hold(logs, "shard", launch="srun 17") as fence:
        time.sleep(0.3)
        assert waited.is_alive()
        fence.ready(status(recipe, "shard").work.key)
        waited.join(timeout=300)
    assert not waited.is_alive()


def test_other_ranks_do_not_wait_for_ever(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "RANK_PATIENCE", 0.1)
    with pytest.raises(EnvironmentFault, match="a file system that all nodes share"):
        driver._wait_for_rank_0(recipe, "shard", "")


def test_ranks_read_the_recipe_that_the_run_began_with(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("shard", "tokenizer", "tokenize"):
        found = status(recipe, name)
        prepare(recipe, found)
        found.work.finish([])

    def launch(arguments: list[str], ranks: int) -> int:
        (tmp_path / "r.yaml").write_text("name: next\n", encoding="utf-8")  # a person edits it meanwhile
        command, path, *rest = arguments
        assert (command, rest) == ("pretrain", [])
        assert load_recipe(path) == recipe
        status(load_recipe(path), "pretrain").work.finish([])
        return 0

    monkeypatch.setattr("pipeline.cluster.launch.launch_local", launch)
    monkeypatch.setattr(driver, "read_ranks", lambda: None)
    assert driver.run_stage(recipe, "pretrain").stage == "pretrain"


@pytest.mark.parametrize(("ended", "told"), [(2, 2), (130, 130), (137, 1)])
def test_ctrl_c_in_ranks_is_told_as_ctrl_c(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, ended: int, told: int
) -> None:
    for name in ("shard", "tokenizer", "tokenize"):
        found = status(recipe, name)
        prepare(recipe, found)
        found.work.finish([])
    monkeypatch.setattr("pipeline.cluster.launch.launch_local", lambda arguments, ranks: ended)
    monkeypatch.setattr(driver, "read_ranks", lambda: None)
    with pytest.raises(SystemExit) as left:
        driver.run_stage(recipe, "pretrain")
    assert left.value.code == told


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["tokenizer.path=nowhere"], "nowhere: no such folder"),
        (["finetune.a={task: sft, train_files: no.jsonl}"], "no.jsonl: no such file"),
        (["finetune.a={task: classify, data: docstring_packages, base: nowhere}"], "nowhere: no such folder"),
    ],
)
def test_what_later_stages_lack_is_named_before_the_first(recipe: Recipe, words: list[str], problem: str) -> None:
    changed = load_recipe(str(recipe.workdir.parent / "r.yaml"), words)
    with pytest.raises(UserError, match=problem):
        driver.run_all(changed)
    assert not (recipe.workdir / "text").exists()


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="no folder here refuses everybody")
def test_a_folder_that_cannot_be_written_is_named(pipeline: Pipeline, tiny_recipe: Path) -> None:
    done = pipeline("shard", tiny_recipe, "workdir=/sys/kernel/headwater")
    assert done.returncode == EnvironmentFault.status
    assert "/sys/kernel/headwater/logs/shard.log: not writable" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_base_that_an_earlier_task_will_make_is_not_missed(recipe: Recipe) -> None:
    base = recipe.workdir / "finetune" / "a" / "model"
    task = f"{{task: classify, data: docstring_packages, base: {base}}}"
    driver.check_ahead(load_recipe(str(recipe.workdir.parent / "r.yaml"), [f"finetune.b={task}"]))


def test_reading_what_another_recipe_made_is_told(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.progress import start_logging

    found = status(recipe, "shard")
    prepare(recipe, found)
    found.work.finish([])
    start_logging()
    changed = recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update={"normalize": "NFKC"})})
    driver.warn_of_stale_inputs(changed, "tokenizer")
    assert "made with other settings: normalize was 'NFC', is 'NFKC'" in capsys.readouterr().err
    driver.warn_of_stale_inputs(recipe, "tokenizer")
    assert capsys.readouterr().err == ""


def test_sigterm_ends_a_stage_in_order(tmp_path: Path, pipeline: Pipeline) -> None:
    words = ["shard", "demo", f"workdir={tmp_path}", "corpus.sources.0.packages=[stdlib]", "tracking.enabled=false"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
        cwd=PROJECT,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    assert "starts" in first  # from the moment on when this is said
    process.terminate()
    assert process.wait(timeout=300) == 75
    assert "shard: stopped by SIGTERM; the same command continues" in process.stderr.read()
    assert (tmp_path / "text" / manifests.BUILDING).is_file()


@pytest.mark.parametrize(("name", "number"), [("shard", "SIGTERM"), ("pretrain", "SIGTERM"), ("pretrain", "SIGUSR1")])
def test_a_stage_is_stopped_in_order_also_before_and_after_its_steps(recipe: Recipe, name: str, number: str) -> None:
    before = signal.getsignal(getattr(signal, number))
    with pytest.raises(Stopped, match=f"{name}: stopped by {number}"), driver.stop_on_signal(stages(recipe)[name]):
        os.kill(os.getpid(), getattr(signal, number))
        time.sleep(5)
    assert signal.getsignal(getattr(signal, number)) == before


def test_a_signal_in_the_middle_of_a_line_of_the_log_is_not_lost(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_logging()
    with pytest.raises(Stopped), log_file(tmp_path / "a.log"), driver.stop_on_signal(stages(recipe)["shard"]):
        monkeypatch.setattr(logging.Formatter, "format", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        log.info("a line")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (3600, "1 h 0 min"), (7500, "2 h 5 min")]
)
def test_durations_are_words(seconds: float, words: str) -> None:
    assert driver.duration(seconds) == words
