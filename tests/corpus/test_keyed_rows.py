"""Rows that are looked up by key: whatever the size of runs, files and blocks, the same come, in the same order."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import keyed_rows
from pipeline.corpus.keyed_rows import KeyedPart, KeyedRowsWriter, gather, key_range

SPREAD = 0x9E3779B97F4A7C15


def write(path: Path, keys: list[list[int]]) -> None:
    """keys: of each document in each of two lists. Column 2 says which list."""
    with open(path, "wb") as handle:
        writer = KeyedRowsWriter(handle, 2, 3)
        for record, of_lists in enumerate(keys):
            for number, key in enumerate(of_lists):
                writer.buffer[number, writer.used] = (key * SPREAD % 2**64, record, number)
            writer.add()
        writer.flush()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), max_size=9), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 8),
    st.integers(1, 5),
    st.sets(st.integers(0, 20)),
    st.integers(0, 9),
)
def test_equal_to_the_obvious_way(
    files: list[list[list[int]]], run: int, most: int, count: int, gone: set[int], records: int
) -> None:
    with TemporaryDirectory() as folder, mock.patch.object(keyed_rows, "RUN_ROWS", run):
        parts, first = [], 0
        flags = np.zeros(sum(map(len, files)) + 1, np.bool_)
        flags[[place for place in gone if place < len(flags)]] = True
        for number, keys in enumerate(files):
            write(path := Path(folder) / str(number), keys)
            parts.append(KeyedPart(path, 2, 3, first, records))
            first += len(keys)
        for number in range(2):
            wanted = sorted(
                (of_lists[number] * SPREAD % 2**64, part.first + record, number)
                for part, keys in zip(parts, files, strict=True)
                for record, of_lists in enumerate(keys)
                if record < records and not flags[part.first + record]
            )
            blocks = [rows for n in range(count) for rows in gather(parts, number, *key_range(n, count), most, flags)]
            assert [tuple(row) for rows in blocks for row in rows.tolist()] == wanted
            assert all(len(rows) <= most for rows in blocks)
