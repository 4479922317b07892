"""The shuffle that takes no memory."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokens.permutation import permute


@given(st.integers(1, 5000), st.integers(0, 2**32 - 1), st.integers(0, 2**40))
def test_every_position_goes_to_its_own_place(size: int, seed: int, number: int) -> None:
    placed = permute(np.arange(size), size, seed, "source", number)
    assert np.array_equal(np.sort(placed), np.arange(size))


@given(st.integers(1, 2**61), st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=50)
def test_huge_sizes_stay_in_range_and_one_by_one_is_the_same(size: int, seed: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)), dtype=np.int64)
    placed = permute(positions, size, seed)
    assert ((placed >= 0) & (placed < size)).all()
    assert placed.tolist() == [int(permute(positions[i : i + 1], size, seed)[0]) for i in range(len(positions))]
    assert len(set(placed.tolist())) == len(set(positions.tolist()))


def test_each_key_shuffles_otherwise_and_looks_random() -> None:
    size = 10_000
    first, second = (permute(np.arange(size), size, 1, "python", number) for number in (0, 1))
    assert (first == second).mean() < 0.01
    assert abs(np.corrcoef(np.arange(size), first)[0, 1]) < 0.05
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05
    assert np.histogram(first[:1000], bins=10, range=(0, size))[0].min() > 60  # a prefix covers all of it


def test_the_order_is_what_it_was() -> None:
    """Resuming an old run depends on these numbers: change them only together with stream.FORMAT."""
    assert permute(np.arange(8), 1000, 1234, "python", 0).tolist() == [542, 101, 234, 597, 344, 250, 171, 869]
