"""Whose turn is it among many? Every source stays within one place of its share at every moment, from any place on.

The j-th turn of a source that has q of every Q places may be taken from place floor((j-1)·Q/q) on and must be before
place ceil(j·Q/q): then its count is never a whole place from its share. At each place, of the turns that may be taken,
the one that is due first is taken. That keeps all limits because the shares themselves, as fractions of turns, keep
them (Baruah et al. 1996, "Proportionate Progress"; earliest deadline first is optimal for turns of one length).

That order is worked out turn by turn, and a place in the middle of ten trillion tokens would have to wait for all
those before it. So the counts at the borders of *blocks* are fixed beforehand, each by itself: at the border before,
shares are rounded to whole turns, the one that must be next first, and the order is followed from there for one block.
A block is longer than any source's limits lie apart, so the block between two such borders can always be filled: limits
that touch its beginning are kept because the rounding and the order after it keep them, those at its end because that
order got there. Any place costs three blocks at most, some 20 ns a place for a dozen sources.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipeline.corpus.compiled import compiled
from pipeline.errors import DataError

SHORTEST = 1 << 16  # places of a block, so that a block costs more than its beginning
MARK = 1 << 10  # places after which the counts are kept
NEVER = np.int64(2**62)

Integers = npt.NDArray[np.int64]


class Timetable:
    """The turns of sources that have `quotas[s]` of every `sum(quotas)` places, one period. Memory: two bytes a place
    of three blocks."""

    def __init__(self, quotas: list[int]) -> None:
        """quotas: positive, one a source; 65,536 sources at most."""
        if len(quotas) > 1 << 16:
            raise DataError(
                f"{len(quotas):,} sources: a mix has {1 << 16:,} at most; join the small ones in the recipe"
            )
        self.period = sum(quotas)
        self._quotas = quotas
        self._block = max(SHORTEST, self.period // min(quotas) + 2)
        self._blocks = max(1, self.period // self._block)
        self._border = lru_cache(maxsize=4)(self._counts_at_border)
        self._filled = lru_cache(maxsize=2)(self._fill)

    def turns(self, place: int) -> tuple[npt.NDArray[np.uint16], list[int], int]:
        """The sources from a place (0 … period-1) on, as far as its block goes; what each had before; their number.

        Returns (sources, counts, left): sources: (left,), left at least 1.
        """
        block = min(place // self._block, self._blocks - 1)
        turns, marks = self._filled(block)
        at = place - block * self._block
        mark = at // MARK
        since = np.bincount(turns[mark * MARK : at], minlength=len(self._quotas))
        counts = (marks[mark] + since).tolist()
        before = self._border(block)
        return turns[at:], [count + more for count, more in zip(before, counts, strict=True)], len(turns) - at

    def _fill(self, block: int) -> tuple[npt.NDArray[np.uint16], Integers]:
        """The sources of a block, (places,), and how many of each were before every MARK-th place of it."""
        begin, before = block * self._block, self._border(block)
        after = self._border(block + 1)
        end = self.period if block + 1 == self._blocks else begin + self._block
        left = np.array([each - other for each, other in zip(after, before, strict=True)], dtype=np.int64)
        turns, marks, _ = self._take(begin, before, left, end - begin)
        return turns, marks

    def _counts_at_border(self, block: int) -> list[int]:
        """What each source has before a block begins."""
        if block == 0:
            return [0] * len(self._quotas)
        if block == self._blocks:
            return self._quotas
        begin = (block - 1) * self._block
        counts = self._rounded(begin)
        endless = np.full(len(counts), NEVER, dtype=np.int64)
        _, _, taken = self._take(begin, counts, endless, self._block)
        return [count + more for count, more in zip(counts, taken.tolist(), strict=True)]

    def _rounded(self, place: int) -> list[int]:
        """Shares at a place as whole turns: those begun that must be finished first count as taken."""
        counts = [place * quota // self.period for quota in self._quotas]
        begun = [source for source, quota in enumerate(self._quotas) if place * quota % self.period]
        begun.sort(key=lambda source: (-(-(counts[source] + 1) * self.period // self._quotas[source]), source))
        for source in begun[: place - sum(counts)]:
            counts[source] += 1
        return counts

    def _take(
        self, begin: int, counts: list[int], left: Integers, places: int
    ) -> tuple[npt.NDArray[np.uint16], Integers, Integers]:
        """The order from `begin` on, where each source had `counts` and takes `left` turns at most; the counts at every
        MARK-th place of it, and at its end."""
        # exact at any size: Python's integers, from which only distances to `begin` go on
        floors = [divmod(count * self.period, quota) for count, quota in zip(counts, self._quotas, strict=True)]
        nexts = [divmod((count + 1) * self.period, quota) for count, quota in zip(counts, self._quotas, strict=True)]
        steps = [divmod(self.period, quota) for quota in self._quotas]
        turns = np.empty(places, dtype=np.uint16)
        marks = np.empty((-(-places // MARK), len(counts)), dtype=np.int64)
        taken = _earliest_first(
            np.array([floor - begin for floor, _ in floors], dtype=np.int64),
            np.array([floor - begin for floor, _ in nexts], dtype=np.int64),
            np.array([rest for _, rest in nexts], dtype=np.int64),
            np.array([whole for whole, _ in steps], dtype=np.int64),
            np.array([rest for _, rest in steps], dtype=np.int64),
            np.array(self._quotas, dtype=np.int64),
            left,
            turns,
            marks,
        )
        return turns, marks, taken


@compiled
def _earliest_first(
    release: Integers,
    after: Integers,
    rest: Integers,
    step: Integers,
    step_rest: Integers,
    quotas: Integers,
    left: Integers,
    turns: npt.NDArray[np.uint16],
    marks: Integers,
) -> Integers:
    """Fill `turns` and `marks`; returns how many turns each took. release: place from which a source's next turn may be
    taken; after, rest: whole places and the rest (in 1/quota) at which it must have been; step, step_rest: from one
    turn of a source to its next."""
    taken = np.zeros(len(quotas), dtype=np.int64)
    for source in range(len(quotas)):
        if not left[source]:
            release[source] = NEVER
    for place in range(len(turns)):
        if place % MARK == 0:
            marks[place // MARK] = taken
        chosen, earliest = -1, NEVER
        for source in range(len(quotas)):
            if release[source] <= place:
                deadline = after[source] + (rest[source] > 0)
                if deadline < earliest:
                    chosen, earliest = source, deadline
        turns[place] = chosen
        taken[chosen] += 1
        left[chosen] -= 1
        release[chosen] = after[chosen] if left[chosen] else NEVER
        after[chosen] += step[chosen]
        rest[chosen] += step_rest[chosen]
        if rest[chosen] >= quotas[chosen]:
            rest[chosen] -= quotas[chosen]
            after[chosen] += 1
    return taken
