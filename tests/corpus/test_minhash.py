"""Signatures are what their definition says, to the bit: on any machine, with any version of anything."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.minhash import Signer
from pipeline.settings.duplicates import NearDuplicates

BITS = (1 << 64) - 1
OFFSET, PRIME, BASE = 0xCBF29CE484222325, 0x100000001B3, 0x9E3779B97F4A7C15


def mixed(value: int) -> int:
    value = ((value ^ (value >> 33)) * 0xFF51AFD7ED558CCD) & BITS
    value = ((value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53) & BITS
    return value ^ (value >> 33)


def split_mix(seed: int, count: int) -> list[int]:
    drawn = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & BITS
        value = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & BITS
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & BITS
        drawn.append(value ^ (value >> 31))
    return drawn


def fnv(word: str) -> int:
    value = OFFSET
    for character in word:
        value = ((value ^ ord(character)) * PRIME) & BITS
    return mixed(value)


def words_of(text: str) -> list[str]:
    """Of texts in ASCII and Chinese."""
    return re.findall(r"[a-z0-9\x00-\x08\x0e-\x1b\x7f]+|[\u4e00-\u9fff]", text.lower())


def shingles(text: str, ngram: int) -> set[int]:
    words = [fnv(word) for word in words_of(text)]
    if not words:
        return set()
    found = set()
    for start in range(max(len(words) - ngram, 0) + 1):
        value = 0
        for word in words[start : start + ngram]:
            value = (value * BASE + word) & BITS
        found.add(mixed(value))
    return found


def signature(text: str, parameters: NearDuplicates) -> list[int] | None:
    count = parameters.bands * parameters.rows
    drawn = split_mix(parameters.seed, 2 * count)
    found = shingles(text, parameters.ngram)
    if not found:
        return None
    return [min(((drawn[i] | 1) * one + drawn[count + i]) & BITS for one in found) for i in range(count)]


TEXTS = st.text("aB c.,-\n_7\t中文字", max_size=60) | st.text(st.characters(max_codepoint=127), max_size=60)


@settings(deadline=None, max_examples=200)
@given(TEXTS, st.integers(1, 5), st.integers(0, 2**63 - 1))
def test_values_are_the_least_over_all_shingles(text: str, ngram: int, seed: int) -> None:
    parameters = NearDuplicates(ngram=ngram, bands=3, rows=2, seed=seed)
    values = Signer(parameters).values(text)
    assert (None if values is None else values.tolist()) == signature(text, parameters)


@settings(deadline=None, max_examples=50)
@given(TEXTS.filter(words_of))
def test_keys_and_sketch(text: str) -> None:
    parameters = NearDuplicates(ngram=2, bands=35, rows=2)
    values = signature(text, parameters)
    assert values is not None
    signer = Signer(parameters)
    rows = np.empty((signer.bands, signer.width), np.uint64)
    assert signer.sign(text, 7, rows)
    sketch = sum((mixed(value) & 1) << place for place, value in enumerate(values))
    for band, row in enumerate(rows.tolist()):
        key = (OFFSET + band) & BITS
        for value in values[2 * band : 2 * band + 2]:
            key = mixed(((key ^ value) * PRIME) & BITS)
        assert row == [key, 7, sketch & BITS, sketch >> 64]


def test_signatures_of_today_are_those_of_tomorrow() -> None:
    values = Signer(NearDuplicates()).values("The river rises in the hills above the town. 河水清清。")
    assert values is not None
    assert (int(values[0]), int(values[-1])) == (1046306841167326593, 963408233659264767)


@pytest.mark.parametrize("text", ["", " \n", "... --- !!", "。，！"])
def test_a_text_without_words_has_none(text: str) -> None:
    assert Signer(NearDuplicates()).values(text) is None


def test_values_agree_as_often_as_shingles_do() -> None:
    words = [f"word{n}" for n in range(400)]
    changed = [*words[:150], *(f"other{n}" for n in range(100)), *words[250:]]
    parameters = NearDuplicates(bands=64, rows=16)
    signer = Signer(parameters)
    first, second = (np.array(signer.values(" ".join(text))) for text in (words, changed))
    both = [shingles(" ".join(text), 5) for text in (words, changed)]
    jaccard = len(both[0] & both[1]) / len(both[0] | both[1])
    assert abs(float((first == second).mean()) - jaccard) < 0.05  # 1,024 values: .015 is one standard deviation
