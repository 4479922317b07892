"""The second task of a split, idempotent (records.py): write tars of the documents that stay, and what went."""

from __future__ import annotations

import contextlib
import gzip
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from pipeline.corpus.decontamination.hits import Hits, count_hits
from pipeline.corpus.deduplicate import text_hash
from pipeline.corpus.document import Document, Dropped, utf8_bytes
from pipeline.corpus.fates import Fates
from pipeline.corpus.readers.encoding import FACTS
from pipeline.corpus.records import Advance, part_file, read_records
from pipeline.corpus.sources import Split
from pipeline.corpus.text_tars import TextTarWriter
from pipeline.errors import DataError
from pipeline.files import Hashed, atomic_write, write_json
from pipeline.manifest import Output
from pipeline.recipe import Corpus

UNDETERMINED = "und"  # ISO 639-2
Counts = dict[str, Any]


@dataclass(frozen=True)
class WriteTask:
    """Write what stays of a read split. What is decided over all splits comes with it.

    folder: of the parts. text: the stage's folder. bytes: that were read, for the bar. budget: bytes of
    the split that count (`max_bytes`). first: place of its first record among those of all splits; records: how many
    it has. limit: documents with a hash below it are held out.
    """

    folder: Path
    text: Path
    split: Split
    corpus: Corpus
    bytes: int
    budget: int
    first: int
    records: int
    limit: int


def write_part(task: WriteTask, advance: Advance) -> Counts:
    """Write a split's tars and its dropped documents, then its counts, which are returned.

    Counts: documents and bytes `read`, `kept`, of `train` and `validation` (with tars), `dropped` by rule; what was
    read, kept and dropped of each of `languages` (UNDETERMINED: a document went before its own was asked); documents
    with personal data (`private`) by type, and how often it was `found` in them; those that overlap with evaluation
    sets (`contaminated`); those that were not plain UTF-8 (`decoded`: another `encoding`, characters `replaced`,
    mojibake `repaired`); and `outputs`, the fields of an Output each.
    Raises: EnvironmentFault when the disk is full.
    """
    done = part_file(task.folder, task.split, "done.json")
    records = part_file(task.folder, task.split, "records.zst")
    if not done.is_file():
        try:
            made = _write_tars(task, records)
        except DataError:  # the records are gone where another process did this very task at the same time
            if not done.is_file():
                raise
        else:
            write_json(done, made, own=True)
    advance(task.bytes)
    records.unlink(missing_ok=True)  # the largest of the parts; done.json says that it is not needed any more
    counts: Counts = json.loads(done.read_text(encoding="utf-8"))
    return counts


def _write_tars(task: WriteTask, records: Path) -> Counts:
    name = task.split.name
    fates = Fates(task.corpus, task.folder, task.first, task.records)
    read = {"documents": 0, "bytes": 0}
    by_rule: dict[str, dict[str, int]] = {}
    languages: dict[str, Counts] = {}
    private: dict[str, dict[str, int]] = {}
    contaminated: Hits = {}
    decoded: dict[str, dict[str, int]] = {}
    with (
        TextTarWriter(task.text / "train", name, task.corpus.shard_bytes) as train,
        TextTarWriter(task.text / "validation", name, task.corpus.shard_bytes) as validation,
        _DroppedWriter(task.text / "dropped" / f"{name}.jsonl.gz") as dropped,
    ):
        for number, (after, size, document) in enumerate(read_records(records, task.split.source)):
            if after > task.budget:
                break
            _count(read, size)
            spoken = languages.setdefault(document.language or UNDETERMINED, _of_language())
            _count(spoken["read"], size)
            for kind, times in document.private.items():
                there = private.setdefault(kind, {"documents": 0, "found": 0})
                there["documents"] += 1
                there["found"] += times
            if document.contaminated:
                count_hits(contaminated, document.contaminated)
            if isinstance(document, Dropped):
                gone = document
            else:
                for fact in document.metadata.keys() & FACTS:
                    _count(decoded.setdefault(fact, {"documents": 0, "bytes": 0}), size)
                hashed = text_hash(document.text)
                left = fates.of(number, document, hashed)
                if isinstance(left, Document):
                    (validation if hashed[0] < task.limit else train).add(f"{name}-{number:07d}", left)
                    _count(spoken["kept"], utf8_bytes(left.text))
                    continue
                gone = left
                gone.bytes = size
            dropped.add(gone)
            for rules in (by_rule, spoken["dropped"]):
                _count(rules.setdefault(gone.rule, {"documents": 0, "bytes": 0}), size)
    parts = {"train": train, "validation": validation}
    made = {
        part: {"documents": tars.documents, "bytes": tars.bytes, "tars": len(tars.paths)}
        for part, tars in parts.items()
    }
    outputs = [
        Output(path.relative_to(task.text).as_posix(), path.stat().st_size, checksum)
        for path, checksum in [
            *zip(train.paths, train.checksums, strict=True),
            *zip(validation.paths, validation.checksums, strict=True),
            *([(dropped.path, dropped.sha256)] if by_rule else []),
        ]
    ]
    return {
        "read": read,
        "kept": {key: made["train"][key] + made["validation"][key] for key in ("documents", "bytes")},
        **made,
        "dropped": dict(sorted(by_rule.items())),
        "languages": languages,
        **({"decoded": dict(sorted(decoded.items()))} if decoded else {}),
        **({"private": dict(sorted(private.items()))} if private else {}),
        **({"contaminated": contaminated} if contaminated else {}),
        **({"removed": fates.removed} if fates.removed["documents"] else {}),
        "outputs": [asdict(output) for output in outputs],
    }


def _of_language() -> Counts:
    return {"read": {"documents": 0, "bytes": 0}, "kept": {"documents": 0, "bytes": 0}, "dropped": {}}


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
            self._raw = Hashed(self.enter_context(atomic_write(self.path, own=True)))
            self._out = self.enter_context(gzip.GzipFile("", "wb", 6, self._raw, mtime=0))
        fields = asdict(document)
        for key in ("private", "contaminated", "cluster", "cluster_size"):
            if not fields[key]:
                del fields[key]
        self._out.write(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE))

    @property
    def sha256(self) -> str:
        """Of the file, once it is closed."""
        return self._raw.sha256
