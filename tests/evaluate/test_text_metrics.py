"""Text metrics: equal to the libraries' own, and Chinese by hand."""

from __future__ import annotations

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from pipeline.evaluate.text_metrics import Words, bleu_tokenizer, distinct, text_metrics

REFERENCES = ["Return the sum of two numbers.", "Open a file and read its lines, one by one.", "Close it."]
HYPOTHESES = ["Return the sum of numbers.", "Read the lines of a file_name.", ""]


def test_english_equals_the_libraries_own() -> None:
    found = text_metrics(REFERENCES, HYPOTHESES)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name in ("rouge1", "rouge2", "rougeL"):
        own = [scorer.score(r, h)[name].fmeasure for r, h in zip(REFERENCES, HYPOTHESES, strict=True)]
        assert found.values[name] == pytest.approx(sum(own) / 3)
    assert found.values["bleu"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert found.values["chrf"] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert found.bleu_tokenizer == "13a"


def test_rouge_l_of_chinese_by_hand() -> None:
    # Longest common subsequence of 我喜歡讀書 and 我愛讀書: 我讀書, 3 characters; precision 3/4, recall 3/5, F1 2/3.
    found = text_metrics(["我喜歡讀書。"], ["我愛讀書"])
    assert found.values["rougeL"] == pytest.approx(2 / 3)
    assert found.values["rouge2"] == pytest.approx(2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4))  # 讀書 alone is common
    assert found.values["mean_length"] == 4
    assert found.values["reference_length"] == 5


def test_bleu_of_chinese_uses_sacrebleus_chinese_tokenizer() -> None:
    references, hypotheses = ["我喜歡讀書和寫字。"], ["我喜歡讀書和畫畫。"]
    found = text_metrics(references, hypotheses)
    assert found.bleu_tokenizer == "zh"
    assert found.values["bleu"] == sacrebleu.corpus_bleu(hypotheses, [references], tokenize="zh").score
    assert found.values["bleu"] > 40  # 13a takes the line as one word, and finds nothing in common


@pytest.mark.parametrize(
    ("references", "expected"),
    [(["all English"], "13a"), (["中文"], "zh"), (["use numpy 讀取"], "zh"), ([""], "13a"), (["a b c d e 文"], "13a")],
)
def test_choice_of_bleu_tokenizer(references: list[str], expected: str) -> None:
    assert bleu_tokenizer(references) == expected


def test_words() -> None:
    assert Words().tokenize("Foo_bar, x2=3! naïve") == ["foo", "bar", "x2", "3", "naïve"]
    assert Words().tokenize("用Python寫。カナ 한국어") == ["用", "python", "寫", "カ", "ナ", "한국어"]


def test_distinct_by_hand() -> None:
    texts = [["a", "b", "a", "b"], ["a", "b"]]
    assert distinct(texts, 1) == 2 / 6
    assert distinct(texts, 2) == 2 / 4  # ab, ba, ab; ab
    assert distinct([["a"]], 2) == 0.0


def test_perfect_and_empty_answers() -> None:
    perfect = text_metrics(REFERENCES, REFERENCES).values
    assert (perfect["rougeL"], perfect["chrf"]) == (1.0, 100.0)
    assert perfect["bleu"] == pytest.approx(100)
    nothing = text_metrics(REFERENCES, ["", "", ""]).values
    assert not any(value for name, value in nothing.items() if name != "reference_length")


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        text_metrics([], [])
    with pytest.raises(ValueError, match="need as many"):
        text_metrics(["a"], [])
