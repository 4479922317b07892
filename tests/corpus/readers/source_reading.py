"""Read a source of a test as the shard stage does."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipeline.corpus.document import Document, Dropped
from pipeline.corpus.readers.split import read_split
from pipeline.corpus.sources import plan_splits
from pipeline.recipe import Corpus, Source

Found = list[Document | Dropped]


def read(
    kind: str, path: Path | str, corpus: Corpus | None = None, split_bytes: int = 1 << 20, **settings: Any
) -> Found:
    """All documents of a source, kept and dropped."""
    source: Source = TypeAdapter(Source).validate_python({"name": "s", "type": kind, "path": str(path)} | settings)
    chosen = corpus or Corpus()
    return [one for split in plan_splits(source, split_bytes) for one, _ in read_split(source, split, chosen)]


def texts(found: Found) -> list[str]:
    return [one.text for one in found if isinstance(one, Document)]


def drops(found: Found) -> list[tuple[str, str]]:
    """Rule and id of each drop."""
    return [(one.rule, one.id) for one in found if isinstance(one, Dropped)]


def document(found: Found) -> Document:
    """The only one."""
    (one,) = found
    assert isinstance(one, Document), one
    return one


def gzipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def record(body: bytes, url: str, kind: bytes = b"response", length: int | None = None, headers: bytes = b"") -> bytes:
    """A record of a web archive. headers: of HTTP, or instead of HTTP's for other kinds of record, the media type."""
    if kind == b"response":
        media_type = b"application/http; msgtype=response"
        block = b"HTTP/1.1 200 OK\r\n" + (headers or b"Content-Type: text/html; charset=utf-8\r\n") + b"\r\n" + body
    else:
        media_type, block = headers, body
    head = b"WARC/1.0\r\nWARC-Type: %s\r\nWARC-Target-URI: %s\r\nWARC-Date: 2024-05-01T00:00:00Z\r\n" % (
        kind,
        url.encode(),
    )
    size = len(block) if length is None else length
    return head + b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n" % (media_type, size, block)
