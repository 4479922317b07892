"""Source code trees."""

from __future__ import annotations

from pipeline.corpus.compressed import PACKED_SUFFIXES, open_stream
from pipeline.corpus.document import Document
from pipeline.corpus.locations import Item
from pipeline.corpus.programming import language_of, minified, vendored
from pipeline.corpus.readers import records
from pipeline.corpus.readers.records import Read, left_out
from pipeline.corpus.readers.text import whole_file
from pipeline.recipe import CodeSource

_LOOKED_AT = 8000  # bytes in which a NUL means that a file is binary: git's rule (buffer_is_binary)
_LONG_LINE = 1000  # characters of an average line beyond which JavaScript or CSS was written by no person


def read_code(source: CodeSource, item: Item) -> Read:
    """A file, with its `programming_language` in the metadata; or which of vendored, minified, binary it is."""
    name = next((item.name.removesuffix(end) for end in PACKED_SUFFIXES if item.name.endswith(end)), item.name)
    language = language_of(name)
    if language is None or (source.only and language not in source.only):
        return
    if not source.vendored and (folder := vendored(name)):
        yield left_out(source.name, item, "vendored", folder)
        return
    if minified(name):
        yield left_out(source.name, item, "minified", name.rpartition("/")[2][-100:])
        return
    with open_stream(item.path) as handle:
        content = handle.read(records.MAX_RECORD_BYTES + 1)
    if b"\0" in content[:_LOOKED_AT] and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
        yield left_out(source.name, item, "binary", "NUL")
        return
    if language in ("javascript", "css") and (average := len(content) // (1 + content.count(b"\n"))) > _LONG_LINE:
        yield left_out(source.name, item, "minified", f"{average} bytes a line")
        return
    document = whole_file(source.name, item, content, source.language)
    if isinstance(document, Document):
        document.metadata["programming_language"] = language
    yield document
