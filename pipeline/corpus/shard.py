"""The shard stage: raw corpora to text tars, cleaned, without exact duplicates, with a validation set split off.

Three steps. Every split is read and judged by itself (parts.read_part, in parallel); then the hashes of all are looked
at together (deduplicate.py); then every split writes its tars (parts.write_part, in parallel). What is made depends on
the sources and the recipe alone, not on the number of processes; whatever was finished before a crash is kept.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.cluster.ranks import cores
from pipeline.corpus.deduplicate import HeldOut, IndexedPart, find_duplicates
from pipeline.corpus.parts import Counts, ReadSummary, ReadTask, WriteTask, part_file, read_part, write_part
from pipeline.corpus.sources import Split, plan_splits
from pipeline.corpus.workers import Workers
from pipeline.errors import DataError
from pipeline.files import TEMPORARY, disk_errors, write_json
from pipeline.manifest import Manifest, Work
from pipeline.progress import log, progress
from pipeline.recipe import Corpus, Recipe, Source
from pipeline.tracking import Tracker

PARTS = "parts"  # half-done work; gone when the stage ends
SUMMARY = "documents.json"  # what was read, kept and dropped, by source and rule; written when all tars are there
_DUPLICATES = "duplicates.npy"
_UNBOUNDED = 1 << 62
_TOTALS: dict[str, dict[str, int]] = {
    "read": {"documents": 0, "bytes": 0},
    "kept": {"documents": 0, "bytes": 0},
    "train": {"documents": 0, "bytes": 0, "tars": 0},
    "validation": {"documents": 0, "bytes": 0, "tars": 0},
    "dropped": {},
}


@dataclass(frozen=True)
class ReadSplit:
    """A split that was read. budget: bytes of it that count, in its order; less than all where `max_bytes` ends."""

    source: Source
    split: Split
    summary: ReadSummary
    budget: int


def run(recipe: Recipe, work: Work, tracker: Tracker) -> Manifest:
    """Make text/: train and validation tars, dropped/*.jsonl.gz, documents.json.

    Raises: DataError when a source is not there, broken, or empty, or when no document is left;
    EnvironmentFault when the disk is full.
    """
    corpus = recipe.corpus
    summary = work.folder / SUMMARY
    if not summary.is_file():
        _make(corpus, work.folder, summary)
    counts = json.loads(summary.read_text(encoding="utf-8"))
    outputs = [work.folder / path for path in counts.pop("outputs")]
    if (parts := work.folder / PARTS).exists():
        shutil.rmtree(parts)
    read, kept = counts["read"], counts["kept"]
    log.info(
        f"shard: kept {kept['documents']:,} of {read['documents']:,} documents "
        f"({counts['train']['bytes']:,} bytes to train on, {counts['validation']['bytes']:,} held out)"
    )
    for name, one in counts["sources"].items():
        if one["read"]["documents"] and not one["kept"]["documents"]:
            rules = ", ".join(f"{rule} {sizes['documents']:,}" for rule, sizes in one["dropped"].items())
            count = one["read"]["documents"]
            log.warning(f"source {name}: of {count:,} document{'s' * (count > 1)} none is kept; dropped by {rules}")
    shares = {"kept_documents_share": kept["documents"] / read["documents"]}
    return work.finish([*outputs, summary], counts, shares)


def _make(corpus: Corpus, folder: Path, summary: Path) -> None:
    if not corpus.sources:
        raise DataError("corpus.sources is empty; name at least one source of text in the recipe")
    parts = folder / PARTS
    with disk_errors(parts):
        parts.mkdir(exist_ok=True)
    for left in list(folder.rglob("*" + TEMPORARY)):
        left.unlink()
    splits = [(source, split) for source in corpus.sources for split in plan_splits(source, corpus.split_bytes)]
    with Workers(min(corpus.workers or cores(), len(splits))) as workers:
        read = _read(corpus, parts, splits, workers)
        limit = _decide(corpus, parts, read)
        by_source = _write(corpus, folder, parts, read, limit, workers)
    totals = _add_up(list(by_source.values()))
    _check_kept(corpus, totals)
    outputs = sorted(path for counts in by_source.values() for path in counts.pop("outputs"))
    write_json(summary, {**totals, "sources": by_source, "outputs": outputs})


# --- step 1: read --------------------------------------------------------------------------------------------------


def _read(corpus: Corpus, parts: Path, splits: Sequence[tuple[Source, Split]], workers: Workers) -> list[ReadSplit]:
    """Read all splits, or as many of a source as `max_bytes` asks for, in rounds: text may be less than what is stored.

    Workers may have read further than the bound when it is met; which splits count is decided by their order alone.
    """
    left = {source.name: source.max_bytes or _UNBOUNDED for source in corpus.sources}
    read: dict[str, list[ReadSplit]] = {source.name: [] for source in corpus.sources}
    ahead = list(splits)
    with progress("shard: read", sum(split.bytes for _, split in _needed(ahead, left)), "B") as bar:
        while now := _needed(ahead, left):
            taken = {split.name for _, split in now}
            ahead = [(source, split) for source, split in ahead if split.name not in taken]
            asked: deque[tuple[Source, Split]] = deque()
            for summary in workers.run(read_part, _tasks(corpus, parts, now, left, asked), bar):
                source, split = asked.popleft()
                if (budget := left[source.name]) > 0:
                    read[source.name].append(ReadSplit(source, split, summary, budget))
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


def _needed(ahead: Sequence[tuple[Source, Split]], left: Mapping[str, int]) -> list[tuple[Source, Split]]:
    """The first splits of each source whose stored bytes reach what is left to read of it."""
    expected = dict.fromkeys(left, 0)
    needed = []
    for source, split in ahead:
        if expected[source.name] < left[source.name]:
            expected[source.name] += max(split.bytes, 1)
            needed.append((source, split))
    return needed


def _tasks(
    corpus: Corpus,
    parts: Path,
    splits: Sequence[tuple[Source, Split]],
    left: Mapping[str, int],
    asked: deque[tuple[Source, Split]],
) -> Iterator[ReadTask]:
    """Tasks for splits, until their source has no bytes left; each split asked for is appended to `asked`."""
    for source, split in splits:
        if left[source.name] > 0:
            asked.append((source, split))
            yield ReadTask(parts, source, split, corpus)


def _cut_short(source: Source, left: int) -> str:
    return f"; its first is larger than max_bytes={source.max_bytes}" if left < 0 else ""


# --- step 2: decide ------------------------------------------------------------------------------------------------


def _decide(corpus: Corpus, parts: Path, read: Sequence[ReadSplit]) -> int:
    """Mark duplicates in parts/duplicates.npy; return the hash below which documents are held out."""
    done = parts / "decided.json"
    if not done.is_file():
        indexed = [
            IndexedPart(part_file(parts, part.split, "index.npy"), part.summary.records, part.budget) for part in read
        ]
        held_out = HeldOut(corpus.validation, corpus.validation_max_bytes)
        path = parts / _DUPLICATES
        temporary = path.with_name(path.name + TEMPORARY)
        with disk_errors(path):
            _write_flags(temporary, sum(part.records for part in indexed))
            flags = np.load(temporary, mmap_mode="r+")
            find_duplicates(indexed, flags, held_out, corpus.drop_duplicates)
            flags.flush()
            del flags
            os.replace(temporary, path)
        write_json(done, {"limit": held_out.decide()})
    limit: int = json.loads(done.read_text(encoding="utf-8"))["limit"]
    return limit


def _write_flags(path: Path, count: int) -> None:
    """A .npy file of `count` flags, all False, each written: a full disk under a sparse mapped file is a SIGBUS."""
    header = {"descr": "|b1", "fortran_order": False, "shape": (count,)}
    with open(path, "wb") as handle:
        np.lib.format.write_array_header_1_0(handle, header)
        for start in range(0, count, 1 << 20):
            handle.write(bytes(min(1 << 20, count - start)))
        handle.flush()
        os.fsync(handle.fileno())


# --- step 3: write -------------------------------------------------------------------------------------------------


def _write(
    corpus: Corpus, folder: Path, parts: Path, read: Sequence[ReadSplit], limit: int, workers: Workers
) -> dict[str, Counts]:
    """Write the tars of all splits; counts (and output paths) by source."""

    def tasks() -> Iterator[WriteTask]:
        first = 0
        for part in read:
            flags = parts / _DUPLICATES
            sizes = (corpus.shard_bytes, part.summary.bytes, part.budget)
            yield WriteTask(parts, folder, part.split, *sizes, flags, first, limit)
            first += part.summary.records

    by_source: dict[str, list[Counts]] = {source.name: [] for source in corpus.sources}
    with progress("shard: write", sum(part.summary.bytes for part in read), "B") as bar:
        for part, counts in zip(read, workers.run(write_part, tasks(), bar), strict=True):
            by_source[part.source.name].append(counts)
    return {name: _add_up(counts) for name, counts in by_source.items()}


def _add_up(counts: Sequence[Counts]) -> Counts:
    """The sum of the numbers of several counts; their lists joined."""
    total: Counts = copy.deepcopy(_TOTALS) | {"outputs": []}
    for one in counts:
        total["outputs"] += one["outputs"]
        for group in ("read", "kept", "train", "validation"):
            for key, amount in one[group].items():
                total[group][key] += amount
        for rule, sizes in one["dropped"].items():
            there = total["dropped"].setdefault(rule, {"documents": 0, "bytes": 0})
            for key, amount in sizes.items():
                there[key] += amount
    total["dropped"] = dict(sorted(total["dropped"].items()))
    return total


def _check_kept(corpus: Corpus, totals: Counts) -> None:
    """Raises: DataError that says which rules took all documents, and what to change."""
    if totals["train"]["documents"]:
        return
    if totals["validation"]["documents"] and corpus.validation == 1.0:
        return
    dropped = sorted(totals["dropped"].items(), key=lambda item: -item[1]["documents"])
    told = ", ".join(f"{rule} {sizes['documents']:,}" for rule, sizes in dropped)
    rule = dropped[0][0]
    threshold = getattr(corpus.rules, rule, None)
    remedy = f"loosen corpus.rules.{rule} (now {threshold})" if threshold is not None else "look at text/dropped/"
    raise DataError(
        f"no document of {totals['read']['documents']:,} is left after cleaning; dropped by {told}; {remedy}"
    )
