"""The one record type of the corpus: a document, or what is left of one that was dropped."""

from __future__ import annotations

from dataclasses import dataclass, field

BEGINNING = 200  # characters of a dropped document that are kept to look at


@dataclass(slots=True)
class Document:
    """A text and where it came from.

    id: unique within its source and traceable to the place it was read from. language: ISO 639 code, where known.
    metadata: further facts, all text (`path`; for Python sources `package` too).
    """

    text: str
    id: str
    source: str
    language: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Dropped:
    """A document that goes no further: by which rule, with what value against what threshold.

    text: its beginning, at most BEGINNING characters. bytes: its size as read, in UTF-8.
    """

    id: str
    source: str
    rule: str
    value: float | int | str
    threshold: float | int | str | None
    text: str
    bytes: int


def utf8_bytes(text: str) -> int:
    """Size of a text in UTF-8, lone surrogates included (three bytes each)."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def drop(document: Document, rule: str, value: float | int | str, threshold: float | int | str | None) -> Dropped:
    """What is left of a document that a rule drops."""
    beginning = document.text[:BEGINNING]
    return Dropped(document.id, document.source, rule, value, threshold, beginning, utf8_bytes(document.text))
