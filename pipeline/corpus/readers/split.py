"""Read a split: the reader of each source's type, repair of what was decoded wrongly, files that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.corpus.document import Document, Dropped
from pipeline.corpus.locations import BadFile, Item
from pipeline.corpus.python_sources import read_python
from pipeline.corpus.readers.code import read_code
from pipeline.corpus.readers.encoding import repair
from pipeline.corpus.readers.html import read_html
from pipeline.corpus.readers.huggingface import read_huggingface
from pipeline.corpus.readers.jsonl import read_jsonl
from pipeline.corpus.readers.mail import read_mail
from pipeline.corpus.readers.parquet import read_parquet
from pipeline.corpus.readers.records import Read, left_out
from pipeline.corpus.readers.tables import read_csv
from pipeline.corpus.readers.text import read_markdown, read_text
from pipeline.corpus.readers.warc import read_warc
from pipeline.corpus.sources import Split
from pipeline.recipe import (
    CodeSource,
    Corpus,
    CsvSource,
    HtmlSource,
    HuggingFaceSource,
    JsonlSource,
    MailSource,
    MarkdownSource,
    ParquetSource,
    PythonSource,
    Source,
    TextSource,
)


def read_split(source: Source, split: Split, corpus: Corpus) -> Iterator[tuple[Document | Dropped, Item | None]]:
    """The documents of a split, in order, each with the item that it came from.

    A file that fails in its middle leaves the documents before that place, where `bad_files` is `skip`.
    Raises: DataError naming the file and the place when it cannot be read.
    """
    mends = corpus.repair and not isinstance(source, (PythonSource, CodeSource))  # a program means what it says
    if isinstance(source, HuggingFaceSource):
        for document in read_huggingface(source, corpus.bad_lines):
            yield _repaired(document) if mends else document, None
        return
    for item in split.items:
        try:
            for document in _read(source, item, corpus):
                yield _repaired(document) if mends else document, item
        except BadFile as error:
            if corpus.bad_files == "fail":
                hint = "" if "corpus.bad_files" in str(error) else "; corpus.bad_files=skip passes over such files"
                raise BadFile(f"source {source.name}: {error}{hint}") from None
            yield left_out(source.name, item, "bad_file", str(error)[:500]), item


def _read(source: Source, item: Item, corpus: Corpus) -> Read:  # noqa: PLR0911 - one return a type
    if isinstance(source, PythonSource):
        return read_python(source, item)
    if isinstance(source, TextSource):
        return read_text(source, item)
    if isinstance(source, MarkdownSource):
        return read_markdown(source, item)
    if isinstance(source, CodeSource):
        return read_code(source, item)
    if isinstance(source, JsonlSource):
        return read_jsonl(source, item, corpus.bad_lines)
    if isinstance(source, ParquetSource):
        return read_parquet(source, item, corpus.bad_lines)
    if isinstance(source, CsvSource):
        return read_csv(source, item, corpus.bad_lines)
    if isinstance(source, HtmlSource):
        return read_html(source, item)
    if isinstance(source, MailSource):
        return read_mail(source, item)
    assert not isinstance(source, HuggingFaceSource)
    return read_warc(source, item)


def _repaired(document: Document | Dropped) -> Document | Dropped:
    if isinstance(document, Document):
        document.text, facts = repair(document.text)
        document.metadata |= facts
    return document
