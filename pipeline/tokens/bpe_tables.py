"""What compiled_bpe.py looks up: a tokenizer's merges, its characters that are one token, and the kinds of characters.

Text may begin as characters in place of bytes, which saves most merges of Chinese text, wherever that changes nothing:
all merges inside a character come before those that join the whole of it to others, as in every vocabulary that was
trained, and before those that take a part of it over the border to a neighbour. There are some: "，" and the first byte
of what follows is a common token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.tokens.pre_tokenizers import LLAMA3, QWEN2

Integers = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]

UNKNOWN, LETTER, NUMBER, NEWLINE, SPACE, BLANK, SIGN = range(7)  # of characters; SPACE is one, BLANK all other such
CODES = 0x30000  # code points of which the kind is known; those beyond are hardly used
MOST_WORDS, MOST_MERGES = 1 << 20, 1 << 21  # that fit into a slot of the table and into a rank with its place
_LONG_S = 0x017F  # is an s behind an apostrophe, as case does not count there

_KEEPS = {LLAMA3: 3, QWEN2: 1}  # digits of a word
# Byte-level BPE writes each byte as a letter: these as themselves, the others from U+0100 on (Radford et al. 2019).
_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _BYTES]
BYTE_OF = {chr(byte): byte for byte in _BYTES} | {chr(0x100 + place): byte for place, byte in enumerate(_OTHERS)}
_TO_LATIN = str.maketrans({letter: chr(byte) for letter, byte in BYTE_OF.items()})


@dataclass(frozen=True)
class Tables:
    """digits: of which a word of digits consists at most; byte_ids (256,): the token of each byte; characters (65536,):
    of each character of two or three bytes, or -1 where it has none; whole_at (65536,): the last rank that it takes;
    left_at, right_at (256, 256): the first rank at which a part of the character on that side is taken over a border,
    by the bytes on its left and its right, or MOST_MERGES; pairs (merges, 2): the tokens that are merged, by rank; made
    (merges,): into which."""

    digits: int
    byte_ids: Integers
    characters: Integers
    whole_at: Integers
    left_at: Integers
    right_at: Integers
    pairs: Integers
    made: Integers


def read_tables(tokenizer: dict[str, Any]) -> Tables | None:
    """The tables of a tokenizer.json; None where its rules are not plain byte-level BPE over words as the patterns of
    Llama 3 and Qwen 2 split them, or something in it is not as a trained vocabulary has it."""
    digits, model = _digits(tokenizer), tokenizer["model"]
    if digits is None or tokenizer.get("normalizer") or tokenizer.get("added_tokens") or model.get("type") != "BPE":
        return None
    rules = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    if any(model.get(rule) for rule in rules):
        return None
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    written = model["vocab"]
    if len({*written.values()}) < len(written) or max(written.values()) >= MOST_WORDS or len(merges) > MOST_MERGES:
        return None
    try:
        pairs = np.array([(written[a], written[b]) for a, b in merges], np.int32).reshape(-1, 2)
        made = np.array([written[a + b] for a, b in merges], np.int32)
        byte_ids = np.array([written[letter] for letter, _ in sorted(BYTE_OF.items(), key=lambda item: item[1])])
        texts = [(_bytes(a), _bytes(b)) for a, b in merges]
    except (KeyError, UnicodeEncodeError):
        return None
    if len(np.unique(pairs, axis=0)) < len(merges) or not all(a and b for a, b in texts):
        return None
    ranks = {pair: rank for rank, pair in enumerate(map(tuple, pairs.tolist()))}
    used: dict[int, int] = {}  # the first merge that a token is part of
    for rank, pair in enumerate(ranks):
        used.setdefault(pair[0], rank)
        used.setdefault(pair[1], rank)
    characters, whole_at = np.full((2, 1 << 16), -1, np.int32)
    for token in {bytes_ for a, b in texts if 1 < len(bytes_ := a + b) < 4 and _characters(bytes_) == 1}:
        found = _merged([int(byte_ids[byte]) for byte in token], ranks, made)
        if found and found[1] < used.get(found[0], len(merges)):
            characters[ord(token.decode())], whole_at[ord(token.decode())] = found
    left_at, right_at = _taken_at(texts)
    return Tables(digits, byte_ids.astype(np.int32), characters, whole_at, left_at, right_at, pairs, made)


@lru_cache(maxsize=1)
def kinds_of_characters() -> Bytes:
    """The kind of each code point, (CODES,), as the regular expressions of `tokenizers` see it; half a second."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    codes = np.array([code for code in range(CODES) if not 0xD800 <= code < 0xE000])
    text = "".join(map(chr, codes.tolist()))
    kinds = np.full(CODES, UNKNOWN, np.uint8)
    kinds[codes] = SIGN
    for kind, pattern in ((LETTER, r"\p{L}+"), (NUMBER, r"\p{N}+"), (BLANK, r"\s+")):
        matched = np.ones(len(codes), np.bool_)
        for _, (start, end) in Split(Regex(pattern), "removed").pre_tokenize_str(text):
            matched[start:end] = False
        kinds[codes[matched]] = kind
    kinds[[ord("\r"), ord("\n")]] = NEWLINE
    kinds[ord(" ")] = SPACE
    kinds[_LONG_S] = UNKNOWN
    return kinds


def _digits(tokenizer: dict[str, Any]) -> int | None:
    """How many digits a word has, if the pre-tokenizer is one of the two that are known."""
    outer = tokenizer.get("pre_tokenizer") or {}
    if outer.get("type") != "Sequence" or len(outer["pretokenizers"]) != 2:
        return None
    split, letters = outer["pretokenizers"]
    plain = (
        (split.get("type"), split.get("behavior"), split.get("invert")) == ("Split", "Isolated", False)
        and letters.get("type") == "ByteLevel"
        and not letters.get("add_prefix_space")
        and letters.get("use_regex") is False
    )
    return _KEEPS.get(split["pattern"].get("Regex")) if plain else None


def _bytes(word: str) -> bytes:
    """A token as tokenizer.json writes it, as bytes. Raises: UnicodeEncodeError for a letter that stands for none."""
    return word.translate(_TO_LATIN).encode("latin-1")


def _characters(token: bytes) -> int:
    """How many whole characters a token is; 0 where it has a part of one."""
    try:
        return len(token.decode())
    except UnicodeDecodeError:
        return 0


def _merged(ids: list[int], ranks: dict[tuple[int, ...], int], made: npt.NDArray[np.int32]) -> tuple[int, int] | None:
    """The one token that these become, and the last rank that it takes; None where they stay several."""
    last = -1
    while len(ids) > 1:
        rank, place = min((ranks.get((*ids[at : at + 2],), len(made)), at) for at in range(len(ids) - 1))
        if rank == len(made):
            return None
        last = max(last, rank)
        ids[place : place + 2] = [int(made[rank])]
    return ids[0], last


def _taken_at(merges: list[tuple[bytes, bytes]]) -> Integers:
    """At which rank a part of a character is taken over a border, on the left and on the right, (2, 256, 256)."""
    first = np.full((2, 256, 256), MOST_MERGES, np.int32)
    for rank, tokens in enumerate(merges):
        if tokens[1][0] & 0xC0 != 0x80:  # the right one begins with a character
            for side in (0, 1):
                if not _characters(tokens[side]):
                    place = (side, tokens[0][-1], tokens[1][0])
                    first[place] = min(first[place], rank)
    return first
