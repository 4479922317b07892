"""Clusters out of core: in however little memory, those that a union of all pairs in memory gives."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus import clusters, external_sort
from pipeline.corpus.clusters import CLUSTERS, SizedPart, find_clusters
from pipeline.corpus.external_sort import ExternalSort

RNG = np.random.default_rng(5)


def in_memory(count: int, pairs: np.ndarray, sizes: np.ndarray) -> list[tuple[int, int, int]]:
    parents = list(range(count))

    def root(node: int) -> int:
        while parents[node] != node:
            parents[node] = node = parents[parents[node]]
        return node

    for one, other in pairs.tolist():
        parents[root(one)] = root(other)
    members: dict[int, list[int]] = {}
    for node in range(count):
        members.setdefault(root(node), []).append(node)
    found = []
    for group in members.values():
        best = min(group, key=lambda node: (-int(sizes[node]), node))
        found += [(node, best, len(group)) for node in group if len(group) > 1]
    return sorted(found)


def pairs_of(shape: str, count: int) -> np.ndarray:
    numbers = RNG.permutation(count)
    if shape == "none":
        pairs = np.empty((0, 2), np.int64)
    elif shape == "chain":
        pairs = np.stack([numbers[1:], numbers[:-1]], axis=1)
    elif shape == "star":
        pairs = np.stack([numbers[1:], np.full(count - 1, numbers[0])], axis=1)
    else:
        pairs = RNG.integers(0, count, ({"few": count // 3, "many": 2 * count}[shape], 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return np.sort(pairs, axis=1)[:, ::-1].astype(np.uint64)


@pytest.mark.parametrize("shape", ["none", "chain", "star", "few", "many"])
@pytest.mark.parametrize("rows", [50, 100_000])
def test_equal_to_a_union_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, rows: int) -> None:
    """rows: that are in memory; of fifty, sorting takes many runs, and clusters go over many blocks."""
    monkeypatch.setattr(external_sort, "LEAST_ROWS", rows)
    monkeypatch.setattr(clusters, "_READ_BYTES", 16 * rows)
    count = 400
    pairs = pairs_of(shape, count)
    halves = [tmp_path / "1", tmp_path / "2"]
    for path, half in zip(halves, (pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]), strict=True):
        path.write_bytes(half.tobytes())
    sizes = RNG.integers(1, 4, count).astype(np.uint64)
    bounds = [0, 130, 130, count]  # a split may be without records
    parts = [
        SizedPart(low, lambda low=low, high=high: sizes[low:high])  # type: ignore[misc]
        for low, high in itertools.pairwise(bounds)
    ]
    find_clusters(halves, parts, 1, tmp_path / "found")
    assert np.fromfile(tmp_path / "found", CLUSTERS).tolist() == in_memory(count, pairs, sizes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "found"]


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("files", [2, 5, 1000])
def test_sorting_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, files: int) -> None:
    monkeypatch.setattr(external_sort, "LEAST_ROWS", 64)
    monkeypatch.setattr(external_sort, "FAN_IN", files)
    rows = RNG.integers(0, 12, (5000, width)).astype(np.uint64)

    def blocks() -> Iterator[np.ndarray]:
        with ExternalSort(tmp_path, width, 1) as sorting:
            for start in range(0, len(rows), 333):
                sorting.add(rows[start : start + 333])
            for _ in range(2):  # it may be asked twice
                found = list(sorting.sorted_blocks())
            yield from found

    found = list(blocks())
    assert max(map(len, found)) <= 64 + len(rows) // 64 + 1
    assert np.concatenate(found).tolist() == np.unique(rows, axis=0).tolist()
    assert not list(tmp_path.iterdir())


def test_sorting_nothing(tmp_path: Path) -> None:
    with ExternalSort(tmp_path, 2, 1 << 20) as sorting:
        assert list(sorting.sorted_blocks()) == []
