"""Rows of all forms and columns, and what each task makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.recipe import FinetuneTask
from pipeline.train.example import Example, Form
from pipeline.train.example_files import examples, read_file
from pipeline.train.examples import prepare

ROWS = [{"a": "one text", "b": "its pair", "y": "3"}, {"a": "zwei, 二", "b": 'with "quotes"\nand lines', "y": "4.5"}]
PAIRS = Form("classify", "regression", {"text": "a", "text_pair": "b", "label": "y"})
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "And 2 + 2?"},
    {"role": "assistant", "content": "4"},
]


def write(folder: Path, form: str) -> str:
    import csv

    import pyarrow
    from datasets import Dataset, DatasetDict
    from pyarrow import parquet

    path = folder / f"rows.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif form == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif form == "datasets":
        DatasetDict({"test": Dataset.from_list(ROWS)}).save_to_disk(path)
        return f"{path}#test"
    else:
        with path.open("w", newline="", encoding="utf-8") as handle:
            table = csv.DictWriter(handle, ["a", "b", "y"], delimiter="\t" if form == "tsv" else ",")
            table.writeheader()
            table.writerows(ROWS)
    return str(path)


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "parquet", "datasets"])
def test_every_form_gives_the_same_examples(tmp_path: Path, form: str) -> None:
    found = list(examples("csv" if form == "tsv" else form, write(tmp_path, form), "here", PAIRS))
    assert [(one.text, one.pair, one.answer) for one in found] == [
        ("one text", "its pair", "3.0"),
        ("zwei, 二", 'with "quotes"\nand lines', "4.5"),
    ]
    assert len({one.id for one in found}) == 2


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text, words in (
        ("a,b,y\n1,2\n", "a.csv:2: 2 values under 3 columns"),
        ('a,b,y\n"1,2,3\n', "a.csv:2: not a row"),
        ("a,b\n1,2\n", "a.csv:2: key 'y' is missing; the line has 'a', 'b'"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=words.replace(".", r"\.")):
            list(read_file(path, PAIRS))
    path.write_bytes(b"a,b,y\n\xff\xfe,2,3\n")
    with pytest.raises(DataError, match=r"a\.csv:.*UTF-8"):
        list(read_file(path, PAIRS))
    bad = tmp_path / "a.parquet"
    bad.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a Parquet file"):
        list(read_file(bad, PAIRS))
    with pytest.raises(DataError, match=r"finetune\.a\.train_files: data set .*, split train: cannot be read"):
        list(examples("datasets", str(tmp_path), "finetune.a.train_files", PAIRS))


def test_chats_keep_their_turns() -> None:
    form = Form("sft")
    chat = form.parse({"messages": CHAT}, "x:1")
    assert chat.text == "system: Be short.\n\nuser: 1 + 1?\n\nassistant: 2\n\nuser: And 2 + 2?"
    assert (chat.answer, len(chat.messages)) == ("4", 5)
    assert form.parse(form.line(chat), "y:1") == chat
    assert form.parse({"messages": CHAT[1:3]}, "x:1") == Example("x:1", "1 + 1?", "2")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", "'messages' must be a list of objects"),
        (CHAT[:2], "must end with the assistant's answer"),
        ([{"role": "human", "content": "x"}], "message 1: role 'human' is none of system, user"),
        ([{"role": "user", "content": ""}], r"'messages\[1\].content' is empty"),
    ],
)
def test_bad_chats_are_named(messages: Any, words: str) -> None:
    with pytest.raises(DataError, match="file:7: .*" + words):
        Form("sft").parse({"messages": messages}, "file:7")


@pytest.mark.parametrize(
    ("problem", "label", "answer"),
    [
        ("multi_label", ["b", "a", "b"], '["a", "b"]'),
        ("multi_label", "b| a", '["a", "b"]'),
        ("multi_label", [], "[]"),
        ("regression", 3, "3.0"),
        ("single_label", 3, "3"),
        ("single_label", True, "True"),
    ],
)
def test_labels(problem: Any, label: Any, answer: str) -> None:
    form = Form("classify", problem)
    found = form.parse({"text": "t", "label": label}, "x")
    assert found.answer == answer
    assert form.parse(form.line(found), "x") == found


@pytest.mark.parametrize("label", ["many", None, True, float("nan"), [1]])
def test_what_is_no_number_is_named(label: Any) -> None:
    with pytest.raises(DataError, match="x:1: 'label' must be a finite number"):
        Form("classify", "regression").parse({"text": "t", "label": label}, "x:1")


def test_several_labels_are_checked_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    rows = [{"text": f"text {n}", "label": ["all"] + (["even"] if n % 2 == 0 else [])} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | {"label": ["even"]}]))
    task = FinetuneTask(task="classify", problem="multi_label", train_files=str(path))
    found = prepare(task, "mine", tmp_path, tmp_path / "examples", ())
    assert found.labels == ("all", "even")
    assert found.skipped == {"contradictory": 2}
    assert len(found.train) + len(found.validation) == 39
    held_out = tmp_path / "v.jsonl"
    held_out.write_text('{"text": "new", "label": ["all", "odd"]}\n')
    task = task.model_copy(update={"validation_files": str(held_out)})
    with pytest.raises(DataError, match="label 'odd' is held out, but no training example has it"):
        prepare(task, "mine", tmp_path, tmp_path / "other", ())


def test_two_texts_are_one_question(tmp_path: Path) -> None:
    """The same first text with another second one is no duplicate, and no leak."""
    path = tmp_path / "p.jsonl"
    rows = [{"text": "same", "text_pair": f"other {n}", "label": "ab"[n % 2]} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = prepare(FinetuneTask(task="classify", train_files=str(path)), "mine", tmp_path, tmp_path / "examples", ())
    assert (len(found.train), len(found.validation), found.skipped) == (18, 2, {})


def test_groups_are_kept_for_the_evaluation() -> None:
    form = Form("classify", columns={"group": "country"})
    found = form.parse({"text": "t", "label": "a", "country": 7}, "x")
    assert found.group == "7"
    assert form.line(found) == {"id": "x", "text": "t", "label": "a", "group": "7"}
