"""Signals: named numbers about a text. Rules are thresholds on them (rules.py).

Each group of signals is worked out in one go when the first of it is asked for. Words are of two kinds: what white
space separates (for the recipe's single rules, in any language; characters of scripts written without spaces count as
words), and the language's own (words.py; jieba for Chinese), which the published thresholds were set with.
"""

from __future__ import annotations

import functools
import re
from functools import cached_property

import numpy as np
import numpy.typing as npt
import orjson

from pipeline.corpus.characters import ALPHANUMERIC, UNSPACED, character_table, code_points
from pipeline.corpus.languages import UNKNOWN, Language

UNSPACED_SHARE = 0.3  # above it, characters count as words
UNSPACED_WEIGHT = 3  # letters that a character of such a script stands for; also its bytes in UTF-8
_NOT_ALPHANUMERIC_BYTES = bytes(code for code in range(128) if not chr(code).isalnum())
_LETTER = re.compile(r"[^\W\d_]")
_ELLIPSIS = re.compile(r"\.\.\.|…")
_GENERATED = re.compile(r"auto-?generated|automatically generated", re.IGNORECASE)
_GENERATED_LINES = 5

WORD_SIGNALS = ("words", "word_length", "alphabetic_words", "stop_words", "hashes", "ellipses")
LINE_SIGNALS = (
    "bullet_lines",
    "ellipsis_lines",
    "line_ends",
    "short_lines",
    "duplicate_solid_line_characters",
    "newlines",
)
REPETITION_SIGNALS = (
    "duplicate_paragraphs",
    "duplicate_paragraph_characters",
    "duplicate_lines",
    "duplicate_line_characters",
    *(f"top_{length}_gram" for length in (2, 3, 4)),
    *(f"duplicate_{length}_grams" for length in (5, 6, 7, 8, 9, 10)),
)
PLAIN_SIGNALS = (
    "characters",
    "solid_characters",
    "weighed_characters",
    "word_count",
    "mean_word_length",
    "symbol_to_word_ratio",
    "alphabetic_word_share",
    "repeated_line_share",
    "longest_line",
    "mean_line",
    "alphanumeric",
    "white_space",
    "replacement_characters",
    "generated_markers",
)
EDIT_SIGNALS = ("lorem_ipsum", "curly_brackets", "sentences", "removed_words")  # what lines.py leaves
SIGNALS = (*PLAIN_SIGNALS, *WORD_SIGNALS, *LINE_SIGNALS, *REPETITION_SIGNALS, *EDIT_SIGNALS)


class Signals:
    """The signals of one text, by name: `signals["words"]`. language: whose words and stop words count."""

    def __init__(self, text: str, language: Language = UNKNOWN) -> None:
        self.text = text
        self.language = language
        self.values: dict[str, float | int] = {}
        self.edited: Signals | None = None  # of the text that a rule left, which took lines out

    def __getitem__(self, name: str) -> float | int:
        """Raises: KeyError for a name that is none, or one of EDIT_SIGNALS when no lines were looked at."""
        if name not in self.values:
            self._measure(name)
        return self.values[name]

    def _measure(self, name: str) -> None:
        """Work out a signal, and those of its group with it."""
        if name in PLAIN_SIGNALS:
            self.values[name] = getattr(self, name)
            return
        for names, measure in (
            (WORD_SIGNALS, self._word_signals),
            (LINE_SIGNALS, self._line_signals),
            (REPETITION_SIGNALS, self._repetition_signals),
        ):
            if name in names:
                self.values.update(zip(names, measure(), strict=True))

    def every(self) -> dict[str, float | int]:
        """All signals, those of lines taken out where there are any."""
        return {name: self[name] for name in SIGNALS if name not in EDIT_SIGNALS or name in self.values}

    # --- plain ---

    @cached_property
    def characters(self) -> int:
        return len(self.text)

    @cached_property
    def solid_characters(self) -> int:
        """Characters; 0 where all are white space."""
        return 0 if self.text.isspace() else len(self.text)

    @cached_property
    def codes(self) -> npt.NDArray[np.uint32]:
        return code_points(self.text)

    @cached_property
    def _unspaced(self) -> int:
        """Characters of scripts written without spaces."""
        if self.text.isascii():
            return 0
        return int(np.count_nonzero(character_table()[self.codes] & UNSPACED))

    @property
    def mostly_unspaced(self) -> bool:
        """Whether the text is in a script written without spaces."""
        return self._unspaced > UNSPACED_SHARE * len(self.text)

    @property
    def mostly_han(self) -> bool:
        """Whether such a text is Chinese: Han, without kana, Thai or the like worth mentioning."""
        if not self.mostly_unspaced:
            return False
        han = int(np.count_nonzero((self.codes >= 0x3400) & (self.codes != 0xFFFD) & (self.codes < 0xA000)))
        return han > 0.9 * self._unspaced

    @cached_property
    def weighed_characters(self) -> int:
        """Characters, those of scripts written without spaces UNSPACED_WEIGHT times."""
        return len(self.text) + (UNSPACED_WEIGHT - 1) * self._unspaced

    @cached_property
    def _pieces(self) -> list[str]:
        """What white space separates."""
        return self.text.split()

    @cached_property
    def word_count(self) -> int:
        """Words; in text without spaces its characters, and the words of other scripts among them."""
        if not self.mostly_unspaced:
            return len(self._pieces)
        return self._unspaced + sum(1 for word in self._pieces if word.isascii())

    @cached_property
    def mean_word_length(self) -> float:
        """Characters that are not white space, to a word."""
        return sum(map(len, self._pieces)) / max(self.word_count, 1)

    @cached_property
    def symbol_to_word_ratio(self) -> float:
        """`#` or ellipses, whichever are more, to a word (Gopher)."""
        return max(self.text.count("#"), len(_ELLIPSIS.findall(self.text))) / max(self.word_count, 1)

    @cached_property
    def alphabetic_word_share(self) -> float:
        """Share of what white space separates that has a letter (Gopher)."""
        return sum(map(bool, map(_LETTER.search, self._pieces))) / max(len(self._pieces), 1)

    @cached_property
    def repeated_line_share(self) -> float:
        """Share of the lines that are not blank which were there before (Gopher)."""
        lines = [line for line in map(str.strip, self.text.split("\n")) if line]
        return 1 - len(set(lines)) / len(lines) if lines else 0.0

    @cached_property
    def longest_line(self) -> int:
        """Characters of the longest line."""
        return max(map(len, self.text.split("\n")))

    @cached_property
    def mean_line(self) -> float:
        """Characters of a line on average."""
        return len(self.text) / (self.text.count("\n") + (not self.text.endswith("\n")))

    @cached_property
    def alphanumeric(self) -> float:
        """Share of the characters that are letters or digits of any script."""
        if self.text.isascii():
            found = len(self.text.encode("ascii").translate(None, _NOT_ALPHANUMERIC_BYTES))
        else:
            found = int(np.count_nonzero(character_table()[self.codes] & ALPHANUMERIC))
        return found / max(len(self.text), 1)

    @cached_property
    def white_space(self) -> float:
        """Share of the characters that are white space."""
        return 1 - sum(map(len, self._pieces)) / max(len(self.text), 1)

    @cached_property
    def replacement_characters(self) -> float:
        """Share of U+FFFD: text that was decoded with the wrong encoding."""
        return self.text.count("\ufffd") / max(len(self.text), 1)

    @cached_property
    def generated_markers(self) -> int:
        """Lines among the first that say that a program wrote the file."""
        first = self.text[:4096].split("\n", _GENERATED_LINES)[:_GENERATED_LINES]
        return sum(map(bool, map(_GENERATED.search, first)))

    # --- of the language's words ---

    @cached_property
    def spans(self) -> npt.NDArray[np.int32]:
        """The words' first characters and ends, (words, 2)."""
        if self.language.words == "jieba":
            from pipeline.corpus.chinese import chinese_words

            return chinese_words(self.text)
        from pipeline.corpus.words import split_words

        return split_words(self.codes, character_table())

    @cached_property
    def _hashes(self) -> npt.NDArray[np.uint64]:
        from pipeline.corpus.repetition import hash_words

        return hash_words(self.codes, self.spans)

    def _word_signals(self) -> list[float]:
        from pipeline.corpus.counts import count_marks, count_words

        values = np.zeros(len(WORD_SIGNALS))
        stop_words = _stop_word_hashes(self.language.stop_words)
        count_words(self.codes, character_table(), self.spans, self._hashes, stop_words, values[:4])
        count_marks(self.codes, len(self.spans), values[4:])
        words, length, lettered, met, *marks = values.tolist()
        return [int(words), length, lettered, int(met), *marks]

    def _line_signals(self) -> list[float]:
        from pipeline.corpus.counts import count_lines

        values = np.zeros(len(LINE_SIGNALS))
        count_lines(self.codes, character_table(), len(self.spans), values)
        return values.tolist()

    def _repetition_signals(self) -> list[float]:
        from pipeline.corpus.repetition import repeated_lines, repeated_ngrams

        values = np.zeros(len(REPETITION_SIGNALS))
        repeated_lines(self.codes, character_table(), values[:4])
        repeated_ngrams(self._hashes, self.spans, len(self.codes), values[4:])
        return values.tolist()


def json_of(signals: Signals, all_of_them: bool) -> str:
    """A JSON list of a text's signals and of those of what was left of it; all, or those that were asked for."""
    found = []
    step: Signals | None = signals
    while step is not None:
        found.append(step.every() if all_of_them else step.values)
        step = step.edited
    return orjson.dumps(found).decode()


@functools.cache
def _stop_word_hashes(words: tuple[str, ...]) -> npt.NDArray[np.uint64]:
    from pipeline.corpus.repetition import hash_words

    joined = code_points("".join(words))
    ends = np.cumsum([len(word) for word in words], dtype=np.int32)
    starts = ends - np.array([len(word) for word in words], np.int32)
    return hash_words(joined, np.stack([starts, ends], axis=1).astype(np.int32))
