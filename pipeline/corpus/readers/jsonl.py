"""JSON lines."""

from __future__ import annotations

import json
from typing import Any

import orjson

from pipeline.corpus.compressed import open_stream
from pipeline.corpus.document import Document
from pipeline.corpus.locations import Item, shown
from pipeline.corpus.readers.lines import line_number, lines
from pipeline.corpus.readers.records import BadLines, Read, bad_record, fields, oversized
from pipeline.errors import DataError
from pipeline.recipe import JsonlSource


def read_jsonl(source: JsonlSource, item: Item, bad_lines: BadLines) -> Read:
    """JSON lines; blank lines are passed over. Ids are `id_field`, else the file's name, `@` and the line's first byte.

    Raises: DataError naming file and line when a line is broken and `bad_lines` is `fail`.
    """
    with open_stream(item.path) as handle:
        for offset, raw in lines(handle, item):
            place = f"{item.name}@{offset}"
            if isinstance(raw, int):
                yield oversized(source.name, place, raw)
                continue
            if not raw.strip():
                continue
            try:
                text, name, facts = fields(_parse(raw), source.text_field, source.id_field, source.url_field)
            except ValueError as error:
                if bad_lines == "fail":
                    number = line_number(item.path, offset)
                    raise DataError(
                        f"{shown(item.path)}:{number}: {error}; mend the line, or set corpus.bad_lines=drop"
                    ) from None
                yield bad_record(source.name, place, str(error), raw.decode("utf-8", "replace"), len(raw))
                continue
            yield Document(text, name or place, source.name, source.language, {"path": item.name} | facts)


def _parse(line: bytes) -> Any:
    """A line of JSON. Raises: ValueError that says what is wrong."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass  # stricter than the standard library: NaN and lone surrogates deserve a second reading
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start} of the line") from None
    except RecursionError:
        raise ValueError("not usable JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise ValueError(f"not usable JSON: {str(error)[:100]}") from None
