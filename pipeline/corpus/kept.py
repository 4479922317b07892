"""Documents kept with their signals (`corpus.signals: keep`), so that other thresholds need no raw corpora.

Each split leaves `signals/<split>-<key>.jsonl.zst` beside `text/`: a line that says what the file is, then a line for
each document as it came to the rules: `[bytes as read, fields, signals]`, or `[bytes, fields]` of a record that could
not be read. The key names all that decides on these lines: the source with its settings and files, how text is
repaired and normalised, what is done with personal data, and this code; no rule, threshold or language. A split whose
file is there is decided from it, and makes the same bytes as from the raw corpus. Files with other keys are left alone.

Where the recipe takes personal data out, it is taken out first: kept documents hold none, and the rules judge what is
left. Signals are kept of documents up to MOST_MEASURED characters; those of larger ones, of text that a rule takes
lines out of, and of a language whose stop words have changed, are worked out again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import zstandard

from pipeline.corpus.compressed import open_stream
from pipeline.corpus.document import Document, Dropped
from pipeline.corpus.locations import items_fingerprint
from pipeline.corpus.normalize import without_surrogates
from pipeline.corpus.rules import Judge, Known
from pipeline.corpus.screen import Screen
from pipeline.corpus.sources import Split
from pipeline.errors import DataError
from pipeline.files import atomic_write, fingerprint
from pipeline.recipe import Corpus, Source

FOLDER = "signals"
FORMAT = 1  # raised when these lines, or the signals in them, come to mean something else
MOST_MEASURED = 4_000_000
_LEVEL = 3

Found = tuple[int, Document | Dropped, Known | None]  # bytes as read, the document, its signals where they are known


def kept_file(folder: Path, corpus: Corpus, source: Source, split: Split) -> Path:
    """The file of a split; folder: the stage's."""
    later = ("name", "weight", "max_share", "rule_sets")
    of_source = {name: value for name, value in source.settings().items() if name not in later}
    how = {name: corpus.settings()[name] for name in ("normalize", "repair", "privacy", "bad_lines", "bad_files")}
    key = fingerprint([FORMAT, of_source, how, items_fingerprint(split.items)])
    return folder.parent / FOLDER / f"{split.name}-{key[:16]}.jsonl.zst"


def privacy_done(corpus: Corpus) -> Corpus:
    """The settings for what comes after the rules: personal data is gone before them."""
    return corpus.model_copy(update={"privacy": None})


def read_kept(path: Path, source: str) -> Iterator[Found]:
    """The documents of a split that were kept, in order.

    Raises: DataError naming the file when it is damaged.
    """
    try:
        with open_stream(path) as lines:
            if orjson.loads(next(lines, b"{}")).get("format") != FORMAT:
                raise ValueError("not a file of kept documents")
            for line in lines:
                size, fields, *known = orjson.loads(line)
                if known:
                    yield size, Document(source=source, **fields), Known(*known[0]) if known[0] else None
                else:
                    yield size, Dropped(source=source, **fields), None
    except (ValueError, TypeError, AttributeError, DataError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it, and the split is read from the corpus again") from None


def keep(path: Path, corpus: Corpus, judge: Judge, read: Iterator[Found], limit: int | None) -> Iterator[Found]:
    """The documents of a split as they are read, each written to `path` on its way, which is whole when they end.

    read: without signals. limit: bytes; the document that goes beyond it is the last.
    Raises: EnvironmentFault when the disk is full.
    """
    clean = Screen(Corpus(privacy=corpus.privacy), path.parent)  # the one step of it that comes first here
    last: Found | None = None
    after = 0
    with (
        atomic_write(path, own=True) as raw,
        zstandard.ZstdCompressor(level=_LEVEL).stream_writer(raw, closefd=False) as out,
    ):
        out.write(orjson.dumps({"format": FORMAT, "key": path.name}, option=orjson.OPT_APPEND_NEWLINE))
        for size, read_one, _ in read:
            found = _encodable(clean(read_one, read_one))
            known = None
            if isinstance(found, Document) and len(found.text) <= MOST_MEASURED:
                known = judge.measure(found)
            out.write(_encode(size, found, known))
            after += size
            if limit is not None and after > limit:
                last = size, found, known
                break
            yield size, found, known
    if last is not None:  # whoever asked stops at it, and the file must be whole by then
        yield last


def _encodable(found: Document | Dropped) -> Document | Dropped:
    found.id = without_surrogates(found.id)
    if isinstance(found, Document):
        found.metadata = {name: without_surrogates(value) for name, value in found.metadata.items()}
    else:
        found.text = without_surrogates(found.text)
    return found


def _encode(size: int, found: Document | Dropped, known: Known | None) -> bytes:
    fields: dict[str, Any] = asdict(found)
    del fields["source"]
    line: list[Any] = [size, fields]
    if isinstance(found, Document):
        line.append([known.values, known.counted_with, known.identified] if known else None)
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
