"""Text metrics: equal to the libraries' own, and Chinese by hand."""

from __future__ import annotations

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from pipeline.evaluate.text_metrics import Words, bleu_tokenizer, distinct, repetition, text_metrics

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
    assert found.values["ter"] == sacrebleu.corpus_ter(HYPOTHESES, [REFERENCES]).score
    assert found.bleu_tokenizer == "13a"
    assert found.intervals == {}


def test_intervals_are_seeded_and_like_sacrebleus_own() -> None:
    references, hypotheses = REFERENCES[:2] * 5, HYPOTHESES[:2] * 5
    found = text_metrics(references, hypotheses, intervals=True)
    own = BLEU().corpus_score(hypotheses, [references], n_bootstrap=1000)
    assert found.intervals["bleu"] == pytest.approx([own._mean - own._ci, own._mean + own._ci], abs=5)
    assert set(found.intervals) == {"rouge1", "rouge2", "rougeL", "bleu", "chrf", "ter"}
    low, high = found.intervals["rougeL"]
    assert 0 <= low < found.values["rougeL"] < high <= 1
    assert text_metrics(references, hypotheses, intervals=True) == found
    assert text_metrics(REFERENCES, ["", "", ""], intervals=True).intervals["bleu"] == [0, 0]
    assert text_metrics(REFERENCES[:1], HYPOTHESES[:1], intervals=True).intervals == {}  # of one text: unknown


def test_rouge_of_chinese_by_hand() -> None:
    # Characters of 我愛讀書 that 我喜歡讀書 has: 3 of 4, and of its 5. Pairs: 讀書 alone, 1 of 3, and of 4. Longest
    # common subsequence: 我讀書, 3 characters; precision 3/4, recall 3/5, F1 2/3.
    found = text_metrics(["我喜歡讀書。"], ["我愛讀書"])
    assert found.values["rougeL"] == found.values["rouge1"] == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))
    assert found.values["rouge2"] == pytest.approx(2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4))
    assert found.values["mean_length"] == 4
    assert found.values["reference_length"] == 5
    # 書讀 and 讀書 share all characters, no pair, and in order only one of two.
    found = text_metrics(["讀書"], ["書讀"])
    assert [found.values[name] for name in ("rouge1", "rouge2", "rougeL")] == [1, 0, 0.5]


def test_ter_and_chrf_of_chinese_by_hand() -> None:
    # 我愛讀書 to 我喜歡讀書。: 愛 becomes 喜, 歡 and 。 are put in: 3 edits for 6 characters.
    assert text_metrics(["我喜歡讀書。"], ["我愛讀書"]).values["ter"] == 50
    # 讀書 for 讀字: one of two characters agrees, no pair: chrF's precision and recall are (1/2 + 0) / 2 over the
    # orders that both have, and so is their F-score.
    assert text_metrics(["讀書"], ["讀字"]).values["chrf"] == pytest.approx(25)
    # 我愛讀書 for 我喜歡讀書。, n-grams of characters, the full stop among them:
    #   n = 1: 我 愛 讀 書 (4), of the reference 6, common 我 讀 書 (3);  n = 2: 3, 5, common 讀書 (1);
    #   n = 3: 2, 4, none;  n = 4: 1, 3, none;  n = 5 and 6: the hypothesis has none, so they do not count.
    precision, recall = (3 / 4 + 1 / 3 + 0 + 0) / 4, (3 / 6 + 1 / 5 + 0 + 0) / 4
    by_hand = 100 * 5 * precision * recall / (4 * precision + recall)  # F2: recall counts twice as much
    assert by_hand == pytest.approx(18.833, abs=0.001)
    assert text_metrics(["我喜歡讀書。"], ["我愛讀書"]).values["chrf"] == pytest.approx(by_hand)


def test_bleu_of_chinese_uses_sacrebleus_chinese_tokenizer() -> None:
    # A word is a character, 。 too: 9 each. Common: 我 喜 歡 讀 書 和 。 (7 of 9), pairs 我喜 … 書和 (5 of 8), then
    # 4 of 7 and 3 of 6. Both are equally long, so nothing is taken off.
    references, hypotheses = ["我喜歡讀書和寫字。"], ["我喜歡讀書和畫畫。"]
    found = text_metrics(references, hypotheses)
    assert found.bleu_tokenizer == "zh"
    assert found.values["bleu"] == sacrebleu.corpus_bleu(hypotheses, [references], tokenize="zh").score
    assert found.values["bleu"] == pytest.approx(100 * (7 / 9 * 5 / 8 * 4 / 7 * 3 / 6) ** (1 / 4))
    assert sacrebleu.corpus_bleu(hypotheses, [references]).score == 0  # 13a takes the line as one word


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


def test_repetition_by_hand() -> None:
    assert repetition(list("abcdabcd")) == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd: the last again
    assert repetition(list("abc")) == 0.0


def test_perfect_and_empty_answers() -> None:
    perfect = text_metrics(REFERENCES, REFERENCES).values
    assert (perfect["rougeL"], perfect["chrf"]) == (1.0, 100.0)
    assert perfect["bleu"] == pytest.approx(100)
    nothing = text_metrics(REFERENCES, ["", "", ""]).values
    assert not any(value for name, value in nothing.items() if name not in ("reference_length", "ter"))
    assert nothing["ter"] == 100  # every word of the references is missing
    assert perfect["ter"] == 0


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        text_metrics([], [])
    with pytest.raises(ValueError, match="need as many"):
        text_metrics(["a"], [])
