from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.deduplicate import INDEX, HeldOut, IndexedPart, find_duplicates, text_hash

SPREAD = 0x9E3779B97F4A7C15  # spreads small numbers over all 64-bit hashes


def write_parts(folder: Path, parts: list[list[int]], budgets: list[int]) -> list[IndexedPart]:
    """An index for each part: document n has hash (n · SPREAD) and 10 bytes."""
    found = []
    for number, documents in enumerate(parts):
        rows = [(n * SPREAD % 2**64, n, 10, 10 * (place + 1), place) for place, n in enumerate(documents)]
        index = np.array(rows, dtype=INDEX)
        index = index[np.lexsort((index["record"], index["low"], index["high"]))]
        np.save(path := folder / f"{number}.npy", index)
        found.append(IndexedPart(path, len(documents), budgets[number]))
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 12), max_size=8), min_size=1, max_size=4),
    st.integers(1, 50),
    st.floats(0, 1),
    st.none() | st.integers(1, 100),
    st.integers(0, 100),
)
def test_equal_to_the_obvious_way(
    parts: list[list[int]], rows: int, share: float, max_bytes: int | None, budget: int
) -> None:
    """Whatever the size of a partition: first copies stay, and the held-out set is what hashes below the limit."""
    with TemporaryDirectory() as folder:
        indexed = write_parts(Path(folder), parts, [budget] * len(parts))
        flags = np.zeros(sum(map(len, parts)), dtype=np.bool_)
        held_out = HeldOut(share, max_bytes)
        count = find_duplicates(indexed, flags, held_out, drop_duplicates=True, partition_rows=rows)
        limit = held_out.decide()
    seen: set[int] = set()
    wanted = []
    for part in parts:
        for place, n in enumerate(part):
            counts = 10 * (place + 1) <= budget
            wanted.append(counts and n in seen)
            seen |= {n} if counts else set()
    assert flags.tolist() == wanted
    assert count == sum(min(len(part), budget // 10) for part in parts)
    hashes = sorted(n * SPREAD % 2**64 for n in seen)
    chosen = [value for value in hashes if value < limit]
    asked = [value for value in hashes if value < int(share * 2**64)]
    if max_bytes is not None:
        asked = asked[: max_bytes // 10]
    if len(hashes) > 1 and share > 0 and not asked:
        asked = hashes[:1]
    if len(hashes) > 1 and share < 1 and asked == hashes:
        asked = hashes[:-1]
    if len(hashes) == 1 and share < 1:
        asked = []
    assert chosen == asked


def test_duplicates_may_stay_and_go_to_the_same_side(tmp_path: Path) -> None:
    indexed = write_parts(tmp_path, [[1, 2, 1], [2, 3]], [1000, 1000])
    flags = np.zeros(5, dtype=np.bool_)
    held_out = HeldOut(0.5, 10)
    find_duplicates(indexed, flags, held_out, drop_duplicates=False, partition_rows=2)
    assert not flags.any()
    assert held_out.decide() == sorted(n * SPREAD % 2**64 for n in (1, 2, 3))[0] + 1


def test_hash_is_of_the_text_and_stable() -> None:
    assert text_hash("text") == text_hash("text") != text_hash("texts")
    assert text_hash("") == (0xCAE66941D9EFBD40, 0x4E4D88758EA67670)
