"""Which documents share a band of their signatures, and are alike: pairs, found band by band, partition by partition.

A partition is a range of a band's keys, small enough for memory, and independent of all others. Of the documents with
one key each is compared with the first, by place, that it resembles (or, where the recipe asks for no similarity, with
the first of all), so that a thousand copies make a thousand pairs, not half a million.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.corpus.compiled import compiled
from pipeline.corpus.keyed_rows import KeyedPart, Rows, gather, key_range
from pipeline.corpus.minhash import sketch_words
from pipeline.files import atomic_write
from pipeline.settings.duplicates import NearDuplicates

BYTES_A_ROW = 200  # in memory, while a partition is sorted and linked
HUBS = 64  # documents with one key, none like another, that a further one is compared with: bounds hostile input

_5, _3, _F = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333), np.uint64(0x0F0F0F0F0F0F0F0F)
_1, _2, _4, _56 = np.uint64(1), np.uint64(2), np.uint64(4), np.uint64(56)
_BYTES = np.uint64(0x0101010101010101)


def least_equal_bits(settings: NearDuplicates) -> int:
    """Bits of two sketches that must be equal."""
    if settings.min_similarity is None:
        return 0
    bits = settings.bands * settings.rows
    return int(np.ceil(bits * (1 + settings.min_similarity) / 2 - 1e-9))


def find_pairs(
    parts: Sequence[KeyedPart],
    gone: npt.NDArray[np.bool_],
    settings: NearDuplicates,
    band: int,
    partition: tuple[int, int],
    memory: int,
    path: Path,
) -> int:
    """Write the pairs of a band's partition (number, of how many) to `path`; how many there are.

    The file: rows of two uint64, the places of two documents among all records, the larger first. Memory: `memory`
    bytes, whatever the partition holds.
    """
    state = np.zeros(3, np.uint64)  # whether there is a key; the key; its hubs
    hubs = np.empty((HUBS, 1 + sketch_words(settings)), np.uint64)
    bits, least = settings.bands * settings.rows, least_equal_bits(settings)
    found = 0
    with atomic_write(path, own=True) as out:
        for rows in gather(parts, band, *key_range(*partition), max(memory // BYTES_A_ROW, 1), gone):
            pairs = np.empty((len(rows), 2), np.uint64)
            count = _link(rows, bits, least, state, hubs, pairs)
            out.write(pairs[:count].tobytes())
            found += count
    return found


@compiled
def _link(rows: Rows, bits: int, least: int, state: Any, hubs: Rows, pairs: Rows) -> int:
    """Fill in the pairs of a block of sorted rows; how many. state, hubs: of the last key of the block before."""
    width = rows.shape[1]
    found = 0
    for row in range(len(rows)):
        if state[0] == 0 or state[1] != rows[row, 0]:
            state[0], state[1], state[2] = _1, rows[row, 0], np.uint64(0)
        count = np.int64(state[2])
        joined = False
        for hub in range(count):
            differ = np.uint64(0)
            for word in range(2, width):
                differ += _ones(rows[row, word] ^ hubs[hub, word - 1])
            if bits - np.int64(differ) >= least:
                pairs[found, 0] = rows[row, 1]
                pairs[found, 1] = hubs[hub, 0]
                found += 1
                joined = True
                break
        if not joined and count < HUBS:
            hubs[count] = rows[row, 1:]
            state[2] = np.uint64(count + 1)
    return found


@compiled
def _ones(value: Any) -> Any:
    """How many bits are set."""
    value -= (value >> _1) & _5
    value = (value & _3) + ((value >> _2) & _3)
    value = (value + (value >> _4)) & _F
    return (value * _BYTES) >> _56
