"""Quality rules: a signal of a document against a threshold of the recipe.

Sources of the signals and of thresholds that others publish:
- Gopher (Rae et al. 2021, table A1): 50 to 100,000 words; mean word length 3 to 10; symbols to words at most .1; at
  least .8 of the words with a letter; duplicate lines at most .30.
- Codex and The Stack (Chen et al. 2021; Kocetkov et al. 2022), for code: longest line at most 1,000 characters; at
  least .25 of the characters alphanumeric.
The defaults in recipe.py are looser than Gopher's, since code and short documentation must pass.

Words are what white space separates. Where more than .3 of the characters belong to scripts written without spaces
(Han, kana, Thai, Lao, Khmer, Burmese), each such character counts as a word: a Chinese page is not one long word.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.corpus.document import Document, Dropped, drop
from pipeline.recipe import Rules

# Code points of scripts written without spaces, as half-open ranges.
_UNSPACED = (
    (0x0E00, 0x0F00),  # Thai, Lao
    (0x1000, 0x10A0),  # Burmese
    (0x1780, 0x1800),  # Khmer
    (0x3040, 0x3100),  # hiragana, katakana
    (0x3400, 0x4DC0),  # Han, extension A
    (0x4E00, 0xA000),  # Han
    (0xF900, 0xFB00),  # Han, compatibility
    (0x20000, 0x323B0),  # Han, extensions B to H
)
UNSPACED_SHARE = 0.3  # above it, characters count as words
_NOT_ALPHANUMERIC_BYTES = bytes(code for code in range(128) if not chr(code).isalnum())
_LETTER = re.compile(r"[^\W\d_]")
_ELLIPSIS = re.compile(r"\.\.\.|…")


@functools.cache
def _alphanumeric_table() -> npt.NDArray[np.bool_]:
    """Whether each code point is a letter or a digit: looked up for all characters of a text at once."""
    return np.fromiter((chr(code).isalnum() for code in range(0x110000)), dtype=np.bool_, count=0x110000)


@functools.cache
def _unspaced_table() -> npt.NDArray[np.bool_]:
    """Whether each code point belongs to a script written without spaces."""
    table = np.zeros(0x110000, dtype=np.bool_)
    for low, high in _UNSPACED:
        table[low:high] = True
    return table


class Signals:
    """Facts about one text, each worked out when first asked for."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def characters(self) -> int:
        return len(self.text)

    @cached_property
    def codes(self) -> npt.NDArray[np.uint32]:
        """Code points."""
        return np.frombuffer(self.text.encode("utf-32-le"), dtype="<u4")

    @cached_property
    def words(self) -> list[str]:
        """What white space separates."""
        return self.text.split()

    @cached_property
    def unspaced(self) -> int:
        """Characters of scripts written without spaces; 0 unless they are more than UNSPACED_SHARE."""
        if self.text.isascii():
            return 0
        count = int(np.count_nonzero(_unspaced_table()[self.codes]))
        return count if count > UNSPACED_SHARE * len(self.text) else 0

    @cached_property
    def word_count(self) -> int:
        """Words; in text without spaces its characters, and the words of other scripts among them."""
        if not self.unspaced:
            return len(self.words)
        return self.unspaced + sum(1 for word in self.words if word.isascii())

    @cached_property
    def mean_word_length(self) -> float:
        """Characters that are not white space, to a word."""
        return sum(map(len, self.words)) / max(self.word_count, 1)

    @cached_property
    def symbol_to_word_ratio(self) -> float:
        """`#` or ellipses, whichever are more, to a word (Gopher)."""
        return max(self.text.count("#"), len(_ELLIPSIS.findall(self.text))) / max(self.word_count, 1)

    @cached_property
    def alphabetic_words(self) -> float:
        """Share of what white space separates that has a letter (Gopher)."""
        return sum(map(bool, map(_LETTER.search, self.words))) / max(len(self.words), 1)

    @cached_property
    def duplicate_lines(self) -> float:
        """Share of the lines that are not blank which were there before (Gopher)."""
        lines = [line for line in map(str.strip, self.text.split("\n")) if line]
        return 1 - len(set(lines)) / len(lines) if lines else 0.0

    @cached_property
    def longest_line(self) -> int:
        """Characters of the longest line."""
        return max(map(len, self.text.split("\n")))

    @cached_property
    def alphanumeric(self) -> float:
        """Share of the characters that are letters or digits of any script."""
        if self.text.isascii():
            found = len(self.text.encode("ascii").translate(None, _NOT_ALPHANUMERIC_BYTES))
        else:
            found = int(np.count_nonzero(_alphanumeric_table()[self.codes]))
        return found / max(len(self.text), 1)

    @cached_property
    def replacement_characters(self) -> float:
        """Share of U+FFFD: text that was decoded with the wrong encoding."""
        return self.text.count("\ufffd") / max(len(self.text), 1)


@dataclass(frozen=True)
class Rule:
    """A signal with its bounds; a document outside them is dropped.

    name: the key in `corpus.rules`. low, high: the smallest and largest value that passes; None: no bound.
    """

    name: str
    signal: Callable[[Signals], float | int]
    low: float | int | None = None
    high: float | int | None = None

    def broken_by(self, signals: Signals) -> tuple[float | int, float | int] | None:
        """(value, threshold) when the document breaks the rule, else None."""
        value = self.signal(signals)
        if self.low is not None and value < self.low:
            return value, self.low
        if self.high is not None and value > self.high:
            return value, self.high
        return None


def build_rules(settings: Rules) -> list[Rule]:
    """The rules that a recipe switches on, cheapest first. An empty text breaks the first, whatever the recipe says."""
    low, high = settings.mean_word_length or (None, None)
    rules = [
        Rule("empty", lambda s: 0 if s.text.isspace() else s.characters, low=1),
        Rule("min_characters", lambda s: s.characters, low=settings.min_characters),
        Rule("max_characters", lambda s: s.characters, high=settings.max_characters),
        Rule(
            "max_replacement_characters", lambda s: s.replacement_characters, high=settings.max_replacement_characters
        ),
        Rule("min_alphanumeric", lambda s: s.alphanumeric, low=settings.min_alphanumeric),
        Rule("min_words", lambda s: s.word_count, low=settings.min_words),
        Rule("max_words", lambda s: s.word_count, high=settings.max_words),
        Rule("mean_word_length", lambda s: s.mean_word_length, low=low, high=high),
        Rule("max_line_length", lambda s: s.longest_line, high=settings.max_line_length),
        Rule("max_symbol_to_word_ratio", lambda s: s.symbol_to_word_ratio, high=settings.max_symbol_to_word_ratio),
        Rule("min_alphabetic_words", lambda s: s.alphabetic_words, low=settings.min_alphabetic_words),
        Rule("max_duplicate_lines", lambda s: s.duplicate_lines, high=settings.max_duplicate_lines),
    ]
    return [rule for rule in rules if rule.low is not None or rule.high is not None]


def judge(document: Document, rules: list[Rule]) -> Document | Dropped:
    """The document, or what is left of it when it breaks a rule (the first that it breaks)."""
    signals = Signals(document.text)
    for rule in rules:
        if (broken := rule.broken_by(signals)) is not None:
            value, threshold = broken
            return drop(document, rule.name, value if isinstance(value, int) else round(value, 6), threshold)
    return document
