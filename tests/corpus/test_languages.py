"""Identification offline, the allow list, and documents whose source states the language."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpora import PROSE, Shard, prose, write_jsonl

from pipeline.corpus.document import Document, Dropped
from pipeline.corpus.languages import identify, known_codes, read_languages
from pipeline.corpus.rules import Judge
from pipeline.errors import RecipeError
from pipeline.recipe import Corpus, Rules

TEXTS = {
    "en": PROSE * 2,
    "de": "Der Fluss entspringt in den Hügeln oberhalb der Stadt und fließt vierzig Meilen weit bis zum Meer. " * 3,
    "fr": "La rivière prend sa source dans les collines au-dessus de la ville et coule jusqu'à la mer. " * 3,
    "zh": "我们今天在北京的大学里学习中文，老师给我们讲了很多有意思的故事。他说，这本书是去年写的。" * 6,
}


def judged(text: str, languages: dict[str, float | None], stated: str | None = None) -> Document | Dropped:
    return Judge(Rules(min_words=None), languages)(Document(text, "id", "source", stated))


@pytest.mark.parametrize("code", sorted(TEXTS))
def test_it_is_identified_and_written_beside_the_document(code: str) -> None:
    found = judged(TEXTS[code], {code: None})
    assert isinstance(found, Document)
    assert found.language == code
    assert 0.65 < float(found.metadata["language_score"]) <= 1


def test_others_are_dropped_with_what_they_were() -> None:
    found = judged(TEXTS["fr"], {"en": None, "zh": None})
    assert isinstance(found, Dropped)
    assert (found.rule, found.threshold) == ("language", "en zh")
    assert str(found.value).startswith("fr 0.")


def test_a_score_too_low_is_dropped_against_its_threshold() -> None:
    mixed = "".join(f"{i * 37} {i * 91} qzx\n" for i in range(100))
    code, score = identify(mixed)
    assert score < 0.65
    found = judged(mixed, {code: None})
    assert isinstance(found, Dropped)
    assert found.threshold == 0.65
    assert isinstance(judged(mixed, {code: 0.0}), Document)


def test_a_stated_language_is_not_questioned() -> None:
    found = judged(TEXTS["fr"], {"en": None}, stated="code")
    assert isinstance(found, Document)
    assert (found.language, found.metadata) == ("code", {})


def test_a_list_or_scores() -> None:
    assert Corpus(languages=["en", "zh"]).languages == {"en": None, "zh": None}  # type: ignore[arg-type]
    corpus = Corpus(languages={"en": 0.5})
    assert Corpus(**corpus.model_dump()).languages == {"en": 0.5}


def test_unknown_codes_are_refused() -> None:
    assert len(known_codes()) == 176
    with pytest.raises(RecipeError, match=r"corpus\.languages: 'qq'"):
        judged("a", {"qq": None})


def test_shipped_languages() -> None:
    languages = read_languages()
    assert languages["zh"] is languages["cmn"]
    assert languages["zh"].least_score == 0.692
    assert len(languages["zh"].stop_words) == 22
    assert languages["en"].stop_words == ("the", "be", "to", "of", "and", "that", "have", "with")


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=3000))
def test_any_text_has_a_language_and_a_score(text: str) -> None:
    code, score = identify(text)
    assert code == "und" or code in known_codes()
    assert 0 <= score <= 1


def test_it_works_without_a_network_and_writes_nothing(tmp_path: Path) -> None:
    program = """
import socket, sys
def refuse(*args, **kwargs): raise OSError("no network here")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from pipeline.corpus.chinese import chinese_words
from pipeline.corpus.languages import identify
print(identify("The river rises in the hills above the town.")[0], len(chinese_words("我们今天学习")))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.split() == ["en", "3"]
    assert done.stderr == ""
    assert [*tmp_path.iterdir()] == []


def test_the_stage_counts_drops_by_language_and_by_set(tmp_path: Path, shard: Shard) -> None:
    texts = [
        *(prose(number, repeats=1) for number in range(8)),
        TEXTS["fr"],
        TEXTS["zh"],
        "The same line stands here again, as it did before.\n" * 40,
    ]
    path = write_jsonl(tmp_path / "in.jsonl", texts)
    source: dict[str, Any] = {"name": "web", "type": "jsonl", "path": str(path)}
    manifest = shard([source], languages=["en"], rules={"sets": ["gopher_repetition"]}, validation=0.0)
    dropped = manifest.counts["dropped"]
    assert dropped["language"]["documents"] == 2
    repeated = [rule for rule in dropped if rule.startswith("gopher_repetition.")]
    assert sum(dropped[rule]["documents"] for rule in repeated) == 1
    assert manifest.counts["kept"]["documents"] == 8
    assert json.dumps(manifest.counts)
