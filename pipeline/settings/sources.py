"""The sources of a corpus, one class a `type`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from pipeline.settings.rules import SETS, SetName
from pipeline.settings.section import Section


class SourceBase(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$", max_length=64)]
    """Short name; it appears in file names, metadata and every table."""
    language: str | None = None
    """Language of all its documents (ISO 639 code), where known; written to each document's metadata."""
    weight: PositiveFloat = 1.0
    """How often its tokens are seen in pretraining, relative to sources of weight 1."""
    max_bytes: PositiveInt | None = None
    """Stop after so many bytes of text (UTF-8), in the source's order."""
    max_share: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """At most this share of what is seen in pretraining; the other sources fill the rest, by their weights."""
    rule_sets: tuple[SetName, ...] | None = None
    """Which of the sets that `corpus.rules` switches on judge it; null: source code is judged by `code` and `lists`,
    all else by all but `code`. Where `code` does, the text's language is not asked."""

    @property
    def holds_code(self) -> bool:
        """Whether its documents are programs, as far as the recipe tells."""
        return self.rule_sets is not None and "code" in self.rule_sets

    @property
    def judged_by(self) -> tuple[str, ...]:
        """The rule sets that its documents meet where the recipe switches them on."""
        if self.rule_sets is not None:
            return self.rule_sets
        return ("lists", "code") if self.holds_code else tuple(name for name in SETS if name != "code")


class PythonSource(SourceBase):
    """Python's standard library and the packages installed beside this one: real text on every machine."""

    type: Literal["python_docs"]
    packages: tuple[str, ...] = ("stdlib",)
    """Top-level import names; `stdlib` is the standard library. A package that is not installed is an error."""
    content: Literal["source", "docstrings"] = "source"
    """Whole source files, or the docstrings in them (one document a file)."""

    @property
    def holds_code(self) -> bool:
        return self.content == "source" if self.rule_sets is None else super().holds_code


class FileSource(SourceBase):
    path: Annotated[str, Field(min_length=1)]
    """A file, a folder (searched in depth) or a glob pattern; relative to the folder the command is given in, or
    remote: `s3://…`, `gs://…`, `https://…`, whatever fsspec opens. Plain, .gz, .zst, .bz2 or .xz."""


class TextSource(FileSource):
    """Plain text: each file is a document, whatever its suffix."""

    type: Literal["text"]
    split: Literal["file", "line", "paragraph"] = "file"
    """What a document is: a file, a line, or a run of lines between blank lines."""


class MarkdownSource(FileSource):
    """Markdown and reStructuredText, a document a file: its markup is kept, its front matter left out."""

    type: Literal["markdown"]


class CodeSource(FileSource):
    """A tree of source code, a document a file, its programming language in the metadata.

    What is known by its suffix or name is read; vendored, minified and binary files are dropped by these rules.
    """

    type: Literal["code"]
    only: tuple[str, ...] = ()
    """Programming languages to read (`python`, `c`, `rust`…); empty: all."""
    vendored: bool = False
    """Read what lies in folders of other people's code (`node_modules`, `vendor`, `third_party`…) too."""

    @property
    def holds_code(self) -> bool:
        return self.rule_sets is None or super().holds_code


class RecordSource(FileSource):
    """Files of records with named fields."""

    text_field: str = "text"
    """The key or column that holds the text."""
    id_field: str | None = None
    """The one that holds a document's id, if any; else file and place serve."""
    url_field: str | None = None
    """The one that holds where it was published, if any: what `rules.lists` blocks addresses by."""


class JsonlSource(RecordSource):
    """JSON lines."""

    type: Literal["jsonl"]


class ParquetSource(RecordSource):
    """Parquet files."""

    type: Literal["parquet"]


class CsvSource(FileSource):
    """Comma- or tab-separated values whose first row names the columns; quoted values may hold line ends."""

    type: Literal["csv"]
    text_fields: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    """Columns that hold text; those of several that are not empty are joined by a blank line."""
    id_field: str | None = None
    url_field: str | None = None
    delimiter: Annotated[str, Field(pattern=r"^[^\n\r\"]$")] | None = None
    """Between two values; null: a tab in .tsv and .tab, else a comma."""


class PageSource(FileSource):
    """What holds web pages."""

    extract: Literal["resiliparse", "trafilatura", "all_text"] = "resiliparse"
    """How a page's text is found. On pages of cppreference: resiliparse's main content at 22 MB/s of HTML a core, with
    97 % of the list items; trafilatura's at 1.6 MB/s, with 96 %; all_text, with menus and footers, 53 MB/s. The first
    takes a bulleted list that stands at the top of a page's tree for a menu."""


class HtmlSource(PageSource):
    """HTML files, a document a page."""

    type: Literal["html"]


class WarcSource(PageSource):
    """Web archives: the pages of `response` and `resource` records, the text of `conversion` ones (WET)."""

    type: Literal["warc"]


class MailSource(FileSource):
    """Mail: mbox files, and single messages (.eml, Maildir). A document is the text of a message."""

    type: Literal["mail"]
    drop_quotes: bool = False
    """Leave out quoted lines, the line that introduces them, and the signature."""


class HuggingFaceSource(SourceBase):
    """Any `datasets` data set, streamed: a hub name, or a local folder or builder with `data_files`."""

    type: Literal["huggingface"]
    path: Annotated[str, Field(min_length=1)]
    """Hub name (`user/set`), local folder, or builder (`json`, `csv`, `parquet`, `text`)."""
    config: str | None = None
    revision: str | None = None
    """Branch, tag or commit of a data set on the hub. Only a commit's text never changes under the recipe."""
    split: str = "train"
    data_files: str | None = None
    text_field: str = "text"
    id_field: str | None = None
    url_field: str | None = None


Source = Annotated[
    PythonSource
    | TextSource
    | MarkdownSource
    | CodeSource
    | JsonlSource
    | ParquetSource
    | CsvSource
    | HtmlSource
    | WarcSource
    | MailSource
    | HuggingFaceSource,
    Field(discriminator="type"),
]
