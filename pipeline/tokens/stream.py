"""The training stream: window k of an endless, shuffled, weighted order, as a pure function of k.

The tokens of each source are cut into windows of `seq_len + 1` tokens with stride `seq_len` (the last token of one is
the first of the next, so that each token is a target once); they may span documents, members and shards. An *epoch* is
one pass over sources of weight 1; a source of weight w is passed over w times in it. Which source is next: mixture.py;
which of its windows: permutation.py, keyed by (seed, source, pass), new in each pass. So the state of a run is k, a few
integers on whatever number of ranks; nothing is lost or repeated, and starting anywhere takes no time.

At a source's end less than one window remains: fewer than seq_len tokens, counted in `unused`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.files import fingerprint
from pipeline.tokens.data import TokenData
from pipeline.tokens.mixture import Mixture
from pipeline.tokens.permutation import permute

FORMAT = 1  # of the order; raised when the same settings would give another


class Stream:
    """Windows for training. The same (tokens, seq_len, seed, weights) give the same window k, everywhere.

    windows: in an epoch; unused: tokens at the sources' ends that fill no window; fingerprint: names the order;
    counts: source → its windows; quotas: source → its places in an epoch.
    """

    def __init__(self, data: TokenData, seq_len: int, seed: int, weights: Mapping[str, float]) -> None:
        """weights: of sources by name; 1 where a name is missing.

        Raises: DataError when a source fills no window, or there is none.
        """
        names = data.sources("train")
        if not names:
            raise DataError(f"{data.folder}: no tokens to train on; the text tars hold no training text")
        self.seq_len, self.seed = seq_len, seed
        self.counts: dict[str, int] = {}
        for name in names:
            tokens = data.tokens("train", name)
            self.counts[name] = (tokens - 1) // seq_len
            if not self.counts[name]:
                raise DataError(
                    f"{data.folder}: source {name} has {tokens:,} tokens, less than one window of {seq_len + 1:,}; "
                    "lower pretrain.seq_len, or leave the source out"
                )
        self.unused = data.tokens("train") - sum(count * seq_len for count in self.counts.values())
        self.quotas = _quotas(self.counts, weights)
        self._names = names
        self._tokens = {name: data.source("train", name) for name in names}
        self._mixture = Mixture([self.quotas[name] for name in names])
        self.windows = self._mixture.epoch
        self.fingerprint = fingerprint([FORMAT, data.fingerprint, seq_len, seed, self.quotas])

    def batch(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Windows k = first … first+count-1: (count, seq_len + 1).

        Raises: DataError when a shard is missing or cut.
        """
        out = np.empty((count, self.seq_len + 1), dtype=np.int64)
        for name, rows, windows in self.places(first, count):
            self._tokens[name].gather(windows * self.seq_len, out, rows)
        return out

    def places(self, first: int, count: int) -> list[tuple[str, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Where windows first … first+count-1 come from: (source, rows of the batch, the source's window numbers)."""
        found = []
        for source, begin, rows in self._mixture.sources(first, count):
            name = self._names[source]
            found.append((name, rows, self._shuffled(name, begin, len(rows))))
        return found

    def _shuffled(self, name: str, begin: int, count: int) -> npt.NDArray[np.int64]:
        """Items begin … begin+count-1 of a source's own endless order: window numbers, (count,)."""
        size = self.counts[name]
        parts = []
        while count:
            number, position = divmod(begin, size)
            taken = min(count, size - position)
            positions = np.arange(position, position + taken, dtype=np.int64)
            parts.append(permute(positions, size, self.seed, name, number))
            begin, count = begin + taken, count - taken
        return np.concatenate(parts)


def _quotas(counts: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """Places of each source in an epoch: weight x windows, rounded, at least one.

    Where all weights are below 1 they are raised so that the largest is 1, lest rounding distort small shares.
    """
    chosen = {name: float(weights.get(name, 1.0)) for name in counts}
    for name, weight in chosen.items():
        if not 0 < weight < float("inf"):
            raise DataError(f"source {name}: weight {weight} must be a positive number")
    largest = min(max(chosen.values()), 1.0)
    return {name: max(1, round(chosen[name] / largest * count)) for name, count in counts.items()}
