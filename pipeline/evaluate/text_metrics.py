"""How close generated text comes to its reference: ROUGE by rouge-score, BLEU, chrF and TER by sacrebleu.

What the libraries leave to their user is the cutting into words, and all cut English only by default. Here Chinese and
Japanese, which are written without spaces, count a character as a word; everything else counts runs of letters and
digits. On plain English this is exactly rouge-score's own cutting (without its stemmer).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.confidence import Interval, interval, mean

# Han (with extensions and compatibility forms), Hiragana, Katakana: one character, one word.
UNSPACED = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
UNSPACED_CHARACTER = re.compile(rf"[{UNSPACED}]")
ROUGE = ("rouge1", "rouge2", "rougeL")
CORPUS_METRICS = ("bleu", "chrf", "ter")
REPEATED = 4  # words of the n-grams that are looked for again in the same text


class Words:
    """The cutting into words, with the method that rouge-score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        """Words of `text` in lower case, without punctuation."""
        return WORD.findall(text.lower())


@dataclass(frozen=True)
class TextMetrics:
    """Metrics of a set of texts, how BLEU cut words (sacrebleu's name: `13a` or `zh`), and how sure the metrics are
    (95%, by bootstrap over the texts; none for a single text)."""

    values: dict[str, float]
    bleu_tokenizer: str
    intervals: dict[str, Interval] = field(default_factory=dict)


def text_metrics(references: Sequence[str], hypotheses: Sequence[str], *, intervals: bool = False) -> TextMetrics:
    """Compare each hypothesis with its reference.

    Args: intervals, whether to draw them: it takes longer than the metrics themselves.
    Returns, as values: rouge1, rouge2, rougeL (mean F-measure, 0–1; Lin 2004); bleu (corpus BLEU-4, 0–100; Post 2018);
    chrf (corpus chrF2, 0–100; Popović 2015); ter (corpus TER, edits for 100 words of reference, 0 is best; Snover et
    al. 2006); distinct1, distinct2 (different n-grams over all n-grams of the hypotheses, 0–1; Li et al. 2016);
    repetition (mean share of a hypothesis's 4-grams that it had before, 0–1; Welleck et al. 2020); mean_length and
    reference_length (words).
    Raises: ValueError when there is nothing to compare, or the lengths differ.
    """
    if not references or len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses: need as many, at least one")
    tokenizer = bleu_tokenizer(references)
    values: dict[str, float] = {}
    sure: dict[str, Interval | None] = {}
    for name, scores in rouge(references, hypotheses).items():
        values[name] = sum(scores) / len(scores)
        sure[name] = interval(mean, scores) if intervals else None
    for name, metric in corpus_metrics(tokenizer).items():
        parts = _parts(metric, references, hypotheses)
        values[name] = _score(metric, parts)
        sure[name] = interval(_Resampled(metric, parts), range(len(parts)), vectorized=False) if intervals else None
    words = [Words().tokenize(text) for text in hypotheses]
    for n in (1, 2):
        values[f"distinct{n}"] = distinct(words, n)
    values["repetition"] = sum(map(repetition, words)) / len(words)
    values["mean_length"] = sum(map(len, words)) / len(words)
    values["reference_length"] = sum(len(Words().tokenize(text)) for text in references) / len(references)
    return TextMetrics(
        {name: float(value) for name, value in values.items()},
        tokenizer,
        {name: [float(bound) for bound in bounds] for name, bounds in sure.items() if bounds},
    )


def rouge(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, list[float]]:
    """rouge-score's F-measures: name → a number a text."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), tokenizer=Words())
    scores = [scorer.score(*pair) for pair in zip(references, hypotheses, strict=True)]
    return {name: [float(score[name].fmeasure) for score in scores] for name in ROUGE}


def corpus_metrics(tokenizer: str) -> dict[str, Any]:
    """sacrebleu's metrics over a whole set of texts. tokenizer: `bleu_tokenizer`'s; with `zh` TER counts Chinese
    characters as words too (Tercom's Asian support, which acts after its normalization)."""
    from sacrebleu.metrics import BLEU, CHRF, TER

    chinese = tokenizer == "zh"
    metrics = (BLEU(tokenize=tokenizer), CHRF(), TER(normalized=chinese, asian_support=chinese))
    return dict(zip(CORPUS_METRICS, metrics, strict=True))


def _parts(metric: Any, references: Sequence[str], hypotheses: Sequence[str]) -> NDArray[np.float64]:
    """What sacrebleu counts in each text, a row a text: the score of any set of texts follows from the rows' sum."""
    return np.array(metric._extract_corpus_statistics(list(hypotheses), [list(references)]), dtype=np.float64)


def _score(metric: Any, parts: NDArray[np.float64]) -> float:
    return float(metric._compute_score_from_stats(parts.sum(0)).score)


@dataclass(frozen=True)
class _Resampled:
    """The score of the texts with these numbers. (sacrebleu's own `n_bootstrap` fails where a sample scores 0.)"""

    metric: Any
    parts: NDArray[np.float64]

    def __call__(self, texts: NDArray[np.int64]) -> float:
        return _score(self.metric, self.parts[texts])


class ScoreDifference:
    """sacrebleu's score of ours less that of theirs, on the texts with the given numbers. both: on all texts."""

    def __init__(self, metric: Any, references: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> None:
        self.sides = [_Resampled(metric, _parts(metric, references, texts)) for texts in (ours, theirs)]
        everything = np.arange(len(references))
        self.both = tuple(side(everything) for side in self.sides)

    def __call__(self, texts: NDArray[np.int64]) -> float:
        return self.sides[0](texts) - self.sides[1](texts)


def bleu_tokenizer(references: Sequence[str]) -> str:
    """sacrebleu's `zh` where at least a third of the references' words are unspaced characters, else its `13a`."""
    words = sum(len(WORD.findall(text)) for text in references)
    unspaced = sum(len(UNSPACED_CHARACTER.findall(text)) for text in references)
    return "zh" if words and unspaced >= words / 3 else "13a"


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Share of n-grams that are different from each other, over all texts; 0 when there is none."""
    grams = [tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(words: Sequence[str]) -> float:
    """Share of a text's 4-grams that stood in it before; 0 when it has none."""
    return 1 - distinct([words], REPEATED) if len(words) >= REPEATED else 0.0
