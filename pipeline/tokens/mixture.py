"""Which source comes next: shares exact at every moment, computed for any place in the endless order by itself.

Sources are the leaves of a binary tree. At a node whose left side is to get `left` of every `total` arrivals, the
first K arrivals send round(K * left / total) to the left: integers throughout, so nothing drifts, and after `total`
arrivals at the root each source has had exactly its quota. In between, each rounding is off by at most 1/2 and passes
on only the share of it that goes its way; as a node is split as evenly as its quotas allow (or its one heavy quota
is set apart), a source is never off by more than 3/2, and seldom by more than 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class _Node:
    """total: sum of the quotas below; source: of a leaf."""

    total: int
    source: int = -1
    left: _Node | None = None
    right: _Node | None = None


class Mixture:
    """An endless order of sources in which source s has `quotas[s]` of every `sum(quotas)` places."""

    def __init__(self, quotas: list[int]) -> None:
        """quotas: positive, one a source; their sum is one epoch."""
        self.epoch = sum(quotas)
        self._root = _tree(sorted(((quota, source) for source, quota in enumerate(quotas)), reverse=True))

    def sources(self, first: int, count: int) -> list[tuple[int, int, npt.NDArray[np.int64]]]:
        """Who has places first … first+count-1.

        Returns (source, n, rows) for each source that has any: its n-th, n+1-st … items (counted from the beginning
        of the order) go to `rows`, numbered from 0 at `first`.
        """
        found: list[tuple[int, int, npt.NDArray[np.int64]]] = []
        waiting = [(self._root, first, np.arange(count, dtype=np.int64))]
        while waiting:
            node, begin, rows = waiting.pop()
            if node.left is None or node.right is None:
                found.append((node.source, begin, rows))
                continue
            # arrivals before `begin` that went left, as exact integers of any size; then on from the remainder
            passed, remainder = divmod(begin * node.left.total + node.total // 2, node.total)
            steps = (remainder + np.arange(len(rows) + 1, dtype=np.int64) * node.left.total) // node.total
            goes_left = np.diff(steps).astype(bool)
            for child, start, chosen in ((node.left, passed, goes_left), (node.right, begin - passed, ~goes_left)):
                if chosen.any():
                    waiting.append((child, start, rows[chosen]))
        return found


def _tree(quotas: list[tuple[int, int]]) -> _Node:
    """A tree over (quota, source), heaviest first; each node is split where its two sides are nearest to equal."""
    total = sum(quota for quota, _ in quotas)
    if len(quotas) == 1:
        return _Node(total, quotas[0][1])
    sums = np.cumsum([quota for quota, _ in quotas], dtype=object)[:-1]
    cut = min(range(len(sums)), key=lambda index: abs(2 * sums[index] - total)) + 1
    return _Node(total, left=_tree(quotas[:cut]), right=_tree(quotas[cut:]))
