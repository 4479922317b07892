"""How close generated text comes to its reference: ROUGE by rouge-score, BLEU and chrF by sacrebleu.

What the libraries leave to their user is the cutting into words, and both cut English only by default. Here Chinese and
Japanese, which are written without spaces, count a character as a word; everything else counts runs of letters and
digits. On plain English this is exactly rouge-score's own cutting (without its stemmer).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Han (with extensions and compatibility forms), Hiragana, Katakana: one character, one word.
UNSPACED = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
UNSPACED_CHARACTER = re.compile(rf"[{UNSPACED}]")
ROUGE = ("rouge1", "rouge2", "rougeL")


class Words:
    """The cutting into words, with the method that rouge-score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        """Words of `text` in lower case, without punctuation."""
        return WORD.findall(text.lower())


@dataclass(frozen=True)
class TextMetrics:
    """Metrics of a set of texts, and how BLEU cut words (sacrebleu's name: `13a` or `zh`)."""

    values: dict[str, float]
    bleu_tokenizer: str


def text_metrics(references: Sequence[str], hypotheses: Sequence[str]) -> TextMetrics:
    """Compare each hypothesis with its reference.

    Returns, as values: rouge1, rouge2, rougeL (mean F-measure, 0–1; Lin 2004); bleu (corpus BLEU-4, 0–100; Post 2018);
    chrf (corpus chrF2, 0–100; Popović 2015); distinct1, distinct2 (different n-grams over all n-grams of the
    hypotheses, 0–1; Li et al. 2016); mean_length and reference_length (words).
    Raises: ValueError when there is nothing to compare, or the lengths differ.
    """
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    if not references or len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses: need as many, at least one")
    scorer = RougeScorer(list(ROUGE), tokenizer=Words())
    scores = [scorer.score(*pair) for pair in zip(references, hypotheses, strict=True)]
    values = {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in ROUGE}
    tokenizer = bleu_tokenizer(references)
    values["bleu"] = sacrebleu.corpus_bleu(hypotheses, [references], tokenize=tokenizer).score
    values["chrf"] = sacrebleu.corpus_chrf(hypotheses, [references]).score
    words = [Words().tokenize(text) for text in hypotheses]
    for n in (1, 2):
        values[f"distinct{n}"] = distinct(words, n)
    values["mean_length"] = sum(map(len, words)) / len(words)
    values["reference_length"] = sum(len(Words().tokenize(text)) for text in references) / len(references)
    return TextMetrics({name: float(value) for name, value in values.items()}, tokenizer)


def bleu_tokenizer(references: Sequence[str]) -> str:
    """sacrebleu's `zh` where at least a third of the references' words are unspaced characters, else its `13a`."""
    words = sum(len(WORD.findall(text)) for text in references)
    unspaced = sum(len(UNSPACED_CHARACTER.findall(text)) for text in references)
    return "zh" if words and unspaced >= words / 3 else "13a"


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Share of n-grams that are different from each other, over all texts; 0 when there is none."""
    grams = [tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
