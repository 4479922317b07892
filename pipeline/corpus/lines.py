"""Rules that take lines out of a text: C4's and RefinedWeb's. What went, and what is left, become signals too."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from pipeline.corpus.characters import (
    ALPHANUMERIC,
    LETTER,
    QUOTE,
    SENTENCE_END,
    SPACE,
    UNSPACED,
    UPPER,
    character_table,
    code_points,
)
from pipeline.corpus.compiled import compiled
from pipeline.corpus.languages import Language
from pipeline.corpus.words import Codes, Table
from pipeline.settings.rules import C4, RefinedWeb

Facts = npt.NDArray[np.int32]  # (lines, 6), see line_facts
_NEWLINE, _DOT, _CJK = 0x0A, 0x2E, 0x2E80

_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_COUNTER = re.compile(
    r"\d[\d.,]*[km]?\s+(?:likes?|shares?|comments?|repl(?:y|ies)|retweets?|reposts?|views?|votes?|points?|followers?|"
    r"reactions?|reviews?|posts?|tweets?|upvotes?|downloads?)\W*",
    re.IGNORECASE,
)
_NAVIGATION = re.compile(
    r"\s*(?:sign[ -]?in|log[ -]?in|sign[ -]?up)\b.*|.*\bread more\W*|.*\bitems? in (?:your )?cart\b.*", re.IGNORECASE
)
_NAVIGATION_MARKS = re.compile(r"sign|log[ -]?in|read more|in (?:your )?cart", re.IGNORECASE)
_NAVIGATION_WORDS = 10


@compiled
def line_facts(codes: Codes, table: Table) -> Facts:
    """Of each line: words, longest word, capitals, letters and digits, letters, sentences.

    Words are what white space separates; characters of scripts written without spaces are words of their own.
    """
    lines = 1
    for code in codes:
        lines += code == _NEWLINE
    facts = np.zeros((lines, 6), np.int32)
    line = word = 0
    ended = spaced = False  # an end mark was met since the last sentence's beginning; and then white space
    for place in range(len(codes) + 1):
        code = codes[place] if place < len(codes) else _NEWLINE
        bits = table[code]
        if bits & SPACE:
            if word:
                facts[line, 0] += 1
                facts[line, 1] = max(facts[line, 1], word)
            word = 0
            spaced = ended and code != _NEWLINE
            if code == _NEWLINE:
                line += 1
                ended = False
            continue
        if spaced or (ended and not bits & (SENTENCE_END | QUOTE)):
            facts[line, 5] += spaced or codes[place - 1] >= _CJK
            ended = spaced = False
        if facts[line, 5] == 0:
            facts[line, 5] = 1
        word += 1
        if bits & UNSPACED:
            facts[line, 0] += 1
            word = 0
        facts[line, 2] += (bits & UPPER) != 0
        facts[line, 3] += (bits & ALPHANUMERIC) != 0
        facts[line, 4] += (bits & LETTER) != 0
        if bits & SENTENCE_END and not (code == _DOT and _ends_nothing(codes, table, place)):
            ended = True
    return facts


@compiled
def _ends_nothing(codes: Codes, table: Table, place: int) -> bool:
    """Whether a full stop is one of several, or follows a single letter, as in `J. Smith`, `e.g.`"""
    if (place and codes[place - 1] == _DOT) or (place + 1 < len(codes) and codes[place + 1] == _DOT):
        return True
    if place == 0 or not table[codes[place - 1]] & LETTER or codes[place - 1] >= _CJK:
        return False
    return bool(place == 1 or not table[codes[place - 2]] & ALPHANUMERIC)


def c4_lines(text: str, settings: C4, language: Language) -> tuple[str, dict[str, float]]:
    """The lines that stay, stripped, and signals: `lorem_ipsum`, `curly_brackets` (lines with them), `sentences`.

    A line is asked in the order of C4's code: a word too long, no end mark, too few words, lorem ipsum, "javascript",
    a curly bracket, a policy; the first that takes it away counts.
    """
    if settings.citations and "[" in text:
        text = _CITATION.sub("", text)
    lowered = text.lower()
    lorem = "lorem ipsum" in lowered
    script = settings.javascript and "javascript" in lowered
    policy = settings.policy and any(phrase in lowered for phrase in _POLICY)
    least, longest_allowed = settings.min_line_words or 0, settings.max_word_length or len(text) + 1
    kept: list[str] = []
    placeholders = brackets = sentences = 0
    for full, (words, longest, _, _, _, found) in zip(
        text.split("\n"), line_facts(code_points(text), character_table()).tolist(), strict=True
    ):
        if words < least or longest > longest_allowed or not words:
            continue
        line = full.strip()
        if settings.end_punctuation and (not line.endswith(language.end_marks) or line.endswith("...")):
            continue
        small = line.lower() if lorem or script or policy else ""
        placeholder = lorem and "lorem ipsum" in small
        placeholders += placeholder
        if script and "javascript" in small:
            continue
        brackets += "{" in line
        if policy and any(phrase in small for phrase in _POLICY):
            continue
        sentences += found
        kept.append(line)
    return "\n".join(kept), {"lorem_ipsum": placeholders, "curly_brackets": brackets, "sentences": sentences}


def refinedweb_lines(text: str, settings: RefinedWeb) -> tuple[str, dict[str, float]]:
    """The lines that stay, and `removed_words`: the share of the words in those that went. Blank lines stay."""
    kept: list[str] = []
    total = removed = 0
    least = settings.min_line_words or 0
    navigation = settings.navigation and _NAVIGATION_MARKS.search(text) is not None
    lines = text.split("\n")
    for line, facts in zip(lines, line_facts(code_points(text), character_table()).tolist(), strict=True):
        words = facts[0]
        total += words
        if words and (words < least or _is_furniture(line, facts, settings, navigation)):
            removed += words
        else:
            kept.append(line)
    return ("\n".join(kept) if removed else text), {"removed_words": removed / max(total, 1)}


def _is_furniture(line: str, facts: list[int], settings: RefinedWeb, navigation: bool) -> bool:
    words, _, capitals, alphanumeric, letters, _ = facts
    if settings.max_uppercase is not None and capitals > settings.max_uppercase * len(line):
        return True
    if settings.numeric and alphanumeric and not letters:
        return True
    if words > _NAVIGATION_WORDS:
        return False
    if settings.counters and alphanumeric > letters and _COUNTER.fullmatch(line.strip()):
        return True
    return bool(navigation and _NAVIGATION.fullmatch(line))
