"""Counts over the words and lines of a text, compiled: the signals of Gopher's quality rules and FineWeb's."""

from __future__ import annotations

from pipeline.corpus.characters import LETTER, SENTENCE_END, SPACE, SYMBOL
from pipeline.corpus.compiled import compiled
from pipeline.corpus.repetition import Hashes, Values, find_slot, hash_span, new_table
from pipeline.corpus.words import Codes, Spans, Table

_NEWLINE, _HASH, _DOT, _ELLIPSIS, _BULLET, _DASH = 0x0A, 0x23, 0x2E, 0x2026, 0x2022, 0x2D
SHORT_LINE = 30  # characters (FineWeb)


@compiled
def count_words(codes: Codes, table: Table, spans: Spans, hashes: Hashes, stop_words: Hashes, values: Values) -> None:
    """Fill values (4,): words but for bare marks, their mean length, share of all with a letter, stop words met."""
    real = characters = lettered = 0
    for word in range(len(spans)):
        marks_alone = True
        letter = False
        for place in range(spans[word, 0], spans[word, 1]):
            bits = table[codes[place]]
            if not bits & SYMBOL:
                marks_alone = False
            if bits & LETTER:
                letter = True
                break
        lettered += letter
        if letter or not marks_alone:
            real += 1
            characters += spans[word, 1] - spans[word, 0]
    met = 0
    for stop_word in stop_words:
        for key in hashes:
            if key == stop_word:
                met += 1
                break
    values[0] = real
    values[1] = characters / max(real, 1)
    values[2] = lettered / max(len(spans), 1)
    values[3] = met


@compiled
def count_marks(codes: Codes, words: int, values: Values) -> None:
    """Fill values (2,): `#` to a word; ellipses to a word (`...` counted without overlap, and `…`)."""
    hashes = ellipses = dots = 0
    for code in codes:
        hashes += code == _HASH
        ellipses += code == _ELLIPSIS
        dots = dots + 1 if code == _DOT else 0
        if dots == 3:
            ellipses += 1
            dots = 0
    values[0] = hashes / max(words, 1)
    values[1] = ellipses / max(words, 1)


@compiled
def count_lines(codes: Codes, table: Table, words: int, values: Values) -> None:
    """Fill values (6,), shares of lines.

    Of all lines: those that begin with a bullet (`•`, `-`); that end in an ellipsis. Of lines that are not blank: those
    that end a sentence; of at most SHORT_LINE characters; characters of those that were there before, of all but
    newlines. Then newlines to a word.
    """
    size = len(codes)
    lines = bullets = trailing = newlines = 0
    solid = ends = short = repeated = 0
    seen = new_table(_newlines(codes) + 1)
    start = 0
    while start < size:
        end = start
        while end < size and codes[end] != _NEWLINE:
            end += 1
        newlines += end < size
        lines += 1
        first, last = _inside(codes, table, start, end)
        if first < last:
            bullets += codes[first] == _BULLET or codes[first] == _DASH
            trailing += _ends_in_ellipsis(codes, first, last)
            solid += 1
            ends += (table[codes[end - 1]] & SENTENCE_END) != 0
            short += end - start <= SHORT_LINE
            key = hash_span(codes, start, end)
            slot = find_slot(seen, key)
            if seen[slot] == key:
                repeated += end - start
            seen[slot] = key
        start = end + 1
    values[0] = bullets / max(lines, 1)
    values[1] = trailing / max(lines, 1)
    values[2] = ends / max(solid, 1)
    values[3] = short / max(solid, 1)
    values[4] = repeated / max(size - newlines, 1)
    values[5] = newlines / max(words, 1)


@compiled
def _newlines(codes: Codes) -> int:
    found = 0
    for code in codes:
        found += code == _NEWLINE
    return found


@compiled
def _inside(codes: Codes, table: Table, start: int, end: int) -> tuple[int, int]:
    """The bounds without white space at both ends."""
    while start < end and table[codes[start]] & SPACE:
        start += 1
    while end > start and table[codes[end - 1]] & SPACE:
        end -= 1
    return start, end


@compiled
def _ends_in_ellipsis(codes: Codes, start: int, end: int) -> bool:
    if codes[end - 1] == _ELLIPSIS:
        return True
    return bool(end - start >= 3 and codes[end - 1] == _DOT and codes[end - 2] == _DOT and codes[end - 3] == _DOT)
