"""Mail: mbox files and single messages (RFC 5322, 2045–2049). A document is the text of a message."""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterator
from email.message import Message
from typing import IO

from pipeline.corpus.compressed import open_stream
from pipeline.corpus.document import Document, Dropped
from pipeline.corpus.locations import Item
from pipeline.corpus.readers import records
from pipeline.corpus.readers.encoding import decode
from pipeline.corpus.readers.html import MAX_DEPTH, MAX_PAGE_BYTES, ExtractionError, decode_page, extract, page_depth
from pipeline.corpus.readers.lines import lines
from pipeline.corpus.readers.records import Read, bad_record, oversized
from pipeline.recipe import MailSource

# An mbox's own line before each message, with the time of arrival. Bounded: a text may begin with `From ` as well.
_FROM = re.compile(rb"From \S{1,320}[ \t][^\n]{0,80}?\d{2}:\d{2}")
_QUOTED_FROM = re.compile(rb"^>(>*From )", re.MULTILINE)
_INTRODUCES = re.compile(r"^(On\b.{5,300}\bwrote:|.{3,200}\b(schrieb|a écrit|escribió|ha scritto|写道)\s*[:：])\s*$")
_MOST_PARTS = 1000  # that are looked through for a text; more are a bomb's


def read_mail(source: MailSource, item: Item) -> Read:
    """Messages, their plain part, or else the text of their HTML part; attachments are left out.

    Ids: the file's name, in an mbox with `@` and the message's first byte. No header is kept: they hold addresses.
    """
    with open_stream(item.path) as handle:
        for offset, raw in _messages(handle, item):
            place = item.name if offset is None else f"{item.name}@{offset}"
            if isinstance(raw, int):
                yield oversized(source.name, place, raw)
            else:
                yield _document(source, place, item, raw)


def _messages(handle: IO[bytes], item: Item) -> Iterator[tuple[int | None, bytes | int]]:
    """Offset and bytes of each message, or its size where it is too large; no offset in a file of one message."""
    start, size, held = 0, 0, bytearray()
    mbox, blank = False, True
    for offset, raw in lines(handle, item):
        line = raw if isinstance(raw, bytes) else b""
        if blank and _FROM.match(line) and (mbox or not size):
            if size:
                yield start, bytes(held) if size == len(held) else size
            mbox, start, size, held = True, offset, 0, bytearray()
            continue
        blank = not line.strip() and isinstance(raw, bytes)
        if not size and blank and not mbox:
            continue  # blank lines before the first
        size += len(line) or (raw if isinstance(raw, int) else 0)
        if size <= records.MAX_RECORD_BYTES:
            held += line
    if size or mbox:
        yield start if mbox else None, bytes(held) if size == len(held) else size


def _document(source: MailSource, place: str, item: Item, raw: bytes) -> Document | Dropped:
    try:
        message = email.message_from_bytes(_QUOTED_FROM.sub(rb"\1", raw), policy=email.policy.compat32)
        part = _text_part(message)
        if part is None:
            return bad_record(source.name, place, "no part of the message is text", "", len(raw))
        content = part.get_payload(decode=True)
        kind, charset = part.get_content_type(), part.get_content_charset()
    except Exception as error:  # the library promises to raise nothing on a broken message, and does not keep it
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return bad_record(source.name, place, f"not a message that can be read: {reason}", "", len(raw))
    assert isinstance(content, bytes)
    facts = {"path": item.name}
    if kind == "text/html":
        if len(content) > MAX_PAGE_BYTES:
            return Dropped(place, source.name, "max_page_bytes", len(content), MAX_PAGE_BYTES, "", len(raw))
        text, found = decode_page(content, charset)
        if (depth := page_depth(text)) > MAX_DEPTH:
            return Dropped(place, source.name, "max_page_depth", depth, MAX_DEPTH, "", len(raw))
        try:
            text = extract(text, "all_text")
        except ExtractionError as error:
            return bad_record(source.name, place, f"no text can be extracted: {error}", "", len(raw))
    else:
        text, found = decode(content, charset)
    text = text.replace("\r\n", "\n")
    if source.drop_quotes:
        text = without_quotes(text)
    return Document(text.strip("\n"), place, source.name, source.language, facts | found)


def _text_part(message: Message) -> Message | None:
    """The first plain part that is no attachment, else the first HTML part."""
    page = None
    for number, part in enumerate(message.walk()):
        if number > _MOST_PARTS:
            break
        if part.is_multipart() or part.get_content_disposition() == "attachment":
            continue
        kind = part.get_content_type()
        if kind == "text/plain":
            return part
        if kind == "text/html" and page is None:
            page = part
    return page


def without_quotes(text: str) -> str:
    """A message without quoted lines, the line that introduces them, and its signature (from `-- ` on, RFC 3676)."""
    kept: list[str] = []
    for line in text.split("\n"):
        if line == "-- ":
            break
        if line.lstrip().startswith(">"):
            while kept and not kept[-1].strip():
                kept.pop()
            if kept and _INTRODUCES.match(kept[-1]):
                kept.pop()
            continue
        kept.append(line)
    return "\n".join(kept)
