"""Where in a text personal data or a secret may stand: one compiled pass over its bytes, linear in their number.

Clean text has hardly any such places, so that it costs this pass alone. What stands there is settled by the patterns
of numbers.py and credentials.py, each tried at one place, over a bounded length.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.corpus.compiled import compiled

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]  # (places, 4): kind, first byte, one past the last, traits; of tokens the first two

EMAIL, NUMBER, IBAN, IPV6, TOKEN, JWT, PEM, AWS_SECRET = range(8)

MAX_LOCAL_PART = 64  # characters before the @ (RFC 5321)
PLUS, PHONE_DIGITS, CARD_DIGITS, ID_DIGITS, TWO_DASHES, THREE_DOTS = 1, 2, 4, 8, 16, 32  # traits of a run of digits
_DIGIT, _UPPER, _LOWER, _HEX, _LOCAL, _BETWEEN, _TRIGGER = 1, 2, 4, 8, 16, 32, 64
_WORD = _DIGIT | _UPPER | _LOWER

_AT, _COLON, _UNDERSCORE, _DASH, _PLUS, _DOT, _OPEN = (ord(mark) for mark in "@:_-+.(")

# Beginnings of tokens, `?` for any byte, and the place of the character in them that is rare in text.
_PREFIXES: tuple[tuple[int, str, int], ...] = (
    (TOKEN, "AKIA", 0),
    (TOKEN, "ASIA", 0),
    (TOKEN, "AIza", 0),
    (TOKEN, "sk-", 2),
    (TOKEN, "xox?-", 4),
    (TOKEN, "glpat-", 5),
    (TOKEN, "gh?_", 3),
    (TOKEN, "github_", 6),
    (TOKEN, "sk_", 2),
    (TOKEN, "rk_", 2),
    (TOKEN, "hf_", 2),
    (JWT, "eyJ", 2),
    (PEM, "-----BEGIN", 5),
    (AWS_SECRET, "aws_", 3),
    (AWS_SECRET, "AWS_", 3),
)


def _prefix_table() -> npt.NDArray[np.uint8]:
    """Of each prefix a row: kind, place of the rare character, length, its bytes (0 for any)."""
    table = np.zeros((len(_PREFIXES), 3 + max(len(prefix) for _, prefix, _ in _PREFIXES)), np.uint8)
    for row, (kind, prefix, rare) in zip(table, _PREFIXES, strict=True):
        row[:3] = kind, rare, len(prefix)
        row[3 : 3 + len(prefix)] = [0 if letter == "?" else ord(letter) for letter in prefix]
    return table


PREFIXES = _prefix_table()


def _classes() -> npt.NDArray[np.uint8]:
    table = np.zeros(256, np.uint8)
    for characters, bit in (
        ("0123456789", _DIGIT | _HEX | _LOCAL | _TRIGGER),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", _UPPER | _LOCAL),
        ("abcdefghijklmnopqrstuvwxyz", _LOWER | _LOCAL),
        ("ABCDEFabcdef", _HEX),
        (".+_%-", _LOCAL),
        (" .-()", _BETWEEN),
        ("@:" + "".join(prefix[rare] for _, prefix, rare in _PREFIXES), _TRIGGER),
    ):
        for character in characters:
            table[ord(character)] |= bit
    return table


CLASSES = _classes()


@compiled
def find_places(raw: Bytes, classes: Bytes, prefixes: Bytes) -> Places:
    """Places to look at; some overlap. classes, prefixes: CLASSES and PREFIXES."""
    found = np.empty((16, 4), np.int64)
    count = 0
    number_end = colon_end = 0  # what lies before belongs to a run that was looked at
    for at in range(len(raw)):
        code = raw[at]
        bits = classes[code]
        if not bits & _TRIGGER:
            continue
        kind, start, end, traits = -1, at, 0, 0
        if bits & _DIGIT:
            if at < number_end:
                continue
            if _begins_iban(raw, classes, at):
                found, count = _add(found, count, IBAN, at - 2, 0, 0)
            start, number_end, traits = _number(raw, classes, at)
            kind, end = NUMBER if traits else -1, number_end
        elif code == _AT:
            kind, start = _local_part(raw, classes, at)
        elif code == _COLON:
            if at >= colon_end:
                kind, start, end = _hexadecimal(raw, classes, at)
                colon_end = max(end, at + 1)
        else:
            kind, start = _token(raw, classes, prefixes, at)
        if kind >= 0:
            found, count = _add(found, count, kind, start, end, traits)
    return found[:count]


@compiled
def _local_part(raw: Bytes, classes: Bytes, at: int) -> tuple[int, int]:
    """EMAIL and where it begins, for an @ between characters that may belong to an address; else -1."""
    start = at
    while start > 0 and at - start < MAX_LOCAL_PART and classes[raw[start - 1]] & _LOCAL:
        start -= 1
    between = start < at and at + 1 < len(raw) and classes[raw[at + 1]] & _WORD
    return EMAIL if between else -1, start


@compiled
def _add(found: Places, count: int, kind: int, start: int, end: int, traits: int) -> tuple[Places, int]:
    if count == len(found):
        larger = np.empty((2 * count, 4), np.int64)
        larger[:count] = found
        found = larger
    found[count, 0] = kind
    found[count, 1] = start
    found[count, 2] = end
    found[count, 3] = traits
    return found, count + 1


@compiled
def _number(raw: Bytes, classes: Bytes, at: int) -> tuple[int, int, int]:
    """A run of digits with at most two spaces, dots, dashes or brackets between them.

    Returns its first byte (a `+` or bracket before it included), one past its last digit, and its traits; 0: too short
    for any number.
    """
    size = len(raw)
    digits = dots = dashes = plain = longest = 0
    end = place = at
    while place < size and place - end <= 2:
        code = raw[place]
        if classes[code] & _DIGIT:
            digits += 1
            plain = plain + 1 if place == end else 1
            longest = max(longest, plain)
            end = place + 1
        elif not classes[code] & _BETWEEN:
            break
        elif place == end:
            dots += code == _DOT
            dashes += code == _DASH
        place += 1
    start = at
    while start > 0 and at - start < 2 and (raw[start - 1] == _OPEN or raw[start - 1] == _PLUS):
        start -= 1
    traits = 0
    if digits >= 7 and start < at and (raw[start] == _PLUS or raw[at - 1] == _PLUS):
        traits |= PLUS
    if digits >= 11:
        traits |= PHONE_DIGITS
    if digits >= 13:
        traits |= CARD_DIGITS
    if longest >= 17:
        traits |= ID_DIGITS
    if dashes >= 2 and digits >= 9:
        traits |= TWO_DASHES
    if dots >= 3:
        traits |= THREE_DOTS
    return start, end, traits


@compiled
def _begins_iban(raw: Bytes, classes: Bytes, at: int) -> bool:
    """Whether a digit is the first after two capitals at a word's beginning, and another follows."""
    if at < 2 or at + 12 > len(raw) or not classes[raw[at + 1]] & _DIGIT:
        return False
    if not (classes[raw[at - 1]] & _UPPER and classes[raw[at - 2]] & _UPPER):
        return False
    return at == 2 or not classes[raw[at - 3]] & _WORD


@compiled
def _hexadecimal(raw: Bytes, classes: Bytes, at: int) -> tuple[int, int, int]:
    """The run of hexadecimal digits, colons and dots around a colon; IPV6 where it may be an address, else -1."""
    size = len(raw)
    start = at
    while start > 0 and at - start < 5 and classes[raw[start - 1]] & _HEX:
        start -= 1
    end = at
    colons = 0
    while end < size and (classes[raw[end]] & _HEX or raw[end] == _COLON or raw[end] == _DOT):
        colons += raw[end] == _COLON
        end += 1
    while end > at + 1 and raw[end - 1] == _DOT:
        end -= 1
    word_before = start > 0 and (classes[raw[start - 1]] & _WORD or raw[start - 1] == _UNDERSCORE)
    word_after = end < size and (classes[raw[end]] & _WORD or raw[end] == _UNDERSCORE)
    fits = colons >= 2 and not word_before and not word_after and 3 <= end - start <= 45
    return IPV6 if fits else -1, start, end


@compiled
def _token(raw: Bytes, classes: Bytes, prefixes: Bytes, at: int) -> tuple[int, int]:
    """Kind and first byte of a prefix whose rare character stands here, at the beginning of a word; kind -1: none."""
    for row in range(len(prefixes)):
        start = at - prefixes[row, 1]
        length = prefixes[row, 2]
        if raw[at] != prefixes[row, 3 + prefixes[row, 1]] or start < 0 or start + length > len(raw):
            continue
        same = 0
        while same < length and (prefixes[row, 3 + same] == raw[start + same] or not prefixes[row, 3 + same]):
            same += 1
        if same < length:
            continue
        kind = prefixes[row, 0]
        before = raw[start - 1] if start else 0
        in_word = classes[before] & _WORD or before == _UNDERSCORE or (kind == JWT and before == _DASH)
        if not in_word or kind in (PEM, AWS_SECRET):
            return kind, start
    return -1, at
