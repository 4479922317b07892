"""The first step of the shard stage: all splits, or as many of a source as `max_bytes` asks for, are read and judged.

A split is read in the same way whoever reads it and whenever, so that reading more than is needed costs time only.
Which splits count, and how much of the last, is settled by their order when all are there (`read_all`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.cluster.job_array import Share
from pipeline.corpus.decision import ReadSplit
from pipeline.corpus.read_part import PACKED, PACKED_SUFFIXES, ReadTask, read_part, read_summary
from pipeline.corpus.sources import Split, plan_splits
from pipeline.corpus.workers import Workers
from pipeline.errors import DataError
from pipeline.progress import log, progress
from pipeline.recipe import Corpus, Source

Planned = tuple[int, Source, Split]  # a split with its position among all
_UNBOUNDED = 1 << 62


def plan(corpus: Corpus) -> list[tuple[Source, Split]]:
    """All splits of the sources, in order. Raises: DataError when a source is not there, or there is none."""
    if not corpus.sources:
        raise DataError("corpus.sources is empty; name at least one source of text in the recipe")
    return [(source, split) for source in corpus.sources for split in plan_splits(source, corpus.split_bytes)]


def read_all(corpus: Corpus, parts: Path, splits: Sequence[tuple[Source, Split]], workers: Workers) -> list[ReadSplit]:
    """Read what has not been read, in rounds: text may be less than what is stored. Returns the splits that count.

    Workers may have read further than the bound when it is met; which splits count is decided by their order alone.
    """
    left = {source.name: source.max_bytes or _UNBOUNDED for source in corpus.sources}
    read: dict[str, list[ReadSplit]] = {source.name: [] for source in corpus.sources}
    ahead = [(position, source, split) for position, (source, split) in enumerate(splits)]
    with progress("shard: read", sum(split.bytes for _, _, split in _needed(ahead, left)), "B") as bar:
        while now := _needed(ahead, left):
            taken = {position for position, _, _ in now}
            ahead = [one for one in ahead if one[0] not in taken]
            asked: deque[Planned] = deque()
            for summary in workers.run(read_part, _tasks(corpus, parts, now, left, asked), bar):
                position, source, split = asked.popleft()
                if (budget := left[source.name]) > 0:
                    read[source.name].append(ReadSplit(position, split, summary, budget))
                left[source.name] = budget - summary.bytes
    for source in corpus.sources:
        if not any(part.summary.records for part in read[source.name]):
            log.warning(f"source {source.name}: no document in it{_cut_short(source, left[source.name])}")
    found = [part for source in corpus.sources for part in read[source.name]]
    if not any(part.summary.records for part in found):
        raise DataError(
            f"no document was read from {', '.join(left)}: the corpus is empty; look at the paths in corpus.sources"
        )
    return found


def _needed(ahead: Sequence[Planned], left: Mapping[str, int]) -> list[Planned]:
    """The first splits of each source whose stored bytes reach what is left to read of it."""
    expected = dict.fromkeys(left, 0)
    needed = []
    for one in ahead:
        _, source, split = one
        if expected[source.name] < left[source.name]:
            expected[source.name] += max(split.bytes, 1)
            needed.append(one)
    return needed


def _tasks(
    corpus: Corpus, parts: Path, splits: Sequence[Planned], left: Mapping[str, int], asked: deque[Planned]
) -> Iterator[ReadTask]:
    """Tasks for splits, until their source has no bytes left; each split asked for is appended to `asked`."""
    for one in splits:
        _, source, split = one
        if left[source.name] > 0:
            asked.append(one)
            yield ReadTask(parts, source, split, corpus)


def _cut_short(source: Source, left: int) -> str:
    return f"; its first is larger than max_bytes={source.max_bytes}" if left < 0 else ""


# --- a share of it -------------------------------------------------------------------------------------------------


def read_share(
    corpus: Corpus, parts: Path, splits: Sequence[tuple[Source, Split]], share: Share, workers: Workers
) -> int:
    """Read a task's share of the splits that seem to be needed. Returns how many were read now.

    How much text lies in the splits of a source with `max_bytes` is learnt from those that were read, by whichever
    task; where the guess falls short, `read_all` reads the rest.
    """
    chosen = share.of(splits)
    mine = {split.name for _, split in chosen}
    bounded = {source.name for source in corpus.sources if source.max_bytes is not None}
    count = 0
    while True:
        unread = [one for one in chosen if one[0].name not in bounded and read_summary(parts, one[1]) is None]
        for source in corpus.sources:
            if source.name in bounded:
                own = [split for one, split in splits if one.name == source.name]
                unread += [(source, split) for split in _seem_needed(source, parts, own) if split.name in mine]
        if not unread:
            return count
        tasks = (ReadTask(parts, source, split, corpus) for source, split in unread)
        with progress("shard: read", sum(split.bytes for _, split in unread), "B") as bar:
            count += sum(1 for _ in workers.run(read_part, tasks, bar))


def _seem_needed(source: Source, parts: Path, splits: Sequence[Split]) -> Iterator[Split]:
    """Splits of a source with `max_bytes` that nobody has read yet, and that are needed as far as one can tell now."""
    known = {split.number: summary for split in splits if (summary := read_summary(parts, split))}
    stored = sum(split.bytes for split in splits if split.number in known)
    text = sum(summary.bytes for summary in known.values())
    packed = bool(splits[0].items) and splits[0].items[0].name.endswith(PACKED_SUFFIXES) if splits else False
    ratio = text / stored if stored and text else PACKED if packed else 1
    reached = 0.0
    for split in splits:
        if reached >= (source.max_bytes or 0):
            return
        if split.number in known:
            reached += known[split.number].bytes
        else:
            reached += max(split.bytes * ratio, 1)
            yield split
