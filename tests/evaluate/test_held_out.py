"""What models are measured on: bounded, chosen the same way each time, and named when it is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.evaluate.held_out import held_out_text, read_examples

Write = Callable[[Path, dict[str, list[str]]], None]
WriteLines = Callable[[Path, list[dict[str, str]]], None]
EXAMPLES = [{"id": f"n{n}", "prompt": f"question {n}", "more": "x"} for n in range(40)]


def test_all_documents_by_source_in_order(tmp_path: Path, write_text: Write) -> None:
    texts = {"b": ["one", "zwei"], "a": ["三"], "a_b": ["four"], "empty": []}
    write_text(tmp_path, texts)
    found = held_out_text(tmp_path, None)
    assert {source.source: [document.text for document in source.documents()] for source in found} == {
        "a": ["三"],
        "a_b": ["four"],
        "b": ["one", "zwei"],
    }
    assert [source.to_read for source in found] == [3, 4, 7]


def test_a_bound_is_shared_by_size_and_keeps_whole_documents(tmp_path: Path, write_text: Write) -> None:
    write_text(tmp_path, {"a": ["x" * 30] * 10, "b": ["y" * 10] * 10})
    found = {source.source: [len(one.text) for one in source.documents()] for source in held_out_text(tmp_path, 100)}
    assert found == {"a": [30, 30], "b": [10, 10]}  # shares of 75 and 25 bytes
    least = {source.source: [len(one.text) for one in source.documents()] for source in held_out_text(tmp_path, 1)}
    assert least == {"a": [30], "b": [10]}  # at least one document each


@pytest.mark.parametrize("texts", [{}, {"a": []}])
def test_nothing_held_out_is_said(tmp_path: Path, write_text: Write, texts: dict[str, list[str]]) -> None:
    write_text(tmp_path, texts)
    with pytest.raises(DataError, match=r"no document was held out.*corpus\.validation"):
        held_out_text(tmp_path, None)


def test_examples_are_chosen_by_id_not_by_place(tmp_path: Path, write_lines: WriteLines) -> None:
    write_lines(tmp_path / "task" / "a.jsonl", EXAMPLES)
    write_lines(tmp_path / "task" / "b.jsonl", EXAMPLES[::-1])
    chosen = read_examples(tmp_path / "task" / "a.jsonl", ("id", "prompt"), 12)
    assert len(chosen) == 12
    assert all(set(row) == {"id", "prompt"} for row in chosen)
    numbers = [int(row["id"][1:]) for row in chosen]
    assert numbers == sorted(numbers) != list(range(12))
    assert read_examples(tmp_path / "task" / "b.jsonl", ("id", "prompt"), 12) == chosen[::-1]
    assert len(read_examples(tmp_path / "task" / "a.jsonl", ("id",))) == 40


@pytest.mark.parametrize("line", ["{", '{"id": "1"}', "[1]", '"text"', "null"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "examples" / "validation.jsonl"
    path.parent.mkdir()
    path.write_text('{"id": "0", "prompt": "p"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"validation\.jsonl:2: not an example with id, prompt"):
        read_examples(path, ("id", "prompt"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"validation\.jsonl: cannot be read"):
        read_examples(tmp_path / "examples" / "validation.jsonl", ("id",))
