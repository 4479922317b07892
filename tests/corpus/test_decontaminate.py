"""Overlap with evaluation sets: what counts as the same words, what goes, and what is told of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_corpora import Shard, prose, tree, write_jsonl

from pipeline.config import load_recipe
from pipeline.corpus.characters import character_table, code_points
from pipeline.corpus.decontamination.grams import hash_grams, hash_words, small_letters
from pipeline.corpus.decontamination.items import read_items
from pipeline.corpus.text_tars import read_text_tar, text_tars
from pipeline.errors import DataError, RecipeError
from pipeline.settings.decontaminate import EvaluationSet
from pipeline.stage_state import status

QUESTION = "Which of the three rivers that cross the old province flows north before it reaches the sea?"
CHINESE = "下列关于长江流域气候特征的说法正确的是哪一项请说明理由"


def words(text: str) -> list[str]:
    """The words that are compared, in small letters."""
    hashes, spans = hash_words(code_points(text), character_table(), small_letters())
    assert len(hashes) == len(spans)
    return ["".join(c for c in text[start:end].lower() if c.isalnum()) for start, end in spans.tolist()]


def grams(text: str, length: int = 3) -> set[int]:
    return set(hash_grams(hash_words(code_points(text), character_table(), small_letters())[0], length).tolist())


def test_words() -> None:
    assert words("Don't PANIC -- it's 3.14!") == ["dont", "panic", "its", "314"]
    assert words("长江，是river吗") == ["长", "江", "是", "river", "吗"]
    assert words("") == words("… — !") == []


def test_case_punctuation_and_space_make_no_difference_and_order_does() -> None:
    assert grams("The quick, brown fox.") == grams("the\n  QUICK brown “fox”")
    assert len(grams("a b c d")) == 2
    assert grams("a b c") != grams("c b a")
    assert grams("ab c d") != grams("a bc d")
    assert grams("a b") == set()


@given(st.lists(st.text(st.sampled_from("abcXYZ长江."), max_size=4), max_size=30), st.integers(1, 6))
def test_rolling_hashes_are_those_of_each_window(pieces: list[str], length: int) -> None:
    hashes, _ = hash_words(code_points(" ".join(pieces)), character_table(), small_letters())
    rolled = hash_grams(hashes, length)
    assert len(rolled) == max(0, len(hashes) - length + 1)
    for place, gram in enumerate(rolled):
        assert gram == hash_grams(np.ascontiguousarray(hashes[place : place + length]), length)[0]


def evaluation(path: Path) -> dict[str, Any]:
    rows = [
        {"q": QUESTION, "choices": ["the Aare", "none"]},
        {"q": "too short", "choices": []},
        {"q": CHINESE, "choices": []},
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {"name": "quiz", "path": str(path), "columns": ["q", "choices"]}


def web(path: Path) -> dict[str, Any]:
    texts = [
        prose(1),
        prose(2) + "He asked: “" + QUESTION.upper().replace(" ", "\n") + "” And went.",
        prose(3) + " ".join(QUESTION.split()[:12]),  # twelve words are not thirteen
        prose(4) + "请看题：" + CHINESE + "。" + "河水在春天上涨，" * 20,
        prose(5),
    ]
    return {"name": "web", "type": "jsonl", "path": str(write_jsonl(path, texts)), "id_field": "id"}


def test_documents_go_and_the_report_says_why(tmp_path: Path, shard: Shard) -> None:
    sets = [evaluation(tmp_path / "quiz.jsonl")]
    made = shard([web(tmp_path / "in.jsonl")], validation=0, decontaminate={"sets": sets})
    text = tmp_path / "run" / "text"
    assert [one.id for tar in text_tars(text, "train") for one in read_text_tar(tar)] == ["doc0", "doc2", "doc4"]
    counts = {"items": 3, "too_short": 1, "items_hit": 2, "documents": 2}
    assert made.counts["contaminated"] == {"quiz": counts}
    assert made.counts["sources"]["web"]["contaminated"] == {"quiz": 2}
    report = json.loads((text / "contamination.json").read_text())
    assert report == {"quiz": counts | {"documents_by_item": {"quiz.jsonl:1": 1, "quiz.jsonl:3": 1}}}
    assert "contamination.json" in {output.path for output in made.outputs}
    lines = gzip.decompress((text / "dropped" / "web-00000.jsonl.gz").read_bytes()).splitlines()
    (english, chinese) = map(json.loads, lines)
    assert (english["rule"], english["value"], english["threshold"]) == (
        "decontaminate",
        "quiz/quiz.jsonl:1 1.000",
        0.0,
    )
    assert chinese["contaminated"] == ["quiz/quiz.jsonl:3"]


def test_passages_alone_can_be_cut_out(tmp_path: Path, shard: Shard) -> None:
    settings = {"sets": [evaluation(tmp_path / "quiz.jsonl")], "remove": "passage"}
    made = shard([web(tmp_path / "in.jsonl")], validation=0, decontaminate=settings)
    documents = [one for tar in text_tars(tmp_path / "run" / "text", "train") for one in read_text_tar(tar)]
    assert len(documents) == 5
    assert documents[1].text == prose(2) + "He asked: “?” And went."
    assert CHINESE not in documents[3].text and documents[3].text.startswith(prose(4) + "请看题：")
    assert made.counts["contaminated"]["quiz"]["documents"] == 2
    assert not made.counts["dropped"]


def test_a_share_of_an_item_can_be_asked_for(tmp_path: Path, shard: Shard) -> None:
    sets = [evaluation(tmp_path / "quiz.jsonl")]
    half = prose(1) + " ".join(QUESTION.split()[:14])  # two of its five n-grams
    source = {"name": "web", "type": "jsonl", "path": str(write_jsonl(tmp_path / "in.jsonl", [half, prose(2)]))}
    for share, kept in ((0.4, 1), (0.41, 2)):
        made = shard([source], tmp_path / str(share), decontaminate={"sets": sets, "min_share": share})
        assert made.counts["kept"]["documents"] == kept


def test_the_output_does_not_depend_on_workers(tmp_path: Path, shard: Shard) -> None:
    settings = {"sets": [evaluation(tmp_path / "quiz.jsonl")]}
    for workers in (1, 2):
        shard(
            [web(tmp_path / "in.jsonl")],
            tmp_path / str(workers),
            workers=workers,
            split_bytes=900,
            decontaminate=settings,
        )
    assert tree(tmp_path / "1" / "text") == tree(tmp_path / "2" / "text")


def test_kinds_of_files(tmp_path: Path) -> None:
    def texts(name: str, content: bytes, **settings: Any) -> list[tuple[str, tuple[str, ...]]]:
        (tmp_path / name).write_bytes(content)
        one = EvaluationSet(name="a", path=str(tmp_path / name), **settings)
        return [(item.id, item.texts) for item in read_items(one)]

    assert texts("a.txt", b"one\n\ntwo\n") == [("a.txt:1", ("one",)), ("a.txt:3", ("two",))]
    assert texts("a.csv", b'\xef\xbb\xbfq,a\n"x, y",z\n', columns=("q", "a")) == [("a.csv:2", ("x, y", "z"))]
    assert texts("a.tsv", b"q\ta\nx\ty\n", columns=("a",)) == [("a.tsv:2", ("y",))]
    nested = b'{"a": {"text": ["x", "y"], "n": 1}}\n'
    assert texts("a.jsonl.gz", gzip.compress(nested), columns=("a.text",)) == [("a.jsonl.gz:1", ("x", "y"))]
    assert texts("b", b"x\n", type="text") == [("b:1", ("x",))]
    with pytest.raises(DataError, match=r"b: state its `type`"):
        texts("b", b"x\n")
    with pytest.raises(DataError, match=r"a\.jsonl:1: no 'text' in it, there are: q; set `columns`"):
        texts("a.jsonl", b'{"q": "x"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not valid JSON"):
        texts("a.jsonl", b'{"text": "x"}\n{oops\n')


def test_a_set_of_datasets(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ["one", "two"])
    one = EvaluationSet(name="a", type="huggingface", path="json", data_files=str(path), split="train")
    assert [item.texts for item in read_items(one)] == [("one",), ("two",)]


def test_a_set_in_which_nothing_can_be_looked_for_is_an_error(tmp_path: Path, shard: Shard) -> None:
    (tmp_path / "quiz.txt").write_text("too short\n")
    with pytest.raises(DataError, match=r"set quiz: none of its 1 items has 13 words"):
        shard([web(tmp_path / "in.jsonl")], decontaminate={"sets": [{"name": "quiz", "path": f"{tmp_path}/quiz.txt"}]})


@pytest.mark.parametrize("edited", ["quiz.jsonl", "words.txt", "language.yaml"])
def test_named_files_are_in_the_key_by_their_content(tmp_path: Path, edited: str) -> None:
    web(tmp_path / "in.jsonl")
    evaluation(tmp_path / "quiz.jsonl")
    (tmp_path / "words.txt").write_text("gambling\n")
    (tmp_path / "language.yaml").write_text("codes: [aa]\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"""
workdir: {tmp_path}/run
corpus:
  sources: [{{name: web, type: jsonl, path: {tmp_path}/in.jsonl}}]
  rules: {{lists: {{bad_words: {tmp_path}/words.txt}}, language_files: [{tmp_path}/language.yaml]}}
  decontaminate: {{sets: [{{name: quiz, path: {tmp_path}/quiz.jsonl, columns: [q]}}]}}
""")
    before = status(load_recipe(str(recipe)), "shard").work
    path = tmp_path / edited
    path.touch()
    assert status(load_recipe(str(recipe)), "shard").work.key == before.key
    path.write_text(path.read_text().replace("a", "b"))
    after = status(load_recipe(str(recipe)), "shard").work
    assert after.key != before.key
    assert len([name for name in after.inputs if after.inputs[name] != before.inputs[name]]) == 1
    path.unlink()
    with pytest.raises((DataError, RecipeError), match=edited):
        status(load_recipe(str(recipe)), "shard")
