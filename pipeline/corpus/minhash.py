"""MinHash signatures of texts (Broder 1997), cut into bands (Leskovec et al., Mining of Massive Datasets, 3.4).

Defined here to the bit, for any machine and any version of any library:

- A word is a run of characters that are neither white space nor punctuation nor symbols, of the text in lower case; a
  character of a script written without spaces is a word of its own (so Chinese n-grams are of characters; FineWeb-2
  takes jieba's words, at a fiftieth of the speed). Its hash: FNV-1a over its code points, mixed (`hash_word`).
- A shingle is `ngram` words in a row: the polynomial of their hashes in _BASE modulo 2^64, mixed. A text with fewer
  words has one, of all of them; a text with none has no signature.
- Value i of the signature is the least a_i · shingle + b_i modulo 2^64 over all shingles, a_i odd, b_i any, drawn by
  SplitMix64 (Steele et al. 2014) from the recipe's seed. Two texts agree in it with a probability of their Jaccard
  similarity.
- Band j's key is a hash of values j · rows … (j + 1) · rows - 1. Texts that share the key of any band are candidates.
- The sketch is one bit of each value: texts agree in it with a probability of (1 + Jaccard) / 2 (b-bit minwise hashing,
  Li and König 2010). It goes with each key, so that candidates are weighed where they meet, with nothing to look up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.corpus.characters import SPACE, SYMBOL, UNSPACED, character_table, code_points
from pipeline.corpus.compiled import compiled
from pipeline.corpus.words import Codes, Table
from pipeline.settings.duplicates import NearDuplicates

Values = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.uint64]  # (bands, 2 + words of the sketch): key, record, sketch

_OFFSET, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # FNV-1a
_MIX, _MIX_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)  # of MurmurHash3's finaliser
_BASE = np.uint64(0x9E3779B97F4A7C15)
_33, _ONE, _MOST = np.uint64(33), np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)
_64_BITS = (1 << 64) - 1


class Signer:
    """Signatures with the parameters of a recipe. width: of a row."""

    def __init__(self, settings: NearDuplicates) -> None:
        count = settings.bands * settings.rows
        drawn = _split_mix(settings.seed, 2 * count)
        self.bands, self.width = settings.bands, 2 + sketch_words(settings)
        self._ngram, self._rows = settings.ngram, settings.rows
        self._factors, self._terms = drawn[:count] | _ONE, drawn[count:]
        self._values = np.empty(count, np.uint64)
        self._ring = np.empty(settings.ngram, np.uint64)

    def values(self, text: str) -> Values | None:
        """The signature, (bands · rows,); None of a text without words."""
        codes = code_points(text.lower())
        found = _sign(codes, character_table(), self._ring, self._factors, self._terms, self._values)
        return self._values if found else None

    def sign(self, text: str, record: int, rows: Rows) -> bool:
        """Fill in the rows of a text, one for each band; False: it has none."""
        values = self.values(text)
        if values is None:
            return False
        _fill(values, self._rows, record, rows)
        return True


def sketch_words(settings: NearDuplicates) -> int:
    """64-bit words of a sketch."""
    return -(-settings.bands * settings.rows // 64)


def _split_mix(seed: int, count: int) -> Values:
    drawn = np.empty(count, np.uint64)
    for place in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & _64_BITS
        value = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _64_BITS
        drawn[place] = value ^ (value >> 31)
    return drawn


@compiled
def mixed(value: Any) -> Any:
    """MurmurHash3's finaliser: every bit of the value changes every bit of the outcome."""
    value = (value ^ (value >> _33)) * _MIX
    value = (value ^ (value >> _33)) * _MIX_2
    return value ^ (value >> _33)


@compiled
def _sign(codes: Codes, table: Table, ring: Values, factors: Values, terms: Values, values: Values) -> int:
    """Fill in the signature; how many words there are. ring: room for `ngram` hashes."""
    ngram = len(ring)
    values[:] = _MOST
    leaving = _ONE  # _BASE ** ngram: what the word that leaves the shingle has been multiplied with
    for _ in range(ngram):
        leaving *= _BASE
    words = 0
    shingle = np.uint64(0)
    word = _OFFSET
    inside = False
    size = len(codes)
    for place in range(size + 1):
        bits = table[codes[place]] if place < size else np.uint16(SPACE)
        if not bits & (SPACE | SYMBOL | UNSPACED):
            word = (word ^ np.uint64(codes[place])) * _PRIME
            inside = True
            continue
        alone = bits & UNSPACED and not bits & (SPACE | SYMBOL)
        for last in range(2):  # the word before this character; then the character, where it is one
            if (last == 0 and not inside) or (last == 1 and not alone):
                continue
            if last == 1:
                word = (_OFFSET ^ np.uint64(codes[place])) * _PRIME
            hashed = mixed(word)
            slot = words % ngram
            shingle = shingle * _BASE + hashed
            if words >= ngram:
                shingle -= ring[slot] * leaving
            ring[slot] = hashed
            words += 1
            if words >= ngram:
                _lower(mixed(shingle), factors, terms, values)
            word = _OFFSET
            inside = False
    if 0 < words < ngram:
        _lower(mixed(shingle), factors, terms, values)
    return words


@compiled
def _lower(shingle: Any, factors: Values, terms: Values, values: Values) -> None:
    """The hot loop: one pass over the functions for each shingle, several at a time on any processor's vectors."""
    for function in range(len(values)):
        values[function] = min(values[function], factors[function] * shingle + terms[function])


@compiled
def _fill(values: Values, in_band: int, record: int, rows: Rows) -> None:
    """Keys and sketch of a signature."""
    bands, width = rows.shape
    rows[:, 1] = np.uint64(record)
    rows[:, 2:] = np.uint64(0)
    for place in range(len(values)):
        bit = (mixed(values[place]) & _ONE) << np.uint64(place % 64)
        rows[0, 2 + place // 64] |= bit
    for band in range(bands):
        for word in range(2, width):
            rows[band, word] = rows[0, word]
        key = np.uint64(band) + _OFFSET
        for place in range(band * in_band, (band + 1) * in_band):
            key = mixed((key ^ values[place]) * _PRIME)
        rows[band, 0] = key
