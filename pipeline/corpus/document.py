"""The one record type of the corpus: a document, or what is left of one that was dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

Item = TypeVar("Item")
BEGINNING = 200  # characters of a dropped document that are kept to look at


@dataclass(slots=True)
class Document:
    """A text and where it came from.

    id: unique within its source and traceable to the place it was read from. language: ISO 639 code, where known.
    metadata: further facts, all text (`path`; for Python sources `package` too). private: personal data and secrets
    that were replaced, by type. contaminated: items of evaluation sets that overlap with it, `set/id`.
    """

    text: str
    id: str
    source: str
    language: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    private: dict[str, int] = field(default_factory=dict)
    contaminated: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Dropped:
    """A document that goes no further: by which rule, with what value against what threshold.

    text: its beginning, at most BEGINNING characters. bytes: its size as read, in UTF-8. signals: as JSON, where the
    recipe writes them. private, contaminated, language: as of a Document. cluster: of a near-duplicate, the key of the
    document that stays for its cluster of `cluster_size`; value is then the estimated similarity to it, which is below
    the threshold where documents between them joined the two.
    """

    id: str
    source: str
    rule: str
    value: float | int | str
    threshold: float | int | str | None
    text: str
    bytes: int
    signals: str | None = None
    private: dict[str, int] = field(default_factory=dict)
    contaminated: list[str] = field(default_factory=list)
    language: str | None = None
    cluster: str | None = None
    cluster_size: int = 0


def utf8_bytes(text: str) -> int:
    """Size of a text in UTF-8, lone surrogates included (three bytes each)."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def in_batches(documents: Iterable[Document], characters: int) -> Iterator[list[Document]]:
    """Documents in lists that end when they hold so many characters of text: few calls, and memory has a bound."""
    return in_batches_of(documents, characters, lambda document: len(document.text))


def in_batches_of(items: Iterable[Item], most: int, size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Items in lists that end when their sizes add up to `most`."""
    batch: list[Item] = []
    held = 0
    for item in items:
        batch.append(item)
        held += size(item)
        if held >= most:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def drop(document: Document, rule: str, value: float | int | str, threshold: float | int | str | None) -> Dropped:
    """What is left of a document that a rule drops."""
    beginning = document.text[:BEGINNING]
    size = utf8_bytes(document.text)
    return Dropped(document.id, document.source, rule, value, threshold, beginning, size, language=document.language)
