"""Chinese words, as jieba finds them (its dictionary and its hidden Markov model), as FineWeb-2 counts them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.corpus.characters import character_table, code_points
from pipeline.corpus.compiled import compiled
from pipeline.corpus.segmenter import FIRST, LAST, Model, cut_run, jieba_model
from pipeline.corpus.words import Codes, Spans, split_words

_SPACE = 0x20


def chinese_words(text: str) -> Spans:
    """First character and end of each word, (words, 2), in order; white space is none.

    jieba's part is the runs of Han only: what lies between is split as in languages with spaces, which is the same but
    for a few words such as `T恤`.
    """
    rest = code_points(text).copy()
    han = _cut_han(rest, jieba_model())
    spans = np.concatenate([han, split_words(rest, character_table())])
    return spans[np.argsort(spans[:, 0], kind="stable")]  # two sorted runs: merged in one pass


@compiled
def _is_han(code: Any) -> bool:
    return bool(
        0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x323AF
    )


@compiled
def _cut_han(codes: Codes, model: Model) -> Spans:
    """The words of the Han in a text, (words, 2); these characters become spaces."""
    spans = np.empty((len(codes), 2), np.int32)
    count = place = 0
    while place < len(codes):
        if not _is_han(codes[place]):
            place += 1
            continue
        end = place
        while end < len(codes) and FIRST <= codes[end] <= LAST:
            end += 1
        if end > place:
            count = cut_run(codes, place, end, model, spans, count)
        else:  # rare: jieba has no words with it
            end = place + 1
            spans[count, 0] = place
            spans[count, 1] = end
            count += 1
        codes[place:end] = _SPACE
        place = end
    return spans[:count].copy()
