"""Plain text, Markdown and reStructuredText."""

from __future__ import annotations

import re

from pipeline.corpus.compressed import open_stream
from pipeline.corpus.document import Document, Dropped
from pipeline.corpus.locations import Item
from pipeline.corpus.readers import records
from pipeline.corpus.readers.encoding import FileDecoder, decode
from pipeline.corpus.readers.lines import lines, paragraphs
from pipeline.corpus.readers.records import Read, oversized
from pipeline.recipe import MarkdownSource, TextSource

# Settings at the beginning of a page for what renders it: YAML between `---` lines, or TOML between `+++`.
_FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\n(?:.*\n){0,1000}?(?:\1|\.\.\.)[ \t]*(?:\n|\Z)")


def read_text(source: TextSource, item: Item) -> Read:
    """Plain text: the file, its lines or its paragraphs, in whatever encoding it is found to be.

    Ids are the file's name, with `@` and the byte where a line or paragraph begins.
    """
    with open_stream(item.path) as handle:
        if source.split == "file":
            yield whole_file(source.name, item, handle.read(records.MAX_RECORD_BYTES + 1), source.language)
            return
        decoder = FileDecoder(item.path)
        pieces = lines(handle, item) if source.split == "line" else paragraphs(handle, item)
        for offset, raw in pieces:
            place = f"{item.name}@{offset}"
            if isinstance(raw, int):
                yield oversized(source.name, place, raw)
                continue
            text, facts = decoder(raw)
            if text := text.strip("\r\n"):
                yield Document(text, place, source.name, source.language, {"path": item.name} | facts)


def read_markdown(source: MarkdownSource, item: Item) -> Read:
    """A file, without its front matter. Metadata: `format`, `markdown` or `rst`."""
    with open_stream(item.path) as handle:
        document = whole_file(source.name, item, handle.read(records.MAX_RECORD_BYTES + 1), source.language)
    if isinstance(document, Document):
        document.metadata["format"] = "rst" if re.search(r"\.(rst|rest)\b", item.name, re.IGNORECASE) else "markdown"
        document.text = _FRONT_MATTER.sub("", document.text.replace("\r\n", "\n")).lstrip("\n")
    yield document


def whole_file(source: str, item: Item, content: bytes, language: str | None) -> Document | Dropped:
    """A file that is one document; `content` is cut after MAX_RECORD_BYTES + 1."""
    if len(content) > records.MAX_RECORD_BYTES:
        return oversized(source, item.name, max(item.size, len(content)))
    text, facts = decode(content)
    return Document(text, item.name, source, language, {"path": item.name} | facts)
