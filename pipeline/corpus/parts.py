"""The two tasks of a split, each idempotent: read and judge its documents; then write those that stay into tars.

Between them lie, in a folder of their own, `<split>.records.zst` (a JSON line for each document read, with the text of
those that passed the rules), `<split>.index.npy` (their hashes) and `<split>.read.json`; the second task ends with
`<split>.done.json`. A task whose JSON file is there is done; one that was killed is done again, from its beginning.
"""

from __future__ import annotations

import contextlib
import gzip
import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import zstandard

from pipeline.corpus.compressed import open_stream
from pipeline.corpus.deduplicate import INDEX, text_hash
from pipeline.corpus.document import BEGINNING, Document, Dropped, drop, utf8_bytes
from pipeline.corpus.normalize import normalize, without_surrogates
from pipeline.corpus.rules import build_rules, judge
from pipeline.corpus.sources import Item, Split, read_split
from pipeline.corpus.text_tars import TextTarWriter
from pipeline.files import atomic_write, write_json
from pipeline.recipe import Corpus, Source

LONGEST_ID = 512  # characters; an id is for finding a document, and comes from the corpus
_PACKED, _PACKED_SUFFIXES = 4, (".gz", ".zst", ".parquet")  # how much smaller text commonly is in them; for the bar
Counts = dict[str, Any]
Advance = Callable[[int], None]  # is told bytes of input as they are read


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
    if done.is_file():
        advance(task.split.bytes)
        return ReadSummary(**json.loads(done.read_text(encoding="utf-8")))
    limit = task.source.max_bytes
    rules = build_rules(task.corpus.rules)
    hashes = array("Q")
    after = records = 0
    with _write_records(part_file(task.folder, task.split, "records.zst")) as out:
        for size, found in _read(task, advance):
            after += size
            if limit is not None and after > limit:
                break
            document = judge(_tidy(found, task.corpus), rules) if isinstance(found, Document) else found
            if isinstance(document, Document):
                hashes.extend((*text_hash(document.text), utf8_bytes(document.text), after, records))
            out.write(_encode(after, size, document))
            records += 1
    index = np.frombuffer(hashes, dtype=INDEX)
    with atomic_write(part_file(task.folder, task.split, "index.npy")) as handle:
        np.save(handle, index[np.lexsort((index["record"], index["low"], index["high"]))])
    summary = ReadSummary(records, after)
    write_json(done, asdict(summary))
    return summary


def _read(task: ReadTask, advance: Advance) -> Iterator[tuple[int, Document | Dropped]]:
    """The split's documents with their sizes as read, in bytes of UTF-8.

    `advance` is told of each; what a file stores is guessed from its text, and put right at the file's end.
    """
    reading: Item | None = None
    told = 0
    for document, item in read_split(task.source, task.split, task.corpus.bad_lines):
        if item is not reading:
            advance(reading.bytes - told if reading else 0)
            reading, told = item, 0
        size = document.bytes if isinstance(document, Dropped) else utf8_bytes(document.text)
        stored = size // _PACKED if reading and reading.name.endswith(_PACKED_SUFFIXES) else size
        step = min(stored, reading.bytes - told) if reading else 0
        advance(step)
        told += step
        yield size, document
    advance(reading.bytes - told if reading else 0)


def _tidy(document: Document, corpus: Corpus) -> Document:
    document.text = normalize(document.text, corpus.normalize)
    return document


# --- records -------------------------------------------------------------------------------------------------------


def part_file(folder: Path, split: Split, suffix: str) -> Path:
    """A file of a split, among the parts."""
    return folder / f"{split.name}.{suffix}"


@contextlib.contextmanager
def _write_records(path: Path) -> Iterator[IO[bytes]]:
    with atomic_write(path) as raw, zstandard.ZstdCompressor(level=1).stream_writer(raw, closefd=False) as out:
        yield out


def _encode(after: int, size: int, document: Document | Dropped) -> bytes:
    """A record: bytes read so far, size as read, then the fields of what was kept or dropped."""
    name = without_surrogates(document.id)[:LONGEST_ID]
    fields: list[Any]
    if isinstance(document, Dropped):
        text = without_surrogates(document.text[:BEGINNING])
        fields = ["dropped", name, document.rule, document.value, document.threshold, text]
    else:
        facts = {key: without_surrogates(value) for key, value in document.metadata.items()}
        fields = ["kept", name, document.language, facts, document.text]
    return orjson.dumps([after, size, *fields], option=orjson.OPT_APPEND_NEWLINE)


def _read_records(path: Path, source: str) -> Iterator[tuple[int, int, Document | Dropped]]:
    with open_stream(path) as handle:
        for line in handle:
            after, size, kind, name, *fields = orjson.loads(line)
            if kind == "kept":
                language, facts, text = fields
                yield after, size, Document(text, name, source, language, facts)
            else:
                rule, value, threshold, text = fields
                yield after, size, Dropped(name, source, rule, value, threshold, text, size)


# --- tars ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WriteTask:
    """Write what stays of a read split. What is decided over all splits comes with it.

    folder: of the parts. text: the stage's folder. bytes: that were read, for the bar. budget: bytes of
    the split that count (`max_bytes`).
    duplicates: file with one flag for each record of all splits. first: the split's first flag. limit: documents with
    a hash below it are held out.
    """

    folder: Path
    text: Path
    split: Split
    shard_bytes: int
    bytes: int
    budget: int
    duplicates: Path
    first: int
    limit: int


def write_part(task: WriteTask, advance: Advance) -> Counts:
    """Write a split's tars and its dropped documents, then its counts, which are returned.

    Counts: documents and bytes `read`, `kept`, of `train` and `validation` (with tars), `dropped` by rule; and
    `outputs`, paths under the text folder.
    Raises: EnvironmentFault when the disk is full.
    """
    done = part_file(task.folder, task.split, "done.json")
    records = part_file(task.folder, task.split, "records.zst")
    if not done.is_file():
        write_json(done, _write_tars(task, records))
    advance(task.bytes)
    records.unlink(missing_ok=True)  # the largest of the parts; done.json says that it is not needed any more
    counts: Counts = json.loads(done.read_text(encoding="utf-8"))
    return counts


def _write_tars(task: WriteTask, records: Path) -> Counts:
    name = task.split.name
    copies = np.load(task.duplicates, mmap_mode="r")
    read = {"documents": 0, "bytes": 0}
    by_rule: dict[str, dict[str, int]] = {}
    with (
        TextTarWriter(task.text / "train", name, task.shard_bytes) as train,
        TextTarWriter(task.text / "validation", name, task.shard_bytes) as validation,
        _DroppedWriter(task.text / "dropped" / f"{name}.jsonl.gz") as dropped,
    ):
        for number, (after, size, document) in enumerate(_read_records(records, task.split.source)):
            if after > task.budget:
                break
            _count(read, size)
            if isinstance(document, Dropped):
                gone = document
            else:
                high, low = text_hash(document.text)
                if not copies[task.first + number]:
                    (validation if high < task.limit else train).add(f"{name}-{number:07d}", document)
                    continue
                gone = drop(document, "duplicate", f"{high:016x}{low:016x}", None)
                gone.bytes = size
            dropped.add(gone)
            _count(by_rule.setdefault(gone.rule, {"documents": 0, "bytes": 0}), size)
    parts = {"train": train, "validation": validation}
    made = {
        part: {"documents": tars.documents, "bytes": tars.bytes, "tars": len(tars.paths)}
        for part, tars in parts.items()
    }
    outputs = [*train.paths, *validation.paths, *([dropped.path] if by_rule else [])]
    return {
        "read": read,
        "kept": {key: made["train"][key] + made["validation"][key] for key in ("documents", "bytes")},
        **made,
        "dropped": dict(sorted(by_rule.items())),
        "outputs": [path.relative_to(task.text).as_posix() for path in outputs],
    }


def _count(counts: dict[str, int], size: int) -> None:
    counts["documents"] += 1
    counts["bytes"] += size


class _DroppedWriter(contextlib.ExitStack):
    """JSON lines of dropped documents, compressed, without time or name in the header; no file when there are none."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._out: gzip.GzipFile | None = None

    def add(self, document: Dropped) -> None:
        if self._out is None:
            raw = self.enter_context(atomic_write(self.path))
            self._out = self.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0))
        self._out.write(orjson.dumps(document, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE))
