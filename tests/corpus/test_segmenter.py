"""The compiled segmenter gives the words that jieba gives."""

from __future__ import annotations

import random
from typing import Any

import jieba
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.chinese import chinese_words

HAN = st.characters(min_codepoint=0x4E00, max_codepoint=0x9FD5)
TEXT = (
    "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少",
    "他来到了网易杭研大厦小明硕士毕业于中国科学院计算所后在日本京都大学深造",
    "乒乓球拍卖完了结婚的和尚未结婚的工信处女干事每月经过下属科室都要亲口交代",
    "龘靐齉爩鱻麤灪龖厵滟爨癵籱",
)


@pytest.fixture(scope="module")
def reference() -> Any:
    segmenter = jieba.Tokenizer()
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter


def words(text: str) -> list[str]:
    return [text[start:end] for start, end in chinese_words(text).tolist()]


@pytest.mark.parametrize("text", TEXT)
def test_sentences(reference: Any, text: str) -> None:
    assert words(text) == reference.lcut(text)


def test_words_of_the_dictionary_in_any_order(reference: Any) -> None:
    """A hundred thousand words, cut short and run together at random: every way to go wrong is met."""
    random_ = random.Random(1)
    known = sorted(
        word for word, count in reference.FREQ.items() if count and all("一" <= mark <= "龥" for mark in word)
    )
    for _ in range(500):
        text = "".join(
            word[random_.randrange(2) :] if random_.random() < 0.2 else word for word in random_.sample(known, 200)
        )
        assert words(text) == reference.lcut(text)


@settings(deadline=None, max_examples=200)
@given(st.text(HAN, max_size=80))
def test_of_any_characters(reference: Any, text: str) -> None:
    assert words(text) == reference.lcut(text)


def test_what_jieba_does_not_know_is_a_word_each() -> None:
    assert words("㐀鿿\U00020000大学") == ["㐀", "鿿", "\U00020000", "大学"]
    assert words("我在 abc，大学") == ["我", "在", "abc", "，", "大学"]


def test_a_long_run_takes_linear_time() -> None:
    assert sum(map(len, words("学大" * 500_000))) == 1_000_000
    assert sum(map(len, words("龘" * 300_000))) == 300_000
