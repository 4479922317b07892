"""The training stream: window k of an endless, shuffled, weighted order, as a pure function of k.

The tokens of each source are cut into windows of `seq_len + 1` tokens with stride `seq_len` (the last token of one is
the first of the next, so that each token is a target once); they may span documents, members and shards. An *epoch* is
one pass over sources of weight 1; a source of weight w is passed over w times in it. Which source is next: mixture.py;
which of its windows: permutation.py, keyed by (seed, source, pass), new in each pass. So the state of a run is k, a few
integers on whatever number of ranks; nothing is lost or repeated, and starting anywhere takes no time.

At a source's end less than one window remains: fewer than seq_len tokens, counted in `unused`. Or the windows are of
documents that were packed (`packed`, packing.py): then all else is the same, and no token is left over.

A stream may begin where another one ended (`begin`): with other weights, each source goes on with its own next window.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.files import fingerprint
from pipeline.tokens.data import TokenData
from pipeline.tokens.integrity import BadShard
from pipeline.tokens.mixture import Mixture
from pipeline.tokens.permutation import permute, permute_by_stretches
from pipeline.tokens.windows import JoinedWindows, PackedWindows, SourceWindows

Windows = npt.NDArray[np.int64]
Places = list[tuple[str, Windows, Windows]]
FORMAT = 2  # of the order; raised when the same settings would give another
BLOCK = 1024  # windows whose order is worked out together
LEFT_OUT = -1  # every token of a window that is left out


class Stream:
    """Windows for training. The same tokens and arguments give the same window k, everywhere.

    windows: in an epoch; unused: tokens at the sources' ends that fill no window; fingerprint: names the order;
    counts: source → its windows; quotas: source → its windows in an epoch; padding: share of an epoch's targets that is
    none, where documents were packed. left_out: files whose windows are not read.
    """

    def __init__(
        self,
        data: TokenData,
        seq_len: int,
        seed: int,
        weights: Mapping[str, float],
        stretch: int = 0,
        begin: Mapping[str, int] | None = None,
        packed: Mapping[str, PackedWindows] | None = None,
    ) -> None:
        """weights: of sources by name; 1 where a name is missing. stretch: windows of a source among which the order
        is shuffled (permute_by_stretches); 0: all. begin: source → windows of it that were used before this stream.
        packed: source → windows, of `pack` with the same seq_len; else the tokens are cut where windows end.

        Raises: DataError when a source fills no window, or there is none.
        """
        names = data.sources("train")
        if not names:
            raise DataError(f"{data.folder}: no tokens to train on; the text tars hold no training text")
        self.data, self.seq_len, self.seed, self.stretch = data, seq_len, seed, stretch
        self._packed = bool(packed)
        self._windows: dict[str, SourceWindows] = {}
        for name in names:
            tokens = data.source("train", name)
            self._windows[name] = packed[name] if packed else JoinedWindows(tokens, seq_len)
            if not len(self._windows[name]):
                raise DataError(
                    f"{data.folder}: source {name} has {len(tokens):,} tokens, less than one window of "
                    f"{seq_len + 1:,}; lower pretrain.seq_len, or leave the source out"
                )
        self.counts = {name: len(windows) for name, windows in self._windows.items()}
        self.unused = sum(windows.unused for windows in self._windows.values())
        self.quotas = _quotas(self.counts, weights)
        filled = sum(
            quota * (len(self._windows[name].tokens) / self.counts[name]) for name, quota in self.quotas.items()
        )
        self.padding = 1 - filled / (sum(self.quotas.values()) * seq_len) if packed else 0.0
        self.begin = {name: (begin or {}).get(name, 0) for name in names}
        self.left_out: set[str] = set()
        self._names = names
        self._mixture = Mixture([self.quotas[name] for name in names])
        self._order = lru_cache(maxsize=4)(self._order_of)
        self.windows = self._mixture.epoch
        self.about: dict[str, object] = {
            "format": FORMAT,
            "tokens": data.fingerprint,
            "seq_len": seq_len,
            "seed": seed,
            "quotas": self.quotas,
            "stretch": stretch,
            "begin": self.begin,
        }
        if packed:
            self.about["packing"] = "best_fit"
        if len(names) > 2:
            self.about["mixture"] = "earliest_first"  # mixture.py; it was another order before
        self.fingerprint = fingerprint(self.about)

    def batch(self, first: int, count: int, skip_bad: bool = False) -> Windows:
        """Windows k = first … first+count-1: (count, seq_len + 1). Those of files in `left_out` are all LEFT_OUT.

        skip_bad: so are windows of a shard that cannot be read, of which data.integrity.problems tells then.
        Raises: DataError when a shard is missing, cut or damaged so that it holds what is no token, or found so since.
        """
        out = np.empty((count, self.seq_len + 1), dtype=np.int64)
        for name, all_rows, windows in self.places(first, count):
            rows, wanted = all_rows, windows
            if self.left_out:
                bad = self._bad(name, windows)
                out[rows[bad]] = LEFT_OUT
                rows, wanted = rows[~bad], windows[~bad]
            try:
                self._windows[name].gather(wanted, out, rows)
            except BadShard:
                if not skip_bad:
                    raise
                self._gather_what_can_be(name, wanted, out, rows)
        problems = self.data.integrity.problems
        if problems and not skip_bad and (found := sorted(problems.keys() - self.left_out)):
            raise BadShard(found[0], problems[found[0]])
        return out

    def _gather_what_can_be(self, name: str, windows: Windows, out: Windows, rows: Windows) -> None:
        for row in range(len(rows)):
            one = slice(row, row + 1)
            try:
                self._windows[name].gather(windows[one], out, rows[one])
            except BadShard:
                out[rows[one]] = LEFT_OUT

    def targets(self, first: int, count: int) -> int:
        """Tokens that are targets in windows first … first+count-1, but for those in a file of `left_out`."""
        if not self.left_out and not self._packed:
            return count * self.seq_len
        found = 0
        for name, _, windows in self.places(first, count):
            kept = windows[~self._bad(name, windows)] if self.left_out else windows
            found += self._windows[name].targets(kept)
        return found

    def want(self, first: int, count: int) -> None:
        """Say that these windows will be asked for soon: remote shards are fetched in the background."""
        if self.data.cache is None:
            return
        for name, _, windows in self.places(first, count):
            _, begins, ends = self._windows[name].shards(windows)
            shards = self._windows[name].tokens.shards
            wanted = [shards[number] for number in np.unique(np.concatenate([begins, ends])).tolist()]
            self.data.want(shard for shard in wanted if shard.file not in self.left_out)

    def places(self, first: int, count: int) -> Places:
        """Where windows first … first+count-1 come from: (source, rows of the batch, the source's window numbers)."""
        pieces, at = [], first
        while at < first + count:
            block, begin = divmod(at, BLOCK)
            taken = min(BLOCK - begin, first + count - at)
            pieces.append([column[begin : begin + taken] for column in self._order(block)])
            at += taken
        if not pieces:
            return []
        sources, windows = (np.concatenate(column) for column in zip(*pieces, strict=True))
        if len(self._names) == 1:
            return [(self._names[0], np.arange(count, dtype=np.int64), windows)]
        chosen = ((source, np.flatnonzero(sources == source)) for source in np.unique(sources).tolist())
        return [(self._names[source], rows, windows[rows]) for source, rows in chosen]

    def _order_of(self, block: int) -> tuple[npt.NDArray[np.int32], Windows]:
        """Sources and window numbers of windows block · BLOCK …, each (BLOCK,): many cost little more than one."""
        sources, numbers = np.empty(BLOCK, dtype=np.int32), np.empty(BLOCK, dtype=np.int64)
        for source, begin, rows in self._mixture.sources(block * BLOCK, BLOCK):
            name = self._names[source]
            sources[rows] = source
            numbers[rows] = self._shuffled(name, self.begin[name] + begin, len(rows))
        return sources, numbers

    def used(self, k: int) -> dict[str, int]:
        """Windows of each source that windows 0 … k-1 and what was before them (`begin`) have used."""
        taken = self._mixture.counts(k)
        return {name: self.begin[name] + taken[source] for source, name in enumerate(self._names)}

    def _bad(self, name: str, windows: Windows) -> npt.NDArray[np.bool_]:
        """Which windows of a source lie in a file of `left_out`, wholly or in part."""
        of = self._windows[name]
        bad = np.cumsum([0] + [shard.file in self.left_out for shard in of.tokens.shards])
        owners, begins, ends = of.shards(windows)
        return np.bincount(owners[bad[ends + 1] > bad[begins]], minlength=len(windows)) > 0

    def _shuffled(self, name: str, begin: int, count: int) -> Windows:
        """Items begin … begin+count-1 of a source's own endless order: window numbers, (count,)."""
        size = self.counts[name]
        parts = []
        while count:
            number, position = divmod(begin, size)
            taken = min(count, size - position)
            positions = np.arange(position, position + taken, dtype=np.int64)
            if self.stretch:
                parts.append(permute_by_stretches(positions, size, self.stretch, self.seed, name, number))
            else:
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
