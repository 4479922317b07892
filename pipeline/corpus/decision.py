"""The steps of the shard stage over all splits: which of them count, which documents are copies, which are held out.

They leave among the parts: `splits.npy` (a row for each split that counts) and `duplicates.npy` (a flag for each of
their records) with `copies.json`; with near-duplicates `near_duplicates.clusters` and `.likeness`, `gone.npy` and
`clusters.json`; and, last, `decided.json`. Between them lie the parallel steps of matching.py. Whoever writes tars
needs these files alone. They follow from the splits, so that a process that was declared dead and goes on deciding does
no harm.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.corpus.clusters import CLUSTERS, SizedPart, find_clusters
from pipeline.corpus.deduplicate import BYTES_A_ROW, HeldOut, IndexedPart, find_duplicates
from pipeline.corpus.fingerprints import SIGNATURES, piece_kinds
from pipeline.corpus.likeness import measure_likeness
from pipeline.corpus.matching import (
    CLUSTERS_FILE,
    COPIES,
    GONE,
    LIKENESS_FILE,
    SPLIT_ROWS,
    SPLITS,
    MatchTask,
    gone_file,
    keyed_parts,
    not_done,
    pair_tasks,
    partitions,
    piece_tasks,
)
from pipeline.corpus.read_part import ReadSummary
from pipeline.corpus.records import part_file
from pipeline.corpus.sources import Split
from pipeline.corpus.write_part import WriteTask
from pipeline.files import atomic_write, disk_errors, own_temporary, write_json
from pipeline.recipe import Corpus, Source

COPIES_FOUND, CLUSTERED, DECIDED = "copies.json", "clusters.json", "decided.json"


@dataclass(frozen=True)
class ReadSplit:
    """A split that was read. position: among all splits. budget: bytes of it that count, in its order; less than all
    where `max_bytes` ends."""

    position: int
    split: Split
    summary: ReadSummary
    budget: int


@dataclass(frozen=True)
class Decision:
    """What was decided. rows: the splits that count, in order; limit: documents with a hash below it are held out;
    near_duplicates: counts of clusters, where they were looked for."""

    parts: Path
    rows: npt.NDArray[np.void]
    limit: int
    near_duplicates: dict[str, Any] | None = None

    def tasks(
        self, corpus: Corpus, folder: Path, splits: Sequence[tuple[Source, Split]], chosen: Sequence[int]
    ) -> Iterator[tuple[Source, WriteTask]]:
        """What is to be written of the chosen rows; folder: the stage's; splits: all of the recipe's, in order."""
        for number in chosen:
            position, records, size, budget, _, first, _ = self.rows[number].tolist()
            source, split = splits[position]
            yield source, WriteTask(self.parts, folder, split, corpus, size, budget, first, records, self.limit)


def read_decision(parts: Path) -> Decision | None:
    """The decision, where it has been made."""
    decided = _read(parts / DECIDED)
    if decided is None:
        return None
    return Decision(parts, np.load(parts / SPLITS), decided["limit"], decided.get("near_duplicates"))


def match_tasks(corpus: Corpus, parts: Path) -> tuple[str, list[MatchTask]] | None:
    """The parallel step that is due between reading and writing: what it is called, and all its tasks.

    None: it is reading that is due, or writing.
    """
    found = _read(parts / COPIES_FOUND)
    if found is None or (parts / DECIDED).is_file():
        return None
    if corpus.near_duplicates and not (parts / CLUSTERED).is_file():
        return "compare", pair_tasks(corpus, parts, found["partitions"])
    return "compare lines", piece_tasks(corpus, parts, found["partitions"])


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


# --- exact copies --------------------------------------------------------------------------------------------------


def decide_copies(corpus: Corpus, parts: Path, read: Sequence[ReadSplit]) -> None:
    """Write down the splits that count, given in order, and which documents are exact copies; where nothing is to be
    compared after that, also what is held out."""
    rows = np.zeros(len(read), dtype=SPLIT_ROWS)
    rows["position"] = [part.position for part in read]
    rows["name"] = [part.split.name.encode() for part in read]
    rows["records"] = [part.summary.records for part in read]
    rows["bytes"] = [part.summary.bytes for part in read]
    rows["budget"] = [part.budget for part in read]
    rows["counting"] = [_counting(parts, part) for part in read]
    rows["first"][1:] = np.cumsum(rows["records"])[:-1]
    with atomic_write(parts / SPLITS, own=True) as handle:
        np.save(handle, rows)
    held_out = _find_copies(corpus, parts, rows)
    if corpus.near_duplicates or piece_kinds(corpus):
        write_json(parts / COPIES_FOUND, {"partitions": partitions(corpus, parts, rows)}, own=True)
    else:
        write_json(parts / DECIDED, {"limit": held_out.decide()}, own=True)


def _counting(parts: Path, part: ReadSplit) -> int:
    """The first record that is beyond the split's budget."""
    if part.budget >= part.summary.bytes:
        return part.summary.records
    index = np.load(part_file(parts, part.split, "index.npy"))
    beyond = index["record"][index["after"] > np.uint64(part.budget)]
    return int(beyond.min()) if len(beyond) else part.summary.records


def _find_copies(corpus: Corpus, parts: Path, rows: npt.NDArray[np.void]) -> HeldOut:
    held_out = HeldOut(corpus.validation, corpus.validation_max_bytes)
    path = parts / COPIES
    temporary = own_temporary(path)
    with disk_errors(path):
        _write_flags(temporary, int(rows["records"].sum()))
        flags = np.load(temporary, mmap_mode="r+")
        find_duplicates(
            _indexed(parts, rows), flags, held_out, corpus.drop_duplicates, corpus.memory_bytes // BYTES_A_ROW
        )
        flags.flush()
        del flags
        os.replace(temporary, path)
    return held_out


def _indexed(parts: Path, rows: npt.NDArray[np.void]) -> list[IndexedPart]:
    return [
        IndexedPart(parts / f"{row['name'].decode()}.index.npy", int(row["records"]), int(row["budget"]))
        for row in rows
    ]


def _write_flags(path: Path, count: int) -> None:
    """A .npy file of `count` flags, all False, each written: a full disk under a sparse mapped file is a SIGBUS."""
    header = {"descr": "|b1", "fortran_order": False, "shape": (count,)}
    with open(path, "wb") as handle:
        np.lib.format.write_array_header_1_0(handle, header)
        for start in range(0, count, 1 << 20):
            handle.write(bytes(min(1 << 20, count - start)))
        handle.flush()
        os.fsync(handle.fileno())


# --- near-duplicates, and what is held out -------------------------------------------------------------------------


def decide_matches(corpus: Corpus, parts: Path) -> None:
    """Decide on what the tasks of the step that is due have found; all of them are done."""
    due = match_tasks(corpus, parts)
    assert due is not None
    _, tasks = due
    assert not not_done(tasks)
    rows = np.load(parts / SPLITS)
    if corpus.near_duplicates and not (parts / CLUSTERED).is_file():
        find_clusters([task.output for task in tasks], _sized(parts, rows), corpus.memory_bytes, parts / CLUSTERS_FILE)
        signatures = keyed_parts(corpus, parts, rows, SIGNATURES)
        measure_likeness(parts / CLUSTERS_FILE, signatures, corpus.memory_bytes, parts / LIKENESS_FILE)
        counts = _flag_near_duplicates(corpus, parts, rows)
        write_json(parts / CLUSTERED, counts, own=True)
        if piece_kinds(corpus):
            return
    held_out = HeldOut(corpus.validation, corpus.validation_max_bytes)
    gone = np.load(parts / gone_file(corpus), mmap_mode="c")
    find_duplicates(_indexed(parts, rows), gone, held_out, False, corpus.memory_bytes // BYTES_A_ROW)
    near = {"near_duplicates": _read(parts / CLUSTERED)} if corpus.near_duplicates else {}
    write_json(parts / DECIDED, {"limit": held_out.decide(), **near}, own=True)


def _sized(parts: Path, rows: npt.NDArray[np.void]) -> list[SizedPart]:
    def sizes(name: str, records: int) -> npt.NDArray[np.uint64]:
        index = np.load(parts / f"{name}.index.npy")
        found = np.zeros(records, np.uint64)
        found[index["record"].astype(np.int64)] = index["bytes"]
        return found

    return [
        SizedPart(int(row["first"]), lambda row=row: sizes(row["name"].decode(), int(row["records"])))  # type: ignore[misc]
        for row in rows
    ]


def _flag_near_duplicates(corpus: Corpus, parts: Path, rows: npt.NDArray[np.void]) -> dict[str, Any]:
    """Write the flags of all documents that go no further. Returns counts of clusters, of documents in them, and of
    those dropped, by their source and that of the copy that stays."""
    path = parts / GONE
    temporary = own_temporary(path)
    names = [source.name for source in corpus.sources]
    by_name = {name: number for number, name in enumerate(names)}
    source_of = np.array([by_name[row["name"].decode().rpartition("-")[0]] for row in rows], np.int64)
    firsts = rows["first"].astype(np.uint64)
    dropped = np.zeros((len(names), len(names)), np.int64)
    clusters = documents = 0
    with disk_errors(path), open(parts / CLUSTERS_FILE, "rb") as handle:
        shutil.copyfile(parts / COPIES, temporary)
        flags = np.load(temporary, mmap_mode="r+")
        while block := handle.read(CLUSTERS.itemsize << 18):
            found = np.frombuffer(block, CLUSTERS)
            gone = found[found["document"] != found["best"]]
            flags[gone["document"].astype(np.int64)] = True
            clusters += len(found) - len(gone)
            documents += len(found)
            own, kept = (source_of[np.searchsorted(firsts, gone[key], "right") - 1] for key in ("document", "best"))
            np.add.at(dropped, (own, kept), 1)
        flags.flush()
        del flags
        os.replace(temporary, path)
    return {
        "clusters": clusters,
        "documents": documents,
        "dropped": {
            name: {other: int(count) for other, count in zip(names, counts, strict=True) if count}
            for name, counts in zip(names, dropped.tolist(), strict=True)
            if any(counts)
        },
    }
