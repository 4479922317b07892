"""Which source comes next: shares exact to one window at every moment, computed for any place in the endless order.

Two sources: of the first K places round(K · share) are the first one's, in integers, so nothing drifts, and the shares
are exact to half a window. More: timetable.py, exact to less than one window. In both cases each source has exactly its
quota in an epoch. A source so rare that it has less than one place in RAREST would make a timetable's blocks too long:
all such sources together are one side of a pair, and the rest the other, which adds half a window (for each such pair).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pipeline.tokens.timetable import Timetable

RAREST = 1 << 22

Turns = list[tuple[int, int, npt.NDArray[np.int64]]]


class Mixture:
    """An endless order of sources in which source s has `quotas[s]` of every `sum(quotas)` places.

    bound: the count of a source in the first k places is never further than this from k · quota / sum.
    """

    def __init__(self, quotas: list[int]) -> None:
        """quotas: positive, one a source; their sum is one epoch."""
        self.epoch = sum(quotas)
        self.bound = 0.0
        self._quotas = quotas
        self._pair: list[tuple[list[int], Mixture]] = []  # sources of a side, their mixture
        self._timetable: Timetable | None = None
        first = [source for source, quota in enumerate(quotas) if quota * RAREST < self.epoch]
        if len(quotas) == 2:
            first = [0]
        if first:
            second = [source for source in range(len(quotas)) if source not in first]
            self._pair = [(side, Mixture([quotas[source] for source in side])) for side in (first, second)]
            self.bound = max(mixture.bound for _, mixture in self._pair) + 0.5
        elif len(quotas) > 2:
            from pipeline.tokens.timetable import Timetable  # numba, only where it is needed

            self._timetable = Timetable(quotas)
            self.bound = 1.0

    def sources(self, first: int, count: int) -> Turns:
        """Who has places first … first+count-1.

        Returns (source, n, rows) for each source that has any: its n-th, n+1-st … items (counted from the beginning
        of the order) go to `rows`, numbered from 0 at `first`.
        """
        if not count:
            return []
        if self._timetable is not None:
            return self._by_timetable(self._timetable, first, count)
        if not self._pair:
            return [(0, first, np.arange(count, dtype=np.int64))]
        # arrivals before `first` that went to the first side, as exact integers of any size; then on from the remainder
        share = self._pair[0][1].epoch
        passed, remainder = divmod(first * share + self.epoch // 2, self.epoch)
        steps = (remainder + np.arange(count + 1, dtype=np.int64) * share) // self.epoch
        goes_first = np.diff(steps).astype(bool)
        found: Turns = []
        for (side, mixture), start, chosen in zip(
            self._pair, (passed, first - passed), (goes_first, ~goes_first), strict=True
        ):
            rows = np.flatnonzero(chosen)
            if len(rows):
                found += [(side[source], begin, rows[own]) for source, begin, own in mixture.sources(start, len(rows))]
        return found

    def counts(self, k: int) -> list[int]:
        """How many of places 0 … k-1 each source has."""
        epochs, place = divmod(k, self.epoch)
        if self._timetable is not None:
            _, within, _ = self._timetable.turns(place)
        elif not self._pair:
            within = [place]
        else:
            within = [0] * len(self._quotas)
            passed = (place * self._pair[0][1].epoch + self.epoch // 2) // self.epoch
            for (side, mixture), arrived in zip(self._pair, (passed, place - passed), strict=True):
                for source, had in zip(side, mixture.counts(arrived), strict=True):
                    within[source] = had
        return [epochs * quota + had for quota, had in zip(self._quotas, within, strict=True)]

    def _by_timetable(self, timetable: Timetable, first: int, count: int) -> Turns:
        parts, begins, at = [], self.counts(first), first
        while at < first + count:
            turns, _, left = timetable.turns(at % self.epoch)
            taken = min(left, first + count - at)
            parts.append(turns[:taken])
            at += taken
        sources = np.concatenate(parts)
        return [(source, begins[source], np.flatnonzero(sources == source)) for source in np.unique(sources).tolist()]
