"""The first sentence of a text, in English and Chinese; the baselines' numbers."""

from __future__ import annotations

import pytest

from pipeline.evaluate.baselines import lead_sentence, text_baselines
from pipeline.evaluate.text_metrics import text_metrics


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One ends here. Two does not", "One ends here."),
        ("Pi is 3.14 or so! Yes.", "Pi is 3.14 or so!"),
        ('He said "go." She went.', 'He said "go."'),
        ("床前明月光，疑是地上霜。舉頭望明月。", "床前明月光，疑是地上霜。"),
        ("他問：「去嗎？」她說去。", "他問：「去嗎？」"),
        ("No end at all", "No end at all"),
        ("A heading\n\nThe text. More.", "A heading"),
        ("wraps\nover lines. Two.", "wraps\nover lines."),
        ("  \n", ""),
        ("", ""),
    ],
)
def test_the_first_sentence(text: str, first: str) -> None:
    assert lead_sentence(text) == first


def test_numbers_are_those_of_the_texts() -> None:
    references, sources = ["the cat sat"], ["The cat sat. It slept all day long."]
    found = text_baselines(references, sources)
    assert found["lead_sentence"] == text_metrics(references, ["The cat sat."]).values
    assert found["copy_source"] == text_metrics(references, sources).values
    assert found["lead_sentence"]["rougeL"] == 1.0 > found["copy_source"]["rougeL"]
