"""What all readers share: the bound of a record, records that cannot be used, named fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pipeline.corpus.document import BEGINNING, Document, Dropped, utf8_bytes
from pipeline.corpus.locations import Item
from pipeline.errors import DataError
from pipeline.recipe import HuggingFaceSource, RecordSource

MAX_RECORD_BYTES = 1 << 26  # a larger document or line is dropped unread: it is a dump, and would fill the memory
BadLines = Literal["fail", "drop"]
Read = Iterator[Document | Dropped]


def oversized(source: str, place: str, size: int) -> Dropped:
    """A record that was passed over unread."""
    return Dropped(place, source, "max_record_bytes", size, MAX_RECORD_BYTES, "", size)


def bad_record(source: str, place: str, reason: str, text: str, size: int) -> Dropped:
    """A record that cannot be read, and why."""
    return Dropped(place, source, "bad_record", reason, None, text[:BEGINNING], size)


def left_out(source: str, item: Item, rule: str, value: str) -> Dropped:
    """A file that is passed over for what it is."""
    return Dropped(item.name, source, rule, value, None, "", item.size)


def record(
    source: RecordSource | HuggingFaceSource,
    place: str,
    where: str,
    values: dict[str, Any],
    bad_lines: BadLines,
    path: str,
) -> Document | Dropped:
    """The document of a table's row. Raises: DataError when it is no text and `bad_lines` is `fail`."""
    try:
        text, name, facts = fields(values, source.text_field, source.id_field, source.url_field)
    except ValueError as error:
        if bad_lines == "fail":
            raise DataError(f"{where}: {error}; mend the row, or set corpus.bad_lines=drop") from None
        return bad_record(source.name, place, str(error), "", 0)
    if len(text) > MAX_RECORD_BYTES // 4 and (size := utf8_bytes(text)) > MAX_RECORD_BYTES:
        return oversized(source.name, place, size)
    return Document(text, name or place, source.name, source.language, {"path": path} | facts)


def fields(
    values: Any, text_field: str, id_field: str | None, url_field: str | None
) -> tuple[str, str | None, dict[str, str]]:
    """Text, id and address (as metadata) of a record. Raises: ValueError that says what is wrong with it."""
    if not isinstance(values, dict):
        raise ValueError(f"is a JSON {_kind(values)}, not an object with a key '{text_field}'")
    for column in (text_field, id_field, url_field):
        if column and column not in values:
            raise ValueError(no_column("", column, list(values)).removeprefix(": "))
    text, name = values[text_field], values[id_field] if id_field else None
    if not isinstance(text, str):
        raise ValueError(f"'{text_field}' is a {_kind(text)}, not text")
    if id_field and (not isinstance(name, (str, int)) or isinstance(name, bool)):
        raise ValueError(f"'{id_field}' is a {_kind(name)}, not text or a whole number")
    return text, str(name) if id_field else None, _address(values, url_field)


def _address(values: Mapping[str, Any], url_field: str | None) -> dict[str, str]:
    address = values[url_field] if url_field else None
    if address is not None and not isinstance(address, str):
        raise ValueError(f"'{url_field}' is a {_kind(address)}, not text or null")
    return {"url": address} if address else {}


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number" if isinstance(value, (int, float)) else type(value).__name__)


def no_column(where: str, column: str, there: list[str], key: str = "text_field") -> str:
    """That a column is missing, and which are there."""
    names = ", ".join(str(name)[:40] for name in there[:20]) or "none at all"
    return f"{where}: no column '{column}'; there are: {names}; set {key} (or id_field, url_field) to one of them"
