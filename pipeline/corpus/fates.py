"""What was decided on the documents of one split, for whoever writes it: copies, clusters, lines that go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.corpus.document import Document, Dropped, drop, utf8_bytes
from pipeline.corpus.fingerprints import piece_kinds
from pipeline.corpus.likeness import similarity
from pipeline.corpus.matching import CLUSTERS_FILE, COPIES, LIKENESS_FILE, SPLITS, found_files
from pipeline.corpus.repeated_pieces import KINDS, without
from pipeline.corpus.sorted_rows import slice_of_files
from pipeline.recipe import Corpus

NEAR = "near_duplicates"  # the rule that near-duplicates are dropped by


class Fates:
    """Asked for each document of a split that the rules kept.

    parts: the folder. first: place of the split's first record among all; records: how many it has. removed: documents
    that lost lines or paragraphs across documents, how many of these, and bytes.
    """

    def __init__(self, corpus: Corpus, parts: Path, first: int, records: int) -> None:
        self._first = first
        self._copies = np.load(parts / COPIES, mmap_mode="r")
        self._splits = np.load(parts / SPLITS)
        bounds = (first, first + records)
        files = [parts / CLUSTERS_FILE] if corpus.near_duplicates else []
        self._clusters = slice_of_files(files, 3, *bounds)
        self._near = corpus.near_duplicates
        self._likeness = slice_of_files([parts / LIKENESS_FILE] if self._near else [], 2, *bounds)
        self._settings = piece_kinds(corpus)
        self._pieces = {kind: slice_of_files(found_files(parts, kind), 2, *bounds) for kind in self._settings}
        self.removed = {"documents": 0, "pieces": 0, "bytes": 0}

    def of(self, record: int, document: Document, text_hash: tuple[int, int]) -> Document | Dropped:
        """The document as it stays, or what is left of it."""
        place = self._first + record
        if self._copies[place]:
            return drop(document, "duplicate", "{:016x}{:016x}".format(*text_hash), None)
        for _, best, size in _of(self._clusters, place).tolist():
            name = self._name(best)
            if best != place:
                return self._near_duplicate(place, document, name, size)
            document.metadata |= {"cluster": name, "cluster_size": str(size)}
        return self._without_pieces(place, document)

    def _near_duplicate(self, place: int, document: Document, cluster: str, size: int) -> Dropped:
        assert self._near is not None
        ((_, differ),) = _of(self._likeness, place).tolist()
        alike = similarity(differ, self._near.bands * self._near.rows)
        dropped = drop(document, NEAR, alike, self._near.min_similarity)
        dropped.cluster, dropped.cluster_size = cluster, size
        return dropped

    def _name(self, place: int) -> str:
        """The key of a document in its text tar; also the name of the cluster that it stays for."""
        row = self._splits[np.searchsorted(self._splits["first"], place, "right") - 1]
        return f"{row['name'].decode()}-{place - int(row['first']):07d}"

    def _without_pieces(self, place: int, document: Document) -> Document | Dropped:
        lost = {kind: _of(rows, place)[:, 1].tolist() for kind, rows in self._pieces.items()}
        count = sum(map(len, lost.values()))
        if not count:
            return document
        text = without(document.text, *(lost.get(kind, ()) for kind in KINDS))
        for kind in (kind for kind in lost if lost[kind]):
            if len(text.strip()) < self._settings[kind].min_left:
                return drop(document, f"{kind}.min_left", len(text.strip()), self._settings[kind].min_left)
        self.removed["documents"] += 1
        self.removed["pieces"] += count
        self.removed["bytes"] += utf8_bytes(document.text) - utf8_bytes(text)
        document.text = text
        return document


def _of(rows: npt.NDArray[np.uint64], place: int) -> npt.NDArray[np.uint64]:
    """The rows of a document."""
    low, high = np.searchsorted(rows[:, 0], np.array([place, place + 1], np.uint64), "left")
    return rows[low:high]
