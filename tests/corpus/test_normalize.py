from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.normalize import Form, normalize

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates and control characters too


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("a\r\nb\rc\n", "a\nb\nc\n"),
        ("a\u2028b\u2029c\x85d", "a\nb\nc\nd"),
        ("nul\x00 bell\x07 tab\t del\x7f", "nul bell tab\t del"),
        ("\ufeffé\x9f", "é"),
        ("e\u0301", "é"),
        ("中\x00文\r\n", "中文\n"),
        ("\ud83d\ude00", "😀"),
        ("a\ud83d", "a\ufffd"),
        ("", ""),
    ],
)
def test_spellings(given: str, wanted: str) -> None:
    assert normalize(given) == wanted


def test_forms() -> None:
    assert normalize("ﬁ ①", "NFC") == "ﬁ ①"
    assert normalize("ﬁ ①", "NFKC") == "fi 1"
    assert normalize("e\u0301\r\n", "none") == "e\u0301\n"


@given(ANY_TEXT, st.sampled_from(["NFC", "NFKC", "none"]))
def test_idempotent_encodable_and_clean(text: str, form: Form) -> None:
    once = normalize(text, form)
    assert normalize(once, form) == once
    once.encode("utf-8")
    assert not [c for c in once if unicodedata.category(c) == "Cc" and c not in "\t\n"]


@given(st.text(st.characters(max_codepoint=127)))
def test_the_fast_path_for_ascii_does_the_same(text: str) -> None:
    assert normalize(text) == normalize(text + "é").removesuffix("é")
