"""Compiled signals against their slow forms, on real and on random text, English and Chinese."""

from __future__ import annotations

import pydoc_data.topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_signals import layout, quality, repetition

from pipeline.corpus.characters import character_table, code_points
from pipeline.corpus.chinese import chinese_words
from pipeline.corpus.languages import read_languages
from pipeline.corpus.normalize import normalize
from pipeline.corpus.signals import EDIT_SIGNALS, SIGNALS, Signals
from pipeline.corpus.words import split_words

ENGLISH, CHINESE = (read_languages()[code] for code in ("en", "zh"))
TOPICS = list(map(normalize, pydoc_data.topics.topics.values()))
SPRING = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。\n"
MODERN = "我们今天在北京的大学里学习中文。他说，这本书是去年写的，也是最好的一本！\n\n"
# Few different words, so that repetition is met; every mark that a signal looks for.
PIECES = st.sampled_from(
    ["the", "of", "red", "fox", "1", "#", "...", "…", "•", "- a", "Stop.", "no!", "\n", "\n\n", " "]
)
ODD = st.lists(PIECES | st.text(max_size=6), max_size=60).map(" ".join).map(normalize)
HAN = st.lists(st.sampled_from(["学习", "的", "在", "。", "，", "\n", "大学", "a1", " "]), max_size=60).map("".join)


def compare(text: str, code: str) -> None:
    """All published signals of a text; the reference takes the words that the splitter found."""
    signals = Signals(text, read_languages()[code])
    words = [text[start:end] for start, end in signals.spans.tolist()]
    expected = quality(text, words, signals.language.stop_words) | layout(text, words) | repetition(text, words)
    found = signals.every()
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "text", [TOPICS[0], *TOPICS[5:60:6], "", " \n", "a", "\n\n\n", "a\n\na\n\na", "....", "a a a a"]
)
def test_they_are_what_they_are_called(text: str) -> None:
    compare(text[:20_000], "en")


@pytest.mark.parametrize("text", [SPRING * 3, MODERN, MODERN * 4 + SPRING, "", "abc 中文"])
def test_in_chinese_too(text: str) -> None:
    compare(text, "zh")


@settings(deadline=None, max_examples=150)
@given(ODD)
def test_of_any_text(text: str) -> None:
    compare(text, "en")


@settings(deadline=None, max_examples=50)
@given(HAN)
def test_of_any_chinese_text(text: str) -> None:
    compare(text, "zh")


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=200))
def test_words_are_in_order_and_leave_only_white_space_out(text: str) -> None:
    for spans in (split_words(code_points(text), character_table()), chinese_words(text)):
        rest = []
        place = 0
        for start, end in spans.tolist():
            assert place <= start < end
            rest.append(text[place:start])
            place = end
        rest.append(text[place:])
        assert all(not part or part.isspace() for part in rest)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, world!", "Hello|,|world|!"),
        ("(see [1]).", "(|see|[|1|]|)|."),
        ("don't we're I'll it's he'd I'm", "do|n't|we|'re|I|'ll|it|'s|he|'d|I|'m"),
        ("well-known and/or a,b", "well|-|known|and|/|or|a|,|b"),
        ("e.g. J. Smith of the U.S. said so. End.Next", "e.g.|J.|Smith|of|the|U.S.|said|so|.|End|.|Next"),
        ("wait... what…no", "wait|...|what|…|no"),
        ("5% of $3 is 3+4 at 1.5", "5|%|of|$|3|is|3|+|4|at|1.5"),
        ("see https://a.b/c?d=e, www.x.org.", "see|https://a.b/c?d=e|,|www.x.org|."),
        ("NATO. snake_case _x_", "NATO|.|snake_case|_|x|_"),
        (" \u3000 ", ""),
    ],
)
def test_words_are_split_as_the_thresholds_were_set_with(text: str, words: str) -> None:
    found = split_words(code_points(text), character_table()).tolist()
    assert "|".join(text[start:end] for start, end in found) == words


def test_chinese_is_split_into_words() -> None:
    words = [MODERN[start:end] for start, end in chinese_words(MODERN).tolist()]
    assert words[:4] == ["我们", "今天", "在", "北京"]


def test_every_signal_has_a_name_and_unknown_names_are_errors() -> None:
    found = Signals(MODERN, CHINESE).every()
    assert {*found} == {*SIGNALS} - {*EDIT_SIGNALS}
    assert len(SIGNALS) == len({*SIGNALS})
    with pytest.raises(KeyError):
        Signals("a", ENGLISH)["word"]


def test_characters_without_spaces_weigh_three() -> None:
    assert Signals("中文 a")["weighed_characters"] == 8


def test_a_long_line_and_a_long_word() -> None:
    assert Signals("x" * 3_000_000, ENGLISH)["words"] == 1
    repeated = Signals("red fox " * 200_000, ENGLISH)
    assert repeated["duplicate_10_grams"] == pytest.approx(0.75, abs=0.01)
    assert repeated["top_2_gram"] == pytest.approx(0.875, abs=0.01)
