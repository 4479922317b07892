"""Byte-level BPE as compiled functions, for text whose words are new each time.

gigatoken remembers words, and is as fast as memory where they come again. A word of Chinese is all that stands between
two marks, hardly ever comes again, and costs it three times as long as here, where nothing is remembered, characters
are merged in place of bytes (bpe_tables.py), and memory does not grow. English is faster there.

Nothing outside the arrays is read or written, whatever the bytes are: three zeros end the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.corpus.compiled import compiled
from pipeline.tokens.bpe_tables import (
    BLANK,
    LETTER,
    NEWLINE,
    NUMBER,
    SIGN,
    SPACE,
    UNKNOWN,
    Tables,
    kinds_of_characters,
)

LONGEST = 1024  # bytes of a word; merging takes time by the square of its length
PIECE = 1 << 20  # bytes for which a thread is worth while

_NONE = np.int32(0x7FFFFFFF)  # no merge
_FREE = np.uint64(0xFFFFFFFFFFFFFFFF)
_WORD, _RANK, _HALF = np.uint64(20), np.uint64(24), np.uint64(32)  # bits
_RANKS = np.uint64(0xFFFFFF)
_ONE, _SPREAD = np.uint64(1), np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio (Knuth 1973)
_APOSTROPHE, _LOWER = 0x27, 0x20
_D, _E, _L, _M, _R, _S, _T, _V = b"delmrstv"


class CompiledBpe:
    """The encoder of one tokenizer. Memory: a few megabytes of tables, 12 bytes a byte of the texts of a call, and some
    200 MB of numba once a process."""

    def __init__(self, tables: Tables) -> None:
        slots = 1 << (2 * len(tables.pairs)).bit_length()
        self._slots = np.full(slots, _FREE, np.uint64)
        _fill(self._slots, tables.pairs)
        self._tables: tuple[Any, ...] = (
            *(kinds_of_characters(), tables.digits, tables.byte_ids, tables.characters),
            *(tables.whole_at, tables.left_at, tables.right_at, self._slots, tables.made),
        )

    def encode(
        self, texts: Sequence[bytes], threads: int = 1
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """The ids of the texts in one array, each one's exclusive end in it, and which are refused: they have no ids
        here, as they hold a word of more than LONGEST bytes or a character that is not known.

        texts: UTF-8.
        """
        if not texts:
            return np.empty(0, np.uint32), np.empty(0, np.int64), np.empty(0, np.bool_)
        ends = np.cumsum([len(text) for text in texts])
        cuts = np.unique(np.searchsorted(ends, np.linspace(0, ends[-1], _pieces(int(ends[-1]), threads) + 1)[1:]) + 1)
        cuts[-1] = len(texts)  # empty ones at the end too
        pieces = [texts[start:end] for start, end in zip((0, *cuts[:-1]), cuts, strict=True)]
        if len(pieces) == 1:
            return self._encode(texts)
        with ThreadPoolExecutor(len(pieces)) as pool:
            made = list(pool.map(self._encode, pieces))
        before = np.cumsum([0, *(len(ids) for ids, _, _ in made[:-1])])
        return (
            np.concatenate([ids for ids, _, _ in made]),
            np.concatenate([first + ends for first, (_, ends, _) in zip(before, made, strict=True)]),
            np.concatenate([refused for _, _, refused in made]),
        )

    def _encode(
        self, texts: Sequence[bytes]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        data = np.frombuffer(b"".join((*texts, b"\0\0\0")), np.uint8)
        ends = np.cumsum([len(text) for text in texts])
        ids = np.empty(len(data) + LONGEST, np.uint32)
        id_ends, refused = np.empty(len(texts), np.int64), np.empty(len(texts), np.bool_)
        count = _encode_all(data, ends, ids, id_ends, refused, *self._tables)
        return ids[:count].copy(), id_ends, refused


def _pieces(size: int, threads: int) -> int:
    return max(1, min(threads, size // PIECE))


# --- words ---------------------------------------------------------------------------------------------------------


@compiled
def _character(text: Any, at: int) -> tuple[Any, int]:
    """The code point at a place, and its bytes."""
    byte = np.int64(text[at])
    if byte < 0x80:
        return byte, 1
    if byte < 0xE0:
        return (byte & 0x1F) << 6 | text[at + 1] & 0x3F, 2
    if byte < 0xF0:
        return (byte & 0x0F) << 12 | (np.int64(text[at + 1]) & 0x3F) << 6 | text[at + 2] & 0x3F, 3
    high = (byte & 0x07) << 18 | (np.int64(text[at + 1]) & 0x3F) << 12
    return high | (np.int64(text[at + 2]) & 0x3F) << 6 | text[at + 3] & 0x3F, 4


@compiled
def _kind(text: Any, at: int, kinds: Any) -> tuple[Any, int]:
    """The kind of the character at a place, and its bytes."""
    code, size = _character(text, at)
    return np.int64(kinds[code]) if code < len(kinds) else UNKNOWN, size


@compiled
def _run(text: Any, at: int, end: int, kinds: Any, wanted: int, most: int = LONGEST + 1) -> int:
    """The end of the characters of one kind from a place on; of so many at most."""
    while at < end and most > 0:
        kind, size = _kind(text, at, kinds)
        if kind != wanted:
            break
        at += size
        most -= 1
    return at


@compiled
def _word_end(text: Any, at: int, end: int, kinds: Any, digits: int) -> int:
    """The end of the word at a place, as the patterns of pre_tokenizers.py split; -1 where a character is unknown."""
    kind, size = _kind(text, at, kinds)
    if kind == UNKNOWN:
        return -1
    contraction = _contraction(text, at, end) if text[at] == _APOSTROPHE else 0
    if contraction:
        return at + contraction
    after = at + size
    following = _kind(text, after, kinds)[0] if after < end else UNKNOWN
    if kind == LETTER or (following == LETTER and kind not in (NUMBER, NEWLINE)):
        return _run(text, after, end, kinds, LETTER)
    if kind == NUMBER:
        return _run(text, after, end, kinds, NUMBER, digits - 1)
    if kind == SIGN or (kind == SPACE and following == SIGN):
        after = _run(text, after, end, kinds, SIGN)
        return _run(text, after, end, kinds, NEWLINE)
    return _blanks_end(text, at, end, kinds)


@compiled
def _contraction(text: Any, at: int, end: int) -> int:
    """The bytes of 's, 't, 're, 've, 'm, 'll or 'd at a place; 0 where there is none."""
    first, second = text[at + 1] | _LOWER, text[at + 2] | _LOWER
    if at + 1 < end and first in (_S, _T, _M, _D):
        return 2
    return 3 if at + 2 < end and ((first in (_R, _V) and second == _E) or (first == _L and second == _L)) else 0


@compiled
def _blanks_end(text: Any, at: int, end: int, kinds: Any) -> int:
    """Blanks up to the last line end among them; else all but the last, which belongs to what follows, if anything."""
    after, last, line_end = at, at, -1
    while after < end:
        kind, size = _kind(text, after, kinds)
        if kind not in (NEWLINE, SPACE, BLANK):
            break
        last = after
        after += size
        if kind == NEWLINE:
            line_end = after
    if line_end >= 0:
        return line_end
    return after if after == end or last == at else last


# --- merges --------------------------------------------------------------------------------------------------------


@compiled
def _fill(slots: Any, pairs: Any) -> None:
    """An open table: a slot holds the two tokens and the rank of their merge."""
    mask = np.uint64(len(slots) - 1)
    for rank in range(len(pairs)):
        key = np.uint64(pairs[rank, 0]) << _WORD | np.uint64(pairs[rank, 1])
        slot = (key * _SPREAD >> _HALF) & mask
        while slots[slot] != _FREE:
            slot = (slot + _ONE) & mask
        slots[slot] = key << _RANK | np.uint64(rank)


@compiled
def _rank(slots: Any, left: int, right: int, place: Any) -> Any:
    """The rank of the merge of two tokens, and behind it their place in the word: the least comes first; or _NONE."""
    mask = np.uint64(len(slots) - 1)
    key = np.uint64(left) << _WORD | np.uint64(right)
    slot = (key * _SPREAD >> _HALF) & mask
    while True:
        found = slots[slot]
        if found == _FREE:
            return _NONE
        if found >> _RANK == key:
            return np.int32(np.int64(found & _RANKS) << 10 | place)
        slot = (slot + _ONE) & mask


@compiled
def _merge(ids: Any, ranks: Any, count: int, slots: Any, made: Any) -> int:
    """Merge the `count` tokens of a word, the least rank first, the leftmost of equals; how many are left."""
    least = _NONE
    for place in range(count - 1):
        ranks[place] = _rank(slots, ids[place], ids[place + 1], place)
        least = min(least, ranks[place])
    while least != _NONE:
        at = least & 1023
        ids[at] = made[least >> 10]
        count -= 1
        least = _NONE
        if at > 0:
            ranks[at - 1] = _rank(slots, ids[at - 1], ids[at], at - 1)
            for place in range(at):
                least = min(least, ranks[place])
        if at < count - 1:
            ids[at + 1] = ids[at + 2]
            ranks[at] = _rank(slots, ids[at], ids[at + 1], at)
            least = min(least, ranks[at])
            for place in range(at + 1, count - 1):
                ids[place + 1] = ids[place + 2]
                moved = ranks[place + 1]
                ranks[place] = moved if moved == _NONE else moved - np.int32(1)
                least = min(least, ranks[place])
    return count


@compiled
def _begin(
    text: Any,
    start: int,
    end: int,
    ids: Any,
    byte_ids: Any,
    characters: Any,
    whole_at: Any,
    left_at: Any,
    right_at: Any,
) -> int:
    """The tokens that a word begins as: characters where that changes nothing, else bytes; how many."""
    count, at = 0, start
    while at < end:
        if text[at] < 0x80:
            ids[count] = byte_ids[text[at]]
            count += 1
            at += 1
            continue
        code, size = _character(text, at)
        token = characters[code] if size < 4 else -1
        if (
            token >= 0
            and (at == start or whole_at[code] < right_at[text[at - 1], text[at]])
            and (at + size >= end or whole_at[code] < left_at[text[at + size - 1], text[at + size]])
        ):
            ids[count] = token
            count += 1
        else:
            for byte in range(at, at + size):
                ids[count] = byte_ids[text[byte]]
                count += 1
        at += size
    return count


@compiled
def _encode_all(
    text: Any, ends: Any, out: Any, out_ends: Any, refused: Any, kinds: Any, digits: int, byte_ids: Any,
    characters: Any, whole_at: Any, left_at: Any, right_at: Any, slots: Any, made: Any,
) -> int:  # fmt: skip
    """Encode the texts that end at `ends`; fills `out`, `out_ends` and `refused`; the number of ids."""
    ids, ranks = np.empty(LONGEST + 4, np.int32), np.empty(LONGEST + 4, np.int32)
    written = start = 0
    for number in range(len(ends)):
        end, at, before = ends[number], start, written
        while at < end:
            word_end = _word_end(text, at, end, kinds, digits)
            if word_end < 0 or word_end - at > LONGEST:
                break
            count = _begin(text, at, word_end, ids, byte_ids, characters, whole_at, left_at, right_at)
            if count > 1:
                count = _merge(ids, ranks, count, slots, made)
            for place in range(count):
                out[written + place] = ids[place]
            written += count
            at = word_end
        refused[number] = at != end
        if at != end:
            written = before
        out_ends[number] = written
        start = end
    return written
