"""The tokenize stage: the same bytes whoever does the work and whenever it is killed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from killed_tokenize import killed_tokenize

from pipeline.errors import DataError
from pipeline.manifest import Manifest
from pipeline.recipe import Recipe
from pipeline.tokens import tokenize
from pipeline.tokens.data import TokenData
from pipeline.tokens.encode import Encoder, with_end_of_text
from pipeline.tokens.token_tars import documents as documents_of

StageRunner = Callable[[Recipe, str], Manifest]
Fresh = Callable[..., Recipe]


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a tokens folder but its manifest, which bears the time."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_every_document_is_there_in_order(made: Recipe, documents: dict[str, list[str]]) -> None:
    folder = made.workdir / "tokens"
    data, encoder = TokenData.open(folder), Encoder.open(made.workdir / "tokenizer")
    assert data.vocab_size == 700 and data.index.dtype == np.uint16 and data.eos_id == 0
    for source, texts in documents.items():
        rows = [
            row for shard in data.index.parts["train"][source] for row in documents_of(folder, shard, data.index.dtype)
        ]
        assert all(row[-1] == 0 and (row[:-1] > 3).all() for row in rows)
        assert [encoder.decode(row[:-1]) for row in rows] == texts
        assert data.bytes("train", source) == sum(len(text.encode()) for text in texts)
    assert len(data.index.parts["train"]["python"]) > 1


def test_what_the_stage_reports(
    made: Recipe, fresh: Fresh, stage: StageRunner, documents: dict[str, list[str]]
) -> None:
    found = stage(fresh(), "tokenize")
    data = TokenData.open(made.workdir / "tokens")
    train = found.counts["train"]
    assert train["documents"] == sum(map(len, documents.values())) == data.documents("train")
    assert train["tokens"] == data.tokens("train") and train["bytes"] == data.bytes("train")
    assert train["sources"]["chinese"]["tokens"] == data.tokens("train", "chinese")
    assert found.counts["validation"]["documents"] == 8
    assert (found.counts["dtype"], found.counts["vocab_size"], found.counts["engine"]) == ("uint16", 700, "gigatoken")
    assert {output.path: output.sha256 for output in found.outputs if output.path.endswith(".tar")} == {
        shard.file: shard.sha256
        for sources in data.index.parts.values()
        for shards in sources.values()
        for shard in shards
    }


def test_two_processes_write_the_same_bytes(made: Recipe, fresh: Fresh, stage: StageRunner) -> None:
    recipe = fresh(workers=2)
    stage(recipe, "tokenize")
    assert contents(recipe.workdir / "tokens") == contents(made.workdir / "tokens")


def test_killed_anywhere_it_continues_to_the_same_bytes(made: Recipe, fresh: Fresh) -> None:
    """SIGKILL of the process group before the n-th file is committed; each start goes a little further."""
    recipe = fresh()
    seen = []
    for number in (2, 4, 3, 3):
        assert killed_tokenize(recipe, number) == -signal.SIGKILL
        seen.append(len(list((recipe.workdir / "tokens").rglob("*"))))
    assert seen == sorted(seen)
    assert not (recipe.workdir / "tokens" / "manifest.json").exists()
    assert killed_tokenize(recipe, 0) == 0
    assert contents(recipe.workdir / "tokens") == contents(made.workdir / "tokens")


def test_a_fault_of_gigatoken_makes_all_of_it_anew(
    made: Recipe, fresh: Fresh, stage: StageRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It errs on one document in the middle: the tars before it are not trusted either."""
    right = Encoder._agrees
    calls = []

    def agrees(self: Encoder, texts: list[str], ids: object, ends: object) -> bool:
        calls.append(len(texts))
        return right(self, texts, ids, ends) and len(calls) != 3  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "_agrees", agrees)
    recipe = fresh()
    found = stage(recipe, "tokenize")
    assert len(calls) == 3
    assert found.counts["engine"] == "tokenizers"
    files = contents(recipe.workdir / "tokens")
    assert files.pop(tokenize.SLOW) == b""
    assert files == contents(made.workdir / "tokens")


def test_a_large_vocabulary_takes_four_bytes(
    made: Recipe, fresh: Fresh, stage: StageRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Encoder.open

    def open_large(folder: Path, fast: bool = True) -> Encoder:
        encoder = opened(folder, fast)
        encoder.vocab_size = 65_537
        return encoder

    monkeypatch.setattr(Encoder, "open", open_large)
    recipe = fresh()
    assert stage(recipe, "tokenize").counts["dtype"] == "uint32"
    data, small = TokenData.open(recipe.workdir / "tokens"), TokenData.open(made.workdir / "tokens")
    for source in small.sources("train"):
        everything = [np.empty((1, len(d.source("train", source))), np.int64) for d in (data, small)]
        for d, out in zip((data, small), everything, strict=True):
            d.source("train", source).gather(np.array([0]), out, np.array([0]))
        assert np.array_equal(*everything)


def test_a_cut_text_tar_is_named(
    made: Recipe, recipe_in: Callable[..., Recipe], stage: StageRunner, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer").symlink_to(made.workdir / "tokenizer")
    (tmp_path / "text").mkdir()
    for path in sorted((made.workdir / "text").rglob("*")):
        target = tmp_path / "text" / path.relative_to(made.workdir / "text")
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    victim = next((tmp_path / "text" / "train").glob("python-*.tar"))
    victim.write_bytes(victim.read_bytes()[:5000])
    with pytest.raises(DataError, match=victim.name):
        stage(recipe_in(tmp_path), "tokenize")


def test_no_training_text(
    made: Recipe,
    text_stage: Callable[..., Manifest],
    recipe_in: Callable[..., Recipe],
    stage: StageRunner,
    tmp_path: Path,
) -> None:
    (tmp_path / "tokenizer").symlink_to(made.workdir / "tokenizer")
    text_stage(tmp_path, {}, {"python": ["def f(): pass"]}, 10_000)
    with pytest.raises(DataError, match="no training text"):
        stage(recipe_in(tmp_path), "tokenize")


def test_end_of_text_after_each_document() -> None:
    ids, ends = with_end_of_text(np.array([5, 6, 7], np.uint32), np.array([2, 2, 3]), 0)
    assert ids.tolist() == [5, 6, 0, 0, 7, 0] and ends.tolist() == [3, 4, 6]
    assert ids.dtype == np.uint32
