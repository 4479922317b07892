"""Comma- and tab-separated values."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import IO

from pipeline.corpus.compressed import PACKED_SUFFIXES, open_stream
from pipeline.corpus.document import Document
from pipeline.corpus.locations import BadFile, Item, shown
from pipeline.corpus.readers import records
from pipeline.corpus.readers.encoding import FileDecoder
from pipeline.corpus.readers.lines import lines
from pipeline.corpus.readers.records import BadLines, Read, bad_record, no_column, oversized
from pipeline.errors import DataError
from pipeline.recipe import CsvSource

_TABS = (".tsv", ".tab")


def read_csv(source: CsvSource, item: Item, bad_lines: BadLines) -> Read:
    """Rows under a first row of names. Ids are `id_field`, else the file's name, `@` and the row's first byte.

    Raises: BadFile when a column is missing; DataError when a row is broken and `bad_lines` is `fail`.
    """
    where = shown(item.path)
    with open_stream(item.path) as handle:
        rows = _Rows(handle, item, source.delimiter or _delimiter(item.name))
        header = rows.read()
        if header is None:
            return
        if not isinstance(header, list):
            raise BadFile(f"{where}: the first row names no columns: {header}")
        header = [name.strip() for name in header]
        chosen = [_position(where, header, name, "text_fields") for name in source.text_fields]
        name_at, url_at = (_position(where, header, one, "id_field") if one else None for one in _others(source))
        while (row := rows.read()) is not None:
            place = f"{item.name}@{rows.start}"
            if isinstance(row, int):
                yield oversized(source.name, place, row)
                continue
            if not row:
                continue  # a blank line
            if isinstance(row, str) or len(row) != len(header):
                reason = row if isinstance(row, str) else f"{len(row)} values under {len(header)} columns"
                if bad_lines == "fail":
                    raise DataError(f"{where}:{rows.line}: {reason}; mend the row, or set corpus.bad_lines=drop")
                yield bad_record(source.name, place, reason, "" if isinstance(row, str) else " ".join(row), rows.size)
                continue
            text = "\n\n".join(row[at] for at in chosen if row[at].strip())
            facts = {"url": row[url_at]} if url_at is not None and row[url_at] else {}
            name = row[name_at] if name_at is not None else ""
            yield Document(text, name or place, source.name, source.language, {"path": item.name} | facts | rows.facts)


def _delimiter(name: str) -> str:
    name = next((name.removesuffix(end) for end in PACKED_SUFFIXES if name.endswith(end)), name)
    return "\t" if name.endswith(_TABS) else ","


def _others(source: CsvSource) -> tuple[str | None, str | None]:
    return source.id_field, source.url_field


def _position(where: str, header: list[str], name: str, key: str) -> int:
    if name not in header:
        raise BadFile(no_column(where, name, header, key))
    return header.index(name)


class _TooLarge(Exception):
    """A row of more than MAX_RECORD_BYTES: most likely a quotation mark that nothing closes."""


class _Rows:
    """Rows of a file. start: the row's first byte; line: its first, from 1; size: bytes; facts: of its encoding."""

    def __init__(self, handle: IO[bytes], item: Item, delimiter: str) -> None:
        csv.field_size_limit(1 << 62)  # a row is bounded as a whole
        self._lines = lines(handle, item)
        self._decoder = FileDecoder(item.path)
        self._rows = csv.reader(self._feed(), delimiter=delimiter)
        self._read = 0
        self._begun = True
        self.start = self.size = 0
        self.line = 1
        self.facts: dict[str, str] = {}

    def read(self) -> list[str] | str | int | None:
        """Values of the next row; what is wrong with it; its size where it is too large; None at the end."""
        self._begun, self.facts = True, {}
        self.line = self._read + 1
        self.size = 0
        try:
            return next(self._rows, None)
        except csv.Error as error:
            return f"not a row that can be read: {error}"
        except _TooLarge:
            # A generator that raised is at its end: another goes on where it was.
            self._rows = csv.reader(self._feed(), dialect=self._rows.dialect)
            return self.size

    def _feed(self) -> Iterator[str]:
        for offset, raw in self._lines:
            self._read += 1
            if self._begun:
                self.start, self._begun = offset, False
            self.size += raw if isinstance(raw, int) else len(raw)
            if isinstance(raw, int) or self.size > records.MAX_RECORD_BYTES:
                raise _TooLarge
            text, facts = self._decoder(raw)
            self.facts |= facts
            yield text
