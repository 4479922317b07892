"""The order in which examples are seen: shuffled anew in each epoch, neighbours of like length, each exactly once.

Texts of unlike length waste work on padding. So an epoch's shuffled examples are cut into pools of a few dozen batches;
each pool is sorted by length and cut into batches, and all batches of the epoch are shuffled again. One batch of an
epoch may be short: no example is repeated or left out to fill it. Everything is a pure function of (lengths, batch,
seed, step), so there is nothing to save and nothing to resume.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipeline.tokens.permutation import permute

POOL = 32  # batches that are sorted by length together
Numbers = npt.NDArray[np.int64]


class Epochs:
    """Batches of example numbers. lengths: tokens of each example; batch: examples a step."""

    def __init__(self, lengths: npt.ArrayLike, batch: int, seed: int) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch, self.seed = batch, seed
        self.steps = -(-len(self.lengths) // batch)  # an epoch's
        self._order = lru_cache(maxsize=2)(self._make_order)

    def examples(self, step: int) -> Numbers:
        """(batch,) int64: the examples of a step, counted over all epochs; -1 where the batch is short."""
        epoch, within = divmod(step, self.steps)
        found: Numbers = self._order(epoch)[within]
        return found

    def example(self, sequence: int) -> int:
        """The example at place `sequence % batch` of step `sequence // batch`; -1 for none."""
        return int(self.examples(sequence // self.batch)[sequence % self.batch]) if sequence >= 0 else -1

    def _make_order(self, epoch: int) -> Numbers:
        """(steps, batch): the whole epoch."""
        count = len(self.lengths)
        shuffled = permute(np.arange(count), count, "examples", self.seed, epoch)
        pools = [shuffled[first : first + POOL * self.batch] for first in range(0, len(shuffled), POOL * self.batch)]
        ordered = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        padded = np.full(self.steps * self.batch, -1, dtype=np.int64)
        padded[: len(ordered)] = ordered
        order = permute(np.arange(self.steps), self.steps, "batches", self.seed, epoch)
        batches: Numbers = padded.reshape(self.steps, self.batch)[order]
        return batches


def padded_length(longest: int, limit: int) -> int:
    """A multiple of 8 that holds `longest` tokens: few shapes, and what matrix units like; at most `limit`."""
    return max(1, min(-(-longest // 8) * 8, limit))
