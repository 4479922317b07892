"""The command: what people type wrong gets one line and status 2; it starts quickly and can be asked for help."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Pipeline

from pipeline.cli import main


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(words)
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("rum",), "No such command 'rum'"),
        (("run",), "Missing argument 'RECIPE'"),
        (("run", "demp"), "did you mean 'demo'?"),
        (("run", "seed=7"), "the recipe comes first: pipeline run demo seed=7"),
        (("seed=7", "run", "demo"), "settings follow the recipe: pipeline run demo seed=7"),
        (("run", "demo", "seed"), "'seed' is not of the form key=value"),
        (("run", "demo", "--seed=7"), "No such option '--seed'"),
        (("run", "demo", "sede=7"), "unknown key 'sede'; did you mean 'seed'?"),
        (("finetune", "demo", "--task", "x"), "the recipe's tasks are summarize, package"),
        (("finetune", "7b"), "has no finetune tasks"),
        (("generate", "demo"), "give --prompt TEXT"),
        (("generate", "demo", "--prompt", "x", "--temperature", "-1"), "temperature"),
    ],
)
def test_bad_words_get_one_line(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], expected: str) -> None:
    status, out, err = call(capsys, *words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert expected in err
    assert err.count("\n") == 1


def test_a_stage_that_lacks_its_input_says_what_makes_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _, err = call(capsys, "tokenize", "demo", f"workdir={tmp_path}")
    assert status == 2
    assert "which stage shard makes; run `pipeline shard` first" in err
    status, _, err = call(capsys, "generate", "demo", f"workdir={tmp_path}", "--prompt", "x")
    assert status == 2
    assert f"`pipeline export demo workdir={tmp_path}` makes it" in err


def test_help_shows_every_command_with_examples(pipeline: Pipeline) -> None:
    shown = pipeline("--help")
    assert shown.returncode == 0
    for word in ("run", "shard", "pretrain", "generate", "recipes", "Examples:", "Exit status:"):
        assert word in shown.stdout


def test_the_bare_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys)
    assert (status, err) == (2, "")
    assert "Examples:" in out


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "recipes")
    assert status == 0
    for name in ("demo", "125m", "1b", "7b"):
        assert f"\n{name} " in f"\n{out}"


def test_dry_run_shows_stages_parameters_and_tokens_and_touches_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, out, _ = call(capsys, "run", "7b", "--dry-run", f"workdir={tmp_path / 'run'}")
    assert status == 0
    assert "7,516,459,008 parameters" in out
    assert "140,000,000,000 tokens = 33,379 steps" in out
    assert "no file matches" in out
    assert not (tmp_path / "run").exists()


def test_contradictory_launchers_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    status, _, err = call(capsys, "pretrain", "demo")
    assert status == 2
    assert "WORLD_SIZE" in err
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name, value in {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    status, _, err = call(capsys, "run", "demo")
    assert status == 2
    assert "starts its own ranks" in err
