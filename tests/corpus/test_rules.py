from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_corpora import PROSE

from pipeline.corpus.document import Document, Dropped
from pipeline.corpus.rules import PLAIN, Judge, build_rules
from pipeline.recipe import Rules
from pipeline.settings.rules import SETS

OFF = dict.fromkeys(PLAIN)
CHINESE = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。" * 10


def judged(text: str, **rules: Any) -> Document | Dropped:
    return Judge(Rules(**OFF | rules))(Document(text, "id", "source"))


@pytest.mark.parametrize(
    ("rules", "passes", "breaks", "value"),
    [
        ({"min_characters": 5}, "12345", "1234", 4),
        ({"max_characters": 5}, "12345", "123456", 6),
        ({"min_words": 3}, "a b c", "a b", 2),
        ({"max_words": 2}, "a b", "a b c", 3),
        ({"mean_word_length": (2, 4)}, "ab abcd", "a b", 1.0),
        ({"mean_word_length": (2, 4)}, "ab abcd", "abcde", 5.0),
        ({"max_symbol_to_word_ratio": 0.5}, "# a", "# # a", 2 / 3),
        ({"max_symbol_to_word_ratio": 0.5}, "a b...", "a... b… c", 2 / 3),
        ({"min_alphabetic_words": 0.5}, "a 1", "a 1 2", 1 / 3),
        ({"max_duplicate_lines": 0.5}, "a\na\n\n\n", "a\na\n a\n", 2 / 3),
        ({"max_line_length": 3}, "abc\nabc", "abc\nabcd", 4),
        ({"min_alphanumeric": 0.5}, "a_", "a__", 1 / 3),
        ({"min_alphanumeric": 0.5}, "中。", "中。。", 1 / 3),
        ({"max_replacement_characters": 0.5}, "a\ufffd", "a\ufffd\ufffd", 2 / 3),
        ({}, "a", "", 0),
        ({}, "a", " \n", 0),
    ],
)
def test_each_rule_on_both_sides_of_its_threshold(
    rules: dict[str, Any], passes: str, breaks: str, value: float
) -> None:
    assert isinstance(judged(passes, **rules), Document)
    dropped = judged(breaks, **rules)
    assert isinstance(dropped, Dropped)
    assert dropped.rule == next(iter(rules), "empty")
    assert dropped.value == pytest.approx(value, abs=1e-6)
    assert dropped.threshold is not None
    assert dropped.text == breaks
    assert dropped.bytes == len(breaks.encode())


def test_every_rule_of_the_recipe_is_built() -> None:
    on = dict.fromkeys(PLAIN, 1) | {"mean_word_length": (1, 2)}
    assert {rule.name for rule in build_rules(Rules(**on))} == {*PLAIN, "empty"}
    assert {*Rules.model_fields} == {*PLAIN, *SETS, "language_files"}


def test_defaults_keep_prose_and_chinese() -> None:
    for text in (PROSE * 3, CHINESE):
        assert isinstance(Judge(Rules())(Document(text, "id", "source")), Document)


def test_chinese_characters_are_its_words() -> None:
    dropped = judged("春眠不觉晓 hello me", min_words=8)
    assert isinstance(dropped, Dropped)
    assert dropped.value == 7
    assert isinstance(judged(CHINESE, mean_word_length=(1, 5)), Document)  # as published for Chinese


@given(st.text())
def test_no_text_breaks_the_rules_themselves(text: str) -> None:
    everything = dict.fromkeys(PLAIN, 0.5) | {"mean_word_length": (3, 10)}
    whole = {"min_characters": 0, "max_characters": 9, "min_words": 0, "max_words": 9, "max_line_length": 9}
    Judge(Rules(**everything | whole))(Document(text, "id", "source"))
