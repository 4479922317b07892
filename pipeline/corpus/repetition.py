"""How much of a text was there before, as compiled functions: lines, paragraphs and word n-grams (Gopher, table A1).

Everything is compared by 64-bit hashes: among a million n-grams of one document two different ones share a hash with a
probability of about 3e-8. Definitions are those of datatrove's filters, which FineWeb's thresholds were set with; the
slow and obvious form of each stands in tests/corpus/reference_signals.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.corpus.characters import SPACE
from pipeline.corpus.compiled import compiled
from pipeline.corpus.words import Codes, Spans, Table

Hashes = npt.NDArray[np.uint64]
Values = npt.NDArray[np.float64]

TOP = (2, 3, 4)  # n-grams whose commonest is looked at
REPEATED = (5, 6, 7, 8, 9, 10)  # n-grams whose repetitions are
_NEWLINE = 0x0A
_OFFSET, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # FNV-1a
_MIX, _SHIFT = np.uint64(0xFF51AFD7ED558CCD), np.uint64(32)  # of MurmurHash3's finaliser


@compiled
def _mixed(value: Any) -> Any:
    value = (value ^ (value >> _SHIFT)) * _MIX
    return value ^ (value >> _SHIFT)


@compiled
def hash_span(codes: Codes, start: int, end: int) -> Any:
    """64-bit hash of the characters from start to end; never 0."""
    value = _OFFSET
    for place in range(start, end):
        value = (value ^ np.uint64(codes[place])) * _PRIME
    value = _mixed(value)
    return value if value != np.uint64(0) else _PRIME


@compiled
def hash_words(codes: Codes, spans: Spans) -> Hashes:
    """Hash of each word, (words,)."""
    hashes = np.empty(len(spans), np.uint64)
    for word in range(len(spans)):
        hashes[word] = hash_span(codes, spans[word, 0], spans[word, 1])
    return hashes


@compiled
def find_slot(keys: Hashes, key: Any) -> Any:
    """The slot of a key in an open table whose size is a power of two: where it is, or the free one it belongs into."""
    mask = len(keys) - 1
    slot = np.int64(key & np.uint64(mask))
    while keys[slot] != np.uint64(0) and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@compiled
def new_table(entries: int) -> Hashes:
    """An empty table for so many keys, at most half full."""
    size = 16
    while size < 2 * entries:
        size *= 2
    return np.zeros(size, np.uint64)


@compiled
def _repeated_pieces(codes: Codes, bounds: Spans) -> tuple[int, int]:
    """(pieces that were there before, their characters)."""
    table = new_table(len(bounds))
    pieces = characters = 0
    for piece in range(len(bounds)):
        start, end = bounds[piece, 0], bounds[piece, 1]
        key = hash_span(codes, start, end)
        slot = find_slot(table, key)
        if table[slot] == key:
            pieces += 1
            characters += end - start
        else:
            table[slot] = key
    return pieces, characters


@compiled
def split_at_newlines(codes: Codes, start: int, end: int, least: int) -> Spans:
    """Pieces between runs of at least `least` newlines; empty ones at the ends are pieces too, as in re.split."""
    count = 1
    for place in range(start, end):
        count += codes[place] == _NEWLINE
    spans = np.empty((count, 2), np.int32)
    count = 0
    first = place = start
    while place < end:
        if codes[place] != _NEWLINE:
            place += 1
            continue
        run = place
        while place < end and codes[place] == _NEWLINE:
            place += 1
        if place - run >= least:
            spans[count, 0] = first
            spans[count, 1] = run
            count += 1
            first = place
    spans[count, 0] = first
    spans[count, 1] = end
    return spans[: count + 1]


@compiled
def repeated_lines(codes: Codes, table: Table, values: Values) -> None:
    """Fill values (4,): shares of repeated paragraphs, of their characters, of repeated lines, of their characters."""
    size = len(codes)
    start, end = 0, size
    while start < end and table[codes[start]] & SPACE:
        start += 1
    while end > start and table[codes[end - 1]] & SPACE:
        end -= 1
    paragraphs = split_at_newlines(codes, start, end, 2)
    pieces, characters = _repeated_pieces(codes, paragraphs)
    values[0] = pieces / len(paragraphs)
    values[1] = characters / max(size, 1)
    lines = split_at_newlines(codes, 0, size, 1)
    pieces, characters = _repeated_pieces(codes, lines)
    values[2] = pieces / len(lines)
    values[3] = characters / max(size, 1)


@compiled
def repeated_ngrams(words: Hashes, spans: Spans, size: int, values: Values) -> None:
    """Fill values (9,): characters of the commonest 2, 3, 4-gram, then those of repeated 5 to 10-grams, of `size`.

    The commonest counts with the spaces in it, each time it occurs; of equally common ones the first. Repeated ones are
    counted from left to right; one that was there before is stepped over whole, so that no character counts twice.
    """
    count = len(words)
    until = np.zeros(count + 1, np.int64)  # characters of the words before each
    for word in range(count):
        until[word + 1] = until[word] + spans[word, 1] - spans[word, 0]
    keys = new_table(count)
    grams = words.copy()
    for length in range(2, 11):
        for first in range(count - length + 1):
            key = _mixed(grams[first] * _PRIME + words[first + length - 1])
            grams[first] = key if key != np.uint64(0) else _PRIME
        keys[:] = np.uint64(0)
        if length < 5:
            found = _commonest(grams[: max(count - length + 1, 0)], until, length, keys)
        else:
            found = _stepped_over(grams[: max(count - length + 1, 0)], until, length, keys)
        values[length - 2] = found / max(size, 1)


@compiled
def _commonest(grams: Hashes, until: npt.NDArray[np.int64], length: int, keys: Hashes) -> int:
    """Characters of the commonest n-gram, in all its places."""
    counts = np.zeros(len(keys), np.int32)
    firsts = np.empty(len(keys), np.int32)
    most = 0
    best = 0
    for place in range(len(grams)):
        slot = find_slot(keys, grams[place])
        if counts[slot] == 0:
            keys[slot] = grams[place]
            firsts[slot] = place
        counts[slot] += 1
        if counts[slot] > most or (counts[slot] == most and firsts[slot] < best):
            most = counts[slot]
            best = firsts[slot]
    return int((until[best + length] - until[best] + length - 1) * most) if most else 0


@compiled
def _stepped_over(grams: Hashes, until: npt.NDArray[np.int64], length: int, keys: Hashes) -> int:
    """Characters of n-grams that were there before."""
    characters = 0
    place = 0
    while place < len(grams):
        slot = find_slot(keys, grams[place])
        if keys[slot] == grams[place]:
            characters += until[place + length] - until[place]
            place += length
        else:
            keys[slot] = grams[place]
            place += 1
    return characters
