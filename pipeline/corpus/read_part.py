"""The first task of a split, idempotent (records.py): read, normalise and judge its documents."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline.corpus.deduplicate import INDEX, text_hash
from pipeline.corpus.document import Document, Dropped, utf8_bytes
from pipeline.corpus.fingerprints import Fingerprints
from pipeline.corpus.kept import Found, keep, kept_file, privacy_done, read_kept
from pipeline.corpus.locations import Item
from pipeline.corpus.normalize import normalize
from pipeline.corpus.readers.split import read_split
from pipeline.corpus.records import Advance, part_file, record_line, write_records
from pipeline.corpus.rules import Judge
from pipeline.corpus.screen import Screen
from pipeline.corpus.sources import Split
from pipeline.files import atomic_write, write_json
from pipeline.recipe import Corpus, Source

# How much smaller text commonly is in files so called; for the bar.
PACKED, PACKED_SUFFIXES = 4, (".gz", ".zst", ".bz2", ".xz", ".parquet")


@dataclass(frozen=True)
class ReadTask:
    """Read a split of a source, and leave its records in `folder`."""

    folder: Path
    source: Source
    split: Split
    corpus: Corpus


@dataclass(frozen=True)
class ReadSummary:
    """A split that was read. records: documents kept and dropped; bytes: read, in UTF-8; past `max_bytes`: no more."""

    records: int
    bytes: int


def read_part(task: ReadTask, advance: Advance) -> ReadSummary:
    """Read, normalise and judge the documents of a split; its records, its index, and then its summary are written.

    Raises: DataError when the input cannot be read, EnvironmentFault when the disk is full.
    """
    done = part_file(task.folder, task.split, "read.json")
    if (summary := read_summary(task.folder, task.split)) is not None:
        advance(task.split.bytes)
        return summary
    limit = task.source.max_bytes
    judge = Judge(
        task.corpus.rules_for(task.source), task.corpus.languages_for(task.source), task.corpus.signals == "write"
    )
    screen = Screen(privacy_done(task.corpus) if task.corpus.signals == "keep" else task.corpus, task.folder)
    hashes = array("Q")
    after = records = 0
    with (
        write_records(part_file(task.folder, task.split, "records.zst")) as out,
        Fingerprints(task.folder, task.split.name, task.corpus) as fingerprints,
    ):
        for size, found, known in _documents(task, judge, advance):
            after += size
            if limit is not None and after > limit:
                break
            document = screen(found, judge(found, known) if isinstance(found, Document) else found)
            if isinstance(document, Document):
                hashes.extend((*text_hash(document.text), utf8_bytes(document.text), after, records))
                fingerprints.add(document.text, records)
            out.write(record_line(after, size, document))
            records += 1
    index = np.frombuffer(hashes, dtype=INDEX)
    with atomic_write(part_file(task.folder, task.split, "index.npy"), own=True) as handle:
        np.save(handle, index[np.lexsort((index["record"], index["low"], index["high"]))])
    summary = ReadSummary(records, after)
    write_json(done, asdict(summary), own=True)
    return summary


def read_summary(folder: Path, split: Split) -> ReadSummary | None:
    """What `read_part` left of a split; None where it has not finished."""
    try:
        return ReadSummary(**json.loads(part_file(folder, split, "read.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _read(task: ReadTask, advance: Advance) -> Iterator[tuple[int, Document | Dropped]]:
    """The split's documents with their sizes as read, in bytes of UTF-8.

    `advance` is told of each; what a file stores is guessed from its text, and put right at the file's end.
    """
    reading: Item | None = None
    told = 0
    for document, item in read_split(task.source, task.split, task.corpus):
        if item is not reading:
            advance(reading.bytes - told if reading else 0)
            reading, told = item, 0
        size = document.bytes if isinstance(document, Dropped) else utf8_bytes(document.text)
        stored = size // PACKED if reading and reading.name.endswith(PACKED_SUFFIXES) else size
        step = min(stored, reading.bytes - told) if reading else 0
        advance(step)
        told += step
        yield size, document
    advance(reading.bytes - told if reading else 0)


def _documents(task: ReadTask, judge: Judge, advance: Advance) -> Iterator[Found]:
    """The split's documents, normalised, as they come to the rules: from the source, or as they were kept."""
    fresh = ((size, _tidy(found, task.corpus), None) for size, found in _read(task, advance))
    if task.corpus.signals != "keep":
        yield from fresh
        return
    path = kept_file(task.folder.parent, task.corpus, task.source, task.split)
    if path.is_file():
        yield from read_kept(path, task.source.name)
        advance(task.split.bytes)
    else:
        yield from keep(path, task.corpus, judge, fresh, task.source.max_bytes)


def _tidy(found: Document | Dropped, corpus: Corpus) -> Document | Dropped:
    if isinstance(found, Document):
        found.text = normalize(found.text, corpus.normalize)
    return found
