"""What `pipeline shard --show-drops` prints: every rule, twenty drops of one, and nothing that a terminal acts on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_corpora import Shard, prose

from pipeline.cli import main
from pipeline.corpus.drops import SAMPLES, drop_lines
from pipeline.errors import DataError, RecipeError
from pipeline.printable import printable

EVIL = "short \x1b]0;evil\x07 \u202e \x9b31m \r\n"


@pytest.fixture
def folder(tmp_path: Path, shard: Shard) -> Path:
    """A finished stage of two sources, one of Chinese, with forty documents that are too short."""
    for name, text in (("notes", EVIL), ("书", "短。\x1b[2J")):
        lines = [{"id": f"{name} {n}\x1b[1m", "text": f"{n} {text}"} for n in range(20)]
        lines += [{"id": f"long {n}", "text": prose(n)} for n in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = [
        {"name": key, "type": "jsonl", "path": str(tmp_path / f"{name}.jsonl"), "id_field": "id"}
        for key, name in (("notes", "notes"), ("books", "书"))
    ]
    shard(sources)
    return tmp_path / "run" / "text"


def test_all_rules_with_their_counts_and_sources(folder: Path) -> None:
    head, *rows = drop_lines(folder, None, 1)
    assert head.split() == ["rule", "documents", "share", "bytes", "sources"]
    found = {row.split()[0]: row.split()[1:] for row in rows}
    assert found["min_characters"][0] == "40"
    assert found["min_characters"][-2:] == ["notes,", "books"]
    assert found["duplicate"][0] == "3"
    assert [row.split()[0] for row in rows] == ["min_characters", "duplicate"]


def test_twenty_of_a_rule_the_same_for_the_same_seed(folder: Path) -> None:
    lines = drop_lines(folder, "min_characters", 1)
    assert lines[0] == "min_characters: 40 documents dropped; 20 of them, drawn by seed 1"
    assert sum("threshold 200" in line for line in lines) == SAMPLES
    assert lines == drop_lines(folder, "min_characters", 1) != drop_lines(folder, "min_characters", 2)
    assert any(line.startswith("notes  ") for line in lines) and any(line.startswith("books  ") for line in lines)
    assert len(drop_lines(folder, "duplicate", 1)) == 1 + 3 * 3


def test_a_terminal_only_shows_it(folder: Path) -> None:
    lines = drop_lines(folder, "min_characters", 1)
    assert all(line.isprintable() for line in lines)
    assert any("\\x1b" in line for line in lines) and any("短" in line for line in lines)


@given(st.text(st.characters(codec=None)))
def test_of_any_text(text: str) -> None:
    assert printable(text).isprintable()


def test_a_rule_that_dropped_nothing_and_one_that_is_none(folder: Path) -> None:
    assert drop_lines(folder, "c4.min_sentences", 1) == ["c4.min_sentences: no document was dropped by it"]
    with pytest.raises(RecipeError, match=r"no rule 'min_caracters'; did you mean 'min_characters'"):
        drop_lines(folder, "min_caracters", 1)


def test_files_that_are_not_there_or_damaged(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has not finished"):
        drop_lines(tmp_path / "nothing", None, 1)
    cut = next((folder / "dropped").iterdir())
    cut.write_bytes(cut.read_bytes()[:40])
    with pytest.raises(DataError, match=f"{cut.name}: cannot be read"):
        drop_lines(folder, "min_characters", 1)


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = f"workdir={folder.parent}"
    for words in (["demo", "--show-drops", workdir], ["demo", workdir, "--show-drops"]):
        with pytest.raises(SystemExit) as left:
            main(["shard", *words])
        assert left.value.code == 0
        assert capsys.readouterr().out == "\n".join(drop_lines(folder, None, 1234)) + "\n"
    with pytest.raises(SystemExit) as left:
        main(["shard", "demo", workdir, "--show-drops", "nothing_like_it"])
    assert left.value.code == 2
