"""The parallel steps between reading and writing: pairs of near-duplicates, and repeated lines and paragraphs.

Each is a set of tasks, a partition of the keys each, that look at all splits. How many partitions there are is settled
once, when the splits are known (decision.py), so that tasks on any machine agree; what they find does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.corpus import near_duplicates, repeated_pieces
from pipeline.corpus.fingerprints import SIGNATURES, fingerprint_file, piece_kinds
from pipeline.corpus.keyed_rows import KeyedPart
from pipeline.corpus.minhash import sketch_words
from pipeline.recipe import Corpus

SPLITS, COPIES, GONE = "splits.npy", "duplicates.npy", "gone.npy"
CLUSTERS_FILE, LIKENESS_FILE = "near_duplicates.clusters", "near_duplicates.likeness"
# position: of the split among all. records, bytes: that were read. budget: bytes of it that count (`max_bytes`).
# counting: its records within the budget. first: place of its first record among all. name: of the split.
SPLIT_ROWS = np.dtype(
    [(name, "<i8") for name in ("position", "records", "bytes", "budget", "counting", "first")] + [("name", "S96")]
)


@dataclass(frozen=True)
class MatchTask:
    """A partition to look for copies in. folder: of the parts. kind: SIGNATURES, or one of repeated_pieces.KINDS.
    number: of the list (the band). partition: its number, of how many."""

    folder: Path
    corpus: Corpus
    kind: str
    number: int
    partition: tuple[int, int]

    @property
    def output(self) -> Path:
        return self.folder / f"{self.kind}-{self.number:03d}-{self.partition[0]:06d}.found"


def partitions(corpus: Corpus, parts: Path, splits: npt.NDArray[np.void]) -> dict[str, int]:
    """How many partitions each list of each kind is cut into, so that one fits into memory easily."""
    found = {}
    for kind in [*([SIGNATURES] if corpus.near_duplicates else []), *piece_kinds(corpus)]:
        rows = sum(part.rows for part in keyed_parts(corpus, parts, splits, kind))
        bytes_a_row = near_duplicates.BYTES_A_ROW if kind == SIGNATURES else 2 * repeated_pieces.BYTES_A_ROW
        found[kind] = max(1, -(-rows * bytes_a_row * 5 // (4 * corpus.memory_bytes)))
    return found


def keyed_parts(corpus: Corpus, parts: Path, splits: npt.NDArray[np.void], kind: str) -> list[KeyedPart]:
    """The splits' files of a kind, in order."""
    lists, width = 1, repeated_pieces.WIDTH
    if kind == SIGNATURES and corpus.near_duplicates:
        lists, width = corpus.near_duplicates.bands, 2 + sketch_words(corpus.near_duplicates)
    return [
        KeyedPart(
            fingerprint_file(parts, row["name"].decode(), kind), lists, width, int(row["first"]), int(row["counting"])
        )
        for row in splits
    ]


def pair_tasks(corpus: Corpus, parts: Path, counts: Mapping[str, int]) -> list[MatchTask]:
    """All tasks that look for near-duplicates, in order."""
    bands = corpus.near_duplicates.bands if corpus.near_duplicates else 0
    count = counts.get(SIGNATURES, 0)
    return [MatchTask(parts, corpus, SIGNATURES, band, (n, count)) for band in range(bands) for n in range(count)]


def piece_tasks(corpus: Corpus, parts: Path, counts: Mapping[str, int]) -> list[MatchTask]:
    """All tasks that look for repeated lines and paragraphs, in order."""
    return [
        MatchTask(parts, corpus, kind, 0, (n, counts[kind]))
        for kind in piece_kinds(corpus)
        for n in range(counts[kind])
    ]


def not_done(tasks: Sequence[MatchTask]) -> list[MatchTask]:
    """Those of the tasks whose output is not there yet."""
    return [task for task in tasks if not task.output.is_file()]


def match_part(task: MatchTask, advance: Callable[[int], None]) -> None:
    """Do a task; `advance` is told 1 at its end. Raises: EnvironmentFault when the disk is full."""
    splits = np.load(task.folder / SPLITS)
    parts = keyed_parts(task.corpus, task.folder, splits, task.kind)
    memory = task.corpus.memory_bytes
    gone = np.load(task.folder / (COPIES if task.kind == SIGNATURES else gone_file(task.corpus)), mmap_mode="r")
    if task.kind == SIGNATURES:
        assert task.corpus.near_duplicates is not None
        settings = task.corpus.near_duplicates
        near_duplicates.find_pairs(parts, gone, settings, task.number, task.partition, memory, task.output)
    else:
        kind = piece_kinds(task.corpus)[task.kind]
        repeated_pieces.find_repeated(parts, gone, kind, task.partition, memory, task.output)
    advance(1)


def found_files(parts: Path, kind: str) -> list[Path]:
    """What all tasks of a kind have left."""
    return sorted(parts.glob(f"{kind}-*.found"))


def gone_file(corpus: Corpus) -> str:
    """The flags of all documents that go no further, as copies or near-duplicates."""
    return GONE if corpus.near_duplicates else COPIES
