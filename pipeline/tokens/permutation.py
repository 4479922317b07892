"""A seeded shuffle of range(size) that takes no memory: the place of any element is computed by itself.

A Feistel network (Luby & Rackoff 1988) over the grid Z_a x Z_b with a*b >= size is a bijection whatever its round
function; what falls outside `size` is sent through again (cycle walking, Black & Rogaway 2002). As a*b exceeds `size`
by less than a, that is rare.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from math import isqrt

import numpy as np
import numpy.typing as npt

ROUNDS = 6  # each half is changed three times

Indices = npt.NDArray[np.int64]


def permute(positions: Indices, size: int, *key: int | str) -> Indices:
    """Where the shuffle named by `key` puts each position of range(size). 0 < size < 2**62."""
    rows = isqrt(size - 1) + 1
    columns = (size + rows - 1) // rows
    keys = _round_keys(key)
    placed = _feistel(positions, rows, columns, keys)
    outside = np.flatnonzero(placed >= size)
    while len(outside):
        placed[outside] = _feistel(placed[outside], rows, columns, keys)
        outside = outside[placed[outside] >= size]
    return placed


def permute_by_stretches(positions: Indices, size: int, stretch: int, *key: int | str) -> Indices:
    """The same within stretches of so many neighbours, which come one whole stretch after another, in shuffled order;
    what is left of `size` comes last. So only one stretch is needed at a time."""
    whole = size // stretch
    turns, inside = np.divmod(positions, stretch)
    placed = np.empty_like(positions)
    for turn in np.unique(turns).tolist():
        chosen = turns == turn
        length = stretch if turn < whole else size - whole * stretch
        number = int(permute(np.array([turn], dtype=np.int64), whole, *key, "stretches")[0]) if turn < whole else whole
        placed[chosen] = number * stretch + permute(inside[chosen], length, *key, number)
    return placed


def _feistel(positions: Indices, rows: int, columns: int, keys: tuple[int, ...]) -> Indices:
    row, column = (part.astype(np.uint64) for part in np.divmod(positions, columns))
    for number, key in enumerate(keys):
        if number % 2:
            column = (column + _mix(row, key) % np.uint64(columns)) % np.uint64(columns)
        else:
            row = (row + _mix(column, key) % np.uint64(rows)) % np.uint64(rows)
    return (row * np.uint64(columns) + column).astype(np.int64)


def _mix(value: npt.NDArray[np.uint64], key: int) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014): each bit of the input changes half of the output's."""
    value = value ^ np.uint64(key)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@lru_cache(maxsize=1024)
def _round_keys(key: tuple[int | str, ...]) -> tuple[int, ...]:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * n : 8 * n + 8], "little") for n in range(ROUNDS))
