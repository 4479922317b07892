"""Hashes of words and of n words in a row, compiled; and their lookup in a sorted table behind a bit filter.

A word is a run of letters and digits between white space, in small letters; punctuation is passed over wherever it
stands (`don't` is `dont`), as in GPT-3's decontamination. A character of a script written without spaces is a word.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from pipeline.corpus.characters import ALPHANUMERIC, SPACE, UNSPACED
from pipeline.corpus.compiled import compiled
from pipeline.corpus.words import Codes, Spans, Table

Hashes = npt.NDArray[np.uint64]
Filter = npt.NDArray[np.uint8]

_FOLDED = 0x20000  # no capital letter lies above it
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_BASE = np.uint64(0xD6E8FEB86659FD93)
_HALF, _THIRD = np.uint64(32), np.uint64(29)
FILTER_BITS = 16  # for each n-gram: one in 16 lookups of what is not there goes on to the table


@functools.cache
def small_letters() -> npt.NDArray[np.uint32]:
    """The small letter of each code point, where that is one letter; (0x20000,)."""
    table = np.arange(_FOLDED, dtype=np.uint32)
    for code in range(_FOLDED):
        lowered = chr(code).lower()
        if len(lowered) == 1:
            table[code] = ord(lowered)
    return table


@compiled
def _mix(value: np.uint64) -> np.uint64:
    value = (value ^ (value >> _HALF)) * _FACTOR
    return np.uint64(value ^ (value >> _THIRD))


@compiled
def hash_words(codes: Codes, table: Table, small: Codes) -> tuple[Hashes, Spans]:
    """Hash and span (first character, one past the last) of each word: (words,) and (words, 2)."""
    hashes = np.empty(len(codes) + 1, np.uint64)
    spans = np.empty((len(codes) + 1, 2), np.int32)
    count = 0
    start = -1
    value = np.uint64(0)
    for place in range(len(codes) + 1):
        bits = table[codes[place]] if place < len(codes) else SPACE
        if bits & (SPACE | UNSPACED):
            if start >= 0:
                hashes[count] = _mix(value)
                spans[count, 0] = start
                count += 1
            start = -1
            value = np.uint64(0)
        if bits & ALPHANUMERIC:
            code = codes[place]
            if code < len(small):
                code = small[code]
            value = value * _BASE + np.uint64(code) + _FACTOR
            spans[count, 1] = place + 1
            if bits & UNSPACED:
                hashes[count] = _mix(value)
                spans[count, 0] = place
                count += 1
                value = np.uint64(0)
            elif start < 0:
                start = place
    return hashes[:count], spans[:count]


@compiled
def hash_grams(words: Hashes, length: int) -> Hashes:
    """Hash of each `length` words in a row, (words - length + 1,), rolling."""
    count = max(len(words) - length + 1, 0)
    grams = np.empty(count, np.uint64)
    leaving = np.uint64(1)
    for _ in range(length):
        leaving = leaving * _BASE
    value = np.uint64(0)
    for place in range(len(words)):
        value = value * _BASE + words[place]
        if place >= length:
            value = value - leaving * words[place - length]
        if place >= length - 1:
            grams[place - length + 1] = _mix(value)
    return grams


@compiled
def fill_filter(grams: Hashes, bits: Filter) -> None:
    """Set the bit of each hash; the number of bits is a power of two."""
    mask = np.uint64(8 * len(bits) - 1)
    for gram in grams:
        bit = gram & mask
        bits[bit >> np.uint64(3)] |= np.uint8(1 << (bit & np.uint64(7)))


@compiled
def find_grams(words: Hashes, length: int, table: Hashes, bits: Filter) -> npt.NDArray[np.int64]:
    """N-grams of a text that are in the sorted table: (found, 2), place of the first word, first row of its hash."""
    grams = hash_grams(words, length)
    found = np.empty((len(grams), 2), np.int64)
    count = 0
    mask = np.uint64(8 * len(bits) - 1)
    for place in range(len(grams)):
        gram = grams[place]
        bit = gram & mask
        if not (bits[bit >> np.uint64(3)] >> (bit & np.uint64(7))) & np.uint8(1):
            continue
        low, high = 0, len(table)
        while low < high:
            middle = (low + high) // 2
            if table[middle] < gram:
                low = middle + 1
            else:
                high = middle
        if low < len(table) and table[low] == gram:
            found[count, 0] = place
            found[count, 1] = low
            count += 1
    return found[:count]
