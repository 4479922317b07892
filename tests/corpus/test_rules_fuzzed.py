"""Any text against every rule: no exception, finite values, and each drop names a rule that exists."""

from __future__ import annotations

import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.corpus.document import Document, Dropped
from pipeline.corpus.normalize import normalize
from pipeline.corpus.rules import Judge, rule_names
from pipeline.recipe import Rules
from pipeline.settings.rules import SETS

PARTS = st.sampled_from(
    [
        *["the ", "of ", "and ", "中文", "学习。", "\u3000", "\u0e01", "\u202e", "e\u0301", "\ufffd", "𠀀", "🙂"],
        *["#", "...", "…", "- ", "•", "{", "lorem ipsum", "javascript", "[1]", "3 likes", "SIGN IN", "auto-generated"],
        *["e.g.", "J. ", ".", "!", "\n", "\n\n", "\t", "a" * 1001, "http://a.b/c"],
    ]
)
TEXTS = (st.lists(PARTS | st.text(max_size=8), max_size=60).map("".join) | st.text(max_size=300)).map(normalize)
NAMES = frozenset(rule_names())
EVERY = [name for name in SETS if name != "lists"]
JUDGES = [
    Judge(Rules.model_validate({"sets": [name], "min_characters": None, "min_words": None})) for name in EVERY
] + [
    Judge(Rules(mean_word_length=(3, 10), max_symbol_to_word_ratio=0.1, min_alphabetic_words=0.8, max_line_length=900)),
    Judge(Rules.model_validate({"sets": EVERY}), {"en": None, "zh": None}, write_signals=True),
]


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.sampled_from(["en", "zh", "xx", None]))
@example("", None)
@example("\n" * 50, "zh")
@example("\x00", "en")
def test_any_text(text: str, language: str | None) -> None:
    for judge in JUDGES:
        judged = judge(Document(text, "id", "source", language))
        if isinstance(judged, Dropped):
            assert judged.rule in NAMES
            assert not isinstance(judged.value, float) or math.isfinite(judged.value)
        else:
            assert judged.text and len(judged.text) <= len(text)
    measured = JUDGES[0].measure(Document(text, "id", "source", language))
    assert all(math.isfinite(value) and value >= 0 for value in measured.values.values())
