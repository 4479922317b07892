"""Bad input: one line that names the thing and what to do, status 2, no traceback, and nothing made is lost."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Pipeline

TEXT = "The quick brown fox jumps over the lazy dog and then it goes home to have dinner with all of its friends. "


def corpus(folder: Path, lines: list[str]) -> Path:
    """A recipe over one jsonl file that holds these lines."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    recipe = folder / "mine.yaml"
    recipe.write_text(
        f"name: mine\nworkdir: {json.dumps(str(folder / 'run'))}\n"
        f"corpus:\n  sources:\n    - {{name: mine, type: jsonl, path: {json.dumps(str(folder / 'text.jsonl'))}}}\n"
        "tracking: {enabled: false}\n",
        encoding="utf-8",
    )
    return recipe


def documents(count: int) -> list[str]:
    return [json.dumps({"text": f"Number {n}. {TEXT * 3}"}) for n in range(count)]


def refused(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for words in expected:
        assert words in errors[0]


def test_a_wrong_key(pipeline: Pipeline, tmp_path: Path) -> None:
    recipe = corpus(tmp_path, documents(3))
    recipe.write_text(recipe.read_text(encoding="utf-8") + "pretrane: {}\n", encoding="utf-8")
    refused(pipeline("run", recipe), "mine.yaml:7", "pretrane", "did you mean 'pretrain'?")


def test_a_missing_file(pipeline: Pipeline, tmp_path: Path) -> None:
    recipe = corpus(tmp_path, documents(3))
    (tmp_path / "text.jsonl").unlink()
    refused(pipeline("shard", recipe), "text.jsonl", "no ")


def test_an_empty_corpus(pipeline: Pipeline, tmp_path: Path) -> None:
    refused(pipeline("shard", corpus(tmp_path, [])), "mine")


def test_no_sources(pipeline: Pipeline, tmp_path: Path) -> None:
    recipe = tmp_path / "none.yaml"
    recipe.write_text(f"workdir: {tmp_path / 'run'}\n", encoding="utf-8")
    refused(pipeline("shard", recipe), "sources")


def test_no_document_left_after_cleaning(pipeline: Pipeline, tmp_path: Path) -> None:
    refused(pipeline("shard", corpus(tmp_path, ['{"text": "short"}', '{"text": "shorter"}'])), "min_")


def test_a_broken_line(pipeline: Pipeline, tmp_path: Path) -> None:
    recipe = corpus(tmp_path, [*documents(2), '{"text": "broken', *documents(1)])
    refused(pipeline("shard", recipe), "text.jsonl:3")


def test_an_unknown_column(pipeline: Pipeline, tmp_path: Path) -> None:
    refused(pipeline("shard", corpus(tmp_path, ['{"content": "x"}'])), "text", "content")


def test_a_vocabulary_larger_than_the_text_supports(pipeline: Pipeline, tmp_path: Path) -> None:
    recipe = corpus(tmp_path, documents(30))
    assert pipeline("shard", recipe).returncode == 0
    refused(pipeline("tokenizer", recipe, "tokenizer.vocab_size=50000"), "vocab_size")
    assert pipeline("shard", recipe).returncode == 0  # what was made is there still


def test_a_truncated_tar(pipeline: Pipeline, tiny_copy: Path, tiny_recipe: Path) -> None:
    tar = next((tiny_copy / "text" / "train").glob("*.tar"))
    os.truncate(tar, tar.stat().st_size // 2)
    refused(pipeline("tokenize", tiny_recipe, f"workdir={tiny_copy}", "tokenize.member_tokens=7000"), tar.name)
    refused(pipeline("run", tiny_recipe, f"workdir={tiny_copy}"), tar.name, "was changed after stage shard made it")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk(pipeline: Pipeline, tmp_path: Path, small_disk: Path) -> None:
    recipe = corpus(tmp_path, documents(5_000))
    full = pipeline("shard", recipe, f"workdir={small_disk / 'run'}")
    refused(full, str(small_disk), "disk is full")
    assert pipeline("shard", recipe, f"workdir={tmp_path / 'larger'}").returncode == 0


def test_two_commands_at_once(pipeline: Pipeline, tmp_path: Path) -> None:
    from pipeline.locks import hold

    recipe = corpus(tmp_path, documents(3))
    with hold(tmp_path / "run" / "logs", "shard"):
        refused(pipeline("shard", recipe), "shard: another command is working on it", f"process {os.getpid()}")
    assert pipeline("shard", recipe).returncode == 0
