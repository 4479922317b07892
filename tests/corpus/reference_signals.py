"""Each published signal in its slow and obvious form, over Python strings: what the compiled ones must equal."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

ENDS = "!.?。！？؟।…"[:-1]  # those end marks of Unicode's Sentence_Terminal that the tests use


def repetition(text: str, words: Sequence[str]) -> dict[str, float]:
    """Gopher's repetition signals, of a text and its words."""
    size = max(len(text), 1)
    paragraphs = re.split(r"\n{2,}", text.strip())
    lines = re.split(r"\n+", text)
    found = {
        "duplicate_paragraphs": _repeated(paragraphs)[0] / len(paragraphs),
        "duplicate_paragraph_characters": _repeated(paragraphs)[1] / size,
        "duplicate_lines": _repeated(lines)[0] / len(lines),
        "duplicate_line_characters": _repeated(lines)[1] / size,
    }
    for length in (2, 3, 4):
        grams = Counter(tuple(words[first : first + length]) for first in range(len(words) - length + 1))
        gram, times = max(grams.items(), key=lambda item: item[1]) if grams else ((), 0)
        found[f"top_{length}_gram"] = len(" ".join(gram)) * times / size
    for length in (5, 6, 7, 8, 9, 10):
        found[f"duplicate_{length}_grams"] = _stepped_over(words, length) / size
    return found


def _repeated(pieces: Sequence[str]) -> tuple[int, int]:
    """(pieces that were there before, their characters)."""
    again = [piece for number, piece in enumerate(pieces) if piece in pieces[:number]]
    return len(again), sum(map(len, again))


def _stepped_over(words: Sequence[str], length: int) -> int:
    seen: set[tuple[str, ...]] = set()
    characters = place = 0
    while place + length <= len(words):
        gram = tuple(words[place : place + length])
        if gram in seen:
            characters += sum(map(len, gram))
            place += length
        else:
            seen.add(gram)
            place += 1
    return characters


def quality(text: str, words: Sequence[str], stop_words: Sequence[str]) -> dict[str, float]:
    """Gopher's quality signals."""
    real = [word for word in words if not all(unicodedata.category(mark)[0] in "PS" for mark in word)]
    lines = text.splitlines()
    count = max(len(words), 1)
    return {
        "words": len(real),
        "word_length": sum(map(len, real)) / max(len(real), 1),
        "alphabetic_words": sum(any(map(str.isalpha, word)) for word in words) / count,
        "stop_words": len(set(stop_words) & set(words)),
        "hashes": text.count("#") / count,
        "ellipses": (text.count("...") + text.count("…")) / count,
        "bullet_lines": sum(line.lstrip().startswith(("•", "-")) for line in lines) / max(len(lines), 1),
        "ellipsis_lines": sum(line.rstrip().endswith(("...", "…")) for line in lines) / max(len(lines), 1),
    }


def layout(text: str, words: Sequence[str]) -> dict[str, float]:
    """FineWeb's signals."""
    solid = [line for line in text.split("\n") if line.strip()]
    count = max(len(solid), 1)
    return {
        "line_ends": sum(line.endswith(tuple(ENDS)) for line in solid) / count,
        "short_lines": sum(len(line) <= 30 for line in solid) / count,
        "duplicate_solid_line_characters": _repeated(solid)[1] / max(len(text.replace("\n", "")), 1),
        "newlines": text.count("\n") / max(len(words), 1),
    }
