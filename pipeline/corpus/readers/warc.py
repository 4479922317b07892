"""Web archives (WARC 1.0 and 1.1): pages of `response` and `resource` records, texts of `conversion` records (WET).

fastwarc reads the records. It takes a wrong length or a file that is cut without a word; both are noticed here: a
record is read whole and its bytes are counted, one that holds another's beginning or that is not followed by one is
dropped, and reading goes on at the next line that begins a record.
"""

from __future__ import annotations

import io
import re
from collections.abc import Generator, Iterator
from typing import IO, Any

from pipeline.corpus.compressed import open_stream, read_some
from pipeline.corpus.document import Document, Dropped
from pipeline.corpus.locations import BadFile, Item, shown
from pipeline.corpus.readers import records
from pipeline.corpus.readers.encoding import decode
from pipeline.corpus.readers.html import MAX_PAGE_BYTES, page
from pipeline.corpus.readers.records import Read, bad_record, oversized
from pipeline.recipe import WarcSource

_NEXT = re.compile(rb"\r?\n\r?\nWARC/1\.[01]\r?\n")  # a record's end and the beginning of another
_LONGEST_HEADER = 1 << 16
_MOST_FAULTS = 100  # in a file: after each it is read anew from its beginning to the fault
_BLOCK = 1 << 20
_PAGES = ("text/html", "application/xhtml+xml")
_TEXTS = ("text/plain",)


def read_warc(source: WarcSource, item: Item) -> Read:
    """The documents of an archive, Ids: the file's name, `@` and the record's first byte (unpacked).

    Metadata: `url`, `date`. Responses that are no page are dropped: `http_status` (other than 200), `media_type`.
    Raises: BadFile when the file ends early or is no archive.
    """
    for offset, facts, content in _records(item):
        place = f"{item.name}@{offset}"
        metadata = {"path": item.name} | {key: facts[key] for key in ("url", "date") if facts.get(key)}
        if isinstance(content, int):
            yield oversized(source.name, place, content)
        elif "fault" in facts:
            yield bad_record(source.name, place, facts["fault"], "", len(content))
        elif facts["type"] == "conversion":
            text, found = decode(content)
            yield Document(text, place, source.name, facts.get("language") or source.language, metadata | found)
        else:
            yield _page(source, place, facts, content, metadata)


def _page(
    source: WarcSource, place: str, facts: dict[str, str], content: bytes, metadata: dict[str, str]
) -> Document | Dropped:
    size, media_type = len(content), facts["media_type"]
    if facts["type"] == "response":
        try:
            status, media_type, content = _http(content)
        except ValueError as error:
            return bad_record(source.name, place, str(error), "", size)
        if status != 200:
            return Dropped(place, source.name, "http_status", status, 200, metadata.get("url", "")[:200], size)
    kind, _, options = media_type.partition(";")
    kind = kind.strip().lower()
    charset = re.search(r"charset\s*=\s*[\"']?([^\s\"';]+)", options, re.IGNORECASE)
    if kind in _PAGES or (not kind and content.lstrip()[:1] == b"<"):
        return page(source, content, place, metadata, charset[1] if charset else None)
    if kind in _TEXTS:
        if len(content) > MAX_PAGE_BYTES:
            return Dropped(place, source.name, "max_page_bytes", len(content), MAX_PAGE_BYTES, "", size)
        text, found = decode(content, charset[1] if charset else None)
        return Document(text, place, source.name, source.language, metadata | found)
    return Dropped(
        place, source.name, "media_type", kind[:100] or "not stated", None, metadata.get("url", "")[:200], size
    )


def _http(content: bytes) -> tuple[int, str, bytes]:
    """Status, media type and body of an HTTP response; the body unpacked up to MAX_PAGE_BYTES + 1.

    Raises: ValueError that says what is wrong.
    """
    from fastwarc import stream_io
    from fastwarc.warc import HeaderMap

    whole = io.BytesIO(content)
    headers = HeaderMap("latin1")
    try:
        whole.seek(headers.parse(io.BytesIO(content), True))  # it reads ahead; it returns the length of the headers
        status = headers.status_code or 0
        body: Any = whole
        # Crawlers often store a body unpacked, under the headers that it came with: it is looked at as well.
        if "chunked" in (headers.get("transfer-encoding") or "").lower() and _is_chunked(content[whole.tell() :][:20]):
            body = io.BytesIO(_bounded(stream_io.ChunkedReader(body)))
        coding = (headers.get("content-encoding") or "").strip().lower()
        start = body.tell()
        first = body.read(2)
        body.seek(start)
        if coding in ("gzip", "x-gzip") and first == b"\x1f\x8b":
            body = stream_io.GzipReader(body)
        elif coding == "deflate" and first[:1] == b"\x78":
            body = stream_io.GzipReader(body, zlib=True)
        elif coding == "br" and first[:1] not in (b"<", b"\n", b" "):
            body = stream_io.BrotliReader(body)
        return status, headers.get("content-type") or "", _bounded(body)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"not an HTTP response that can be read: {' '.join(str(error).split())[:200]}") from None


def _bounded(body: Any) -> bytes:
    """At most MAX_PAGE_BYTES + 1 of a body: readers may give less than they are asked for."""
    found = bytearray()
    while len(found) <= MAX_PAGE_BYTES and (block := body.read(MAX_PAGE_BYTES + 1 - len(found))):
        found += block
    return bytes(found)


def _is_chunked(beginning: bytes) -> bool:
    return bool(re.match(rb"\s*[0-9a-fA-F]{1,8}\s*(;[^\r\n]*)?\r?\n", beginning))


# --- records -------------------------------------------------------------------------------------------------------

Found = tuple[int, dict[str, str], bytes | int]  # offset, facts, and content; or its size alone when it is too large


def _records(item: Item) -> Iterator[Found]:
    """Records that may hold a text, from those that are whole; a wrong one has a `fault` among its facts."""
    start: int | None = 0
    faults = 0
    while start is not None:
        with open_stream(item.path) as handle:
            if start:
                _skip(handle, start)
            fault = yield from _run_of_records(handle, item, start)
        if fault is None:
            return
        faults += 1
        if faults > _MOST_FAULTS:
            raise BadFile(f"{shown(item.path)}: more than {_MOST_FAULTS} records of a wrong length; fetch it again")
        with open_stream(item.path) as handle:
            _skip(handle, fault + 1)
            start = _next_beginning(handle, fault + 1)


def _run_of_records(handle: IO[bytes], item: Item, start: int) -> Generator[Found, None, int | None]:
    """Records from here to the first that is wrong, whose offset is returned; None at the file's end."""
    from fastwarc.warc import ArchiveIterator

    where = shown(item.path)
    last: Found | None = None  # what follows a record tells whether its length is right
    stream = _Counted(handle)
    archive = iter(
        ArchiveIterator(
            stream,
            parse_http=False,
            stream_detect=False,
            fsspec_args=False,
            max_header_len=_LONGEST_HEADER,
        )
    )
    while True:
        try:
            entry = next(archive, None)
        except Exception as error:
            if stream.fault is not None or not isinstance(error, OSError):
                if last is not None and _is_text(last[1]):
                    yield last  # it was whole
                raise stream.fault or error from None
            if last is None:
                raise BadFile(f"{where}: no web archive at byte {start}: {error}; fetch it again") from None
            yield last[0], {"fault": "a wrong Content-Length: no record follows"}, b""
            return last[0]
        if last is not None and _is_text(last[1]):
            yield last
        if entry is None:
            return None
        offset = start + entry.stream_pos
        facts = {
            "type": str(entry.record_type),
            "url": (entry.headers.get("WARC-Target-URI") or "").strip("<>"),
            "date": entry.headers.get("WARC-Date") or "",
            "media_type": entry.headers.get("Content-Type") or "",
            "language": _language(entry.headers.get("WARC-Identified-Content-Language")),
        }
        stated = entry.headers.get("Content-Length") or ""
        length = int(stated) if stated.isascii() and stated.isdigit() else None
        size, content, swallows = _content(entry.reader, length or 0)
        if swallows:
            yield offset, {"fault": f"a wrong Content-Length ({length}): another record begins within it"}, b""
            return offset
        if length is None or size < length:
            raise BadFile(
                f"{where}: the record at byte {offset} ends early ({size} bytes of {stated or 'a length not stated'}); "
                "the archive is not whole, fetch it again"
            )
        last = (offset, facts, content if size <= records.MAX_RECORD_BYTES else size)


def _content(reader: Any, length: int) -> tuple[int, bytes, bool]:
    """Size of a record, its content (its beginning, where it is too large), and whether another begins within it."""
    held, size = bytearray(), 0
    tail = b""
    while size < length and (block := reader.read(min(_BLOCK, length - size))):
        if _NEXT.search(tail + block):
            return size, b"", True
        tail = block[-20:]
        size += len(block)
        if size <= records.MAX_RECORD_BYTES:
            held += block
    return size, bytes(held), False


def _is_text(facts: dict[str, str]) -> bool:
    return facts["type"] in ("conversion", "resource") or (
        facts["type"] == "response" and facts["media_type"].lower().startswith("application/http")
    )


def _language(stated: str | None) -> str:
    """The first of the languages (ISO 639-3) that a WET record states; only where it is the only one."""
    return stated if stated and re.fullmatch(r"[a-z]{2,3}", stated) else ""


class _Counted(io.RawIOBase):
    """A stream for fastwarc, whose offsets begin at 0 wherever it stands now. fault: what reading it raised."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle, self._position = handle, 0
        self.fault: Exception | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        try:
            data = read_some(self._handle, size if size >= 0 else _BLOCK)
        except Exception as error:
            self.fault = error
            raise
        self._position += len(data)
        return data

    def tell(self) -> int:
        return self._position


def _skip(handle: IO[bytes], count: int) -> None:
    while count and (block := handle.read(min(count, _BLOCK))):
        count -= len(block)


def _next_beginning(handle: IO[bytes], offset: int) -> int | None:
    """Where the next line begins that begins a record; None where there is none."""
    fresh = False  # the first piece is the rest of a line
    while raw := handle.readline(_BLOCK):
        if fresh and raw.startswith((b"WARC/1.0", b"WARC/1.1")):
            return offset
        offset += len(raw)
        fresh = raw.endswith(b"\n")
    return None
