"""Words of a text, as compiled functions: what Gopher's, FineWeb's and C4's thresholds are counted in.

The published thresholds were set with words as spaCy's blank English pipeline splits them (datatrove's choice for
Gopher and FineWeb): white space, then punctuation off both ends of each piece, then a few marks inside it (`and/or`,
`well-known`, `end.Next`). Every mark is a word of its own. This splitter follows the same rules without spaCy's list
of exceptions, of which the commonest are here as rules: `n't 's 're 've 'll 'd 'm`, and `e.g.` stays whole.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.corpus.characters import (
    ALPHANUMERIC,
    CURRENCY,
    DIGIT,
    EDGE,
    HYPHEN,
    ICON,
    LETTER,
    LOWER,
    QUOTE,
    SPACE,
    UPPER,
)
from pipeline.corpus.compiled import compiled

Codes = npt.NDArray[np.uint32]
Table = npt.NDArray[np.uint16]
Spans = npt.NDArray[np.int32]  # (words, 2): first character, one past the last

_DOT, _PLUS, _APOSTROPHE, _RIGHT_QUOTE, _ELLIPSIS = 0x2E, 0x2B, 0x27, 0x2019, 0x2026
_SLASH, _COLON, _LESS, _EQUALS, _GREATER, _COMMA, _PERCENT = 0x2F, 0x3A, 0x3C, 0x3D, 0x3E, 0x2C, 0x25
_SECTION, _MINUS, _STAR, _CARET = 0xA7, 0x2D, 0x2A, 0x5E
_D, _E, _L, _M, _N, _R, _S, _T, _V, _W = (ord(letter) for letter in "delmnrstvw")


@compiled
def split_words(codes: Codes, table: Table) -> Spans:
    """Words of a text in a language written with spaces. Returns (words, 2), in order, not overlapping."""
    size = len(codes)
    spans = np.empty((size + 1, 2), np.int32)
    cuts = np.empty(size + 1, np.int32)
    count = 0
    start = 0
    while start < size:
        if table[codes[start]] & SPACE:
            start += 1
            continue
        end = start
        plain = True  # letters and digits only, as most pieces are: nothing to split
        while end < size:
            bits = table[codes[end]]
            if bits & SPACE:
                break
            plain = plain and bits & ALPHANUMERIC != 0
            end += 1
        count = _add(spans, count, start, end) if plain else _split_piece(codes, table, start, end, spans, cuts, count)
        start = end
    return spans[:count].copy()


@compiled
def _split_piece(codes: Codes, table: Table, low: int, high: int, spans: Spans, cuts: Spans, count: int) -> int:
    """Append the words of a piece without white space to `spans`, of which `count` are there; how many are now."""
    while low < high:
        length = _prefix(codes, table, low, high)
        if length == 0:
            break
        count = _add(spans, count, low, low + length)
        low += length
    taken = 0  # from the end: cuts[0] is where the last word begins
    end = high
    while low < end:
        length = _suffix(codes, table, low, end)
        if length == 0:
            break
        end -= length
        cuts[taken] = end
        taken += 1
    if low < end:
        count = _split_middle(codes, table, low, end, spans, count)
    while taken:
        taken -= 1
        count = _add(spans, count, cuts[taken], cuts[taken - 1] if taken else high)
    return count


@compiled
def _add(spans: Spans, count: int, start: int, end: int) -> int:
    spans[count, 0] = start
    spans[count, 1] = end
    return count + 1


@compiled
def _prefix(codes: Codes, table: Table, low: int, high: int) -> int:
    """Characters to split off from a piece's beginning; 0: none."""
    code = codes[low]
    if code == _DOT:
        length = 1
        while low + length < high and codes[low + length] == _DOT:
            length += 1
        return length if length > 1 else 0
    if table[code] & (EDGE | CURRENCY | ICON) or code in (_PERCENT, _EQUALS, _SECTION):
        return 1
    if code == _PLUS and (low + 1 == high or not table[codes[low + 1]] & DIGIT):
        return 1
    return 0


@compiled
def _suffix(codes: Codes, table: Table, low: int, high: int) -> int:
    """Characters to split off from a piece's end; 0: none."""
    last = codes[high - 1]
    if last == _DOT:
        return _dots(codes, table, low, high)
    if table[last] & (EDGE | ICON):
        return 1
    if high - low > 1:
        before = table[codes[high - 2]]
        if before & DIGIT and (last in (_PLUS, _PERCENT) or table[last] & CURRENCY):
            return 1
    return _contraction(codes, low, high)


@compiled
def _dots(codes: Codes, table: Table, low: int, high: int) -> int:
    """Of full stops at the end: two and more are an ellipsis; one ends a sentence, or belongs to `e.g.`, `J.`"""
    length = 1
    while high - length > low and codes[high - length - 1] == _DOT:
        length += 1
    if length > 1:
        return length
    if high - low == 1:
        return 0
    before = table[codes[high - 2]]
    if high - low == 2 or codes[high - 3] == _DOT:
        return 0 if before & LETTER else 1
    if before & (LOWER | DIGIT | QUOTE | EDGE) or codes[high - 2] == _PERCENT or codes[high - 2] == _PLUS:
        return 1
    return 1 if before & UPPER and table[codes[high - 3]] & UPPER else 0


@compiled
def _contraction(codes: Codes, low: int, high: int) -> int:
    """Length of `'s 'd 'm n't 're 've 'll` at the end of a longer piece; else 0."""
    size = high - low
    last = codes[high - 1] | 0x20  # of a letter, the small one
    if size > 2 and (codes[high - 2] == _APOSTROPHE or codes[high - 2] == _RIGHT_QUOTE):
        if last in (_S, _D, _M):
            return 2
        if last == _T and size > 3 and codes[high - 3] | 0x20 == _N:
            return 3
    if size > 3 and (codes[high - 3] == _APOSTROPHE or codes[high - 3] == _RIGHT_QUOTE):
        before = codes[high - 2] | 0x20
        if (last == _E and (before in (_R, _V))) or (last == _L and before == _L):
            return 3
    return 0


@compiled
def _split_middle(codes: Codes, table: Table, low: int, high: int, spans: Spans, count: int) -> int:
    """Split a piece at the marks inside it; an address of the web stays whole."""
    if _is_address(codes, low, high):
        return _add(spans, count, low, high)
    start = low
    place = low
    while place < high:
        length = _infix(codes, table, low, place, high)
        if length == 0:
            place += 1
            continue
        if start < place:
            count = _add(spans, count, start, place)
        count = _add(spans, count, place, place + length)
        place += length
        start = place
    return _add(spans, count, start, high) if start < high else count


@compiled
def _is_address(codes: Codes, low: int, high: int) -> bool:
    if high - low > 4 and codes[low + 3] == _DOT:
        return bool(codes[low] == _W and codes[low + 1] == _W and codes[low + 2] == _W)
    for place in range(low + 1, min(high - 2, low + 8)):
        if codes[place] == _COLON and codes[place + 1] == _SLASH and codes[place + 2] == _SLASH:
            return True
    return False


@compiled
def _infix(codes: Codes, table: Table, low: int, place: int, high: int) -> int:
    """Length of a mark inside a piece that is a word of its own; else 0."""
    code = codes[place]
    bits = table[code]
    if bits & ALPHANUMERIC:
        return 0
    if code == _ELLIPSIS or bits & ICON:
        return 1
    length = 1
    if code in (_DOT, _MINUS):
        while place + length < high and codes[place + length] == code:
            length += 1
    if code == _DOT and length > 1:
        return length
    if place == low or place + length >= high:
        return 0
    before, after = table[codes[place - 1]], table[codes[place + length]]
    found = False
    if code == _DOT:
        found = bool(before & (LOWER | QUOTE)) and bool(after & (UPPER | QUOTE))
    elif before & LETTER and after & LETTER:
        found = bool(bits & HYPHEN) or code == _COMMA or _joins(code)
    elif before & DIGIT and after & LETTER:
        found = bool(bits & HYPHEN) or _joins(code)
    elif before & DIGIT and (after & DIGIT or codes[place + length] == _MINUS):
        found = code in (_PLUS, _MINUS, _STAR, _CARET)
    return length if found else 0


@compiled
def _joins(code: int) -> bool:
    return code in (_COLON, _LESS, _GREATER, _EQUALS, _SLASH)
