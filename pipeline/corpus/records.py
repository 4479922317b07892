"""What is known of a split between the two tasks that it takes: read_part.py leaves it, write_part.py uses it.

In a folder of their own lie `<split>.records.zst` (a JSON line for each document read, with the text of those that
passed the rules), `<split>.index.npy` (their hashes) and `<split>.read.json`; the second task ends with
`<split>.done.json`. A task whose JSON file is there is done; one that was killed is done again, from its beginning.
Two processes may do the same task at once, on one machine or two: both write the same bytes, each under names of its
own until they are whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import orjson
import zstandard

from pipeline.corpus.compressed import open_stream
from pipeline.corpus.document import BEGINNING, Document, Dropped
from pipeline.corpus.normalize import without_surrogates
from pipeline.corpus.sources import Split
from pipeline.files import atomic_write

LONGEST_ID = 512  # characters; an id is for finding a document, and comes from the corpus
Advance = Callable[[int], None]  # is told bytes of input as they are read


def part_file(folder: Path, split: Split, suffix: str) -> Path:
    """A file of a split, among the parts."""
    return folder / f"{split.name}.{suffix}"


@contextlib.contextmanager
def write_records(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for lines of `record_line`; it is there when all are written."""
    with (
        atomic_write(path, own=True) as raw,
        zstandard.ZstdCompressor(level=1).stream_writer(raw, closefd=False) as out,
    ):
        yield out


def record_line(after: int, size: int, document: Document | Dropped) -> bytes:
    """A record: bytes read so far, size as read, then the fields of what was kept or dropped."""
    name = without_surrogates(document.id)[:LONGEST_ID]
    fields: list[Any]
    if isinstance(document, Dropped):
        text = without_surrogates(document.text[:BEGINNING])
        fields = ["dropped", name, document.rule, document.value, document.threshold, text, document.signals]
        fields.append(document.language)
    else:
        facts = {key: without_surrogates(value) for key, value in document.metadata.items()}
        fields = ["kept", name, document.language, facts, document.text]
    fields += [document.private, document.contaminated]
    return orjson.dumps([after, size, *fields], option=orjson.OPT_APPEND_NEWLINE)


def read_records(path: Path, source: str) -> Iterator[tuple[int, int, Document | Dropped]]:
    """Bytes read so far, size as read, and the document, of each line."""
    with open_stream(path) as handle:
        for line in handle:
            after, size, kind, name, *fields, private, contaminated = orjson.loads(line)
            if kind == "kept":
                language, facts, text = fields
                yield after, size, Document(text, name, source, language, facts, private, contaminated)
            else:
                rule, value, threshold, text, signals, language = fields
                yield (
                    after,
                    size,
                    Dropped(name, source, rule, value, threshold, text, size, signals, private, contaminated, language),
                )
