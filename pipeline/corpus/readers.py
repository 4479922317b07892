"""Readers: one file of a source to documents, streaming. No record larger than MAX_RECORD_BYTES is held in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import orjson

from pipeline.corpus.compressed import open_stream
from pipeline.corpus.document import BEGINNING, Document, Dropped
from pipeline.corpus.sources import Item
from pipeline.errors import DataError
from pipeline.recipe import HuggingFaceSource, JsonlSource, ParquetSource, TextSource

MAX_RECORD_BYTES = 1 << 26  # a larger document or line is dropped unread: it is a dump, and would fill the memory
BadLines = Literal["fail", "drop"]
Read = Iterator[Document | Dropped]


def read_text(source: TextSource, item: Item) -> Read:
    """Plain text: the file, its lines or its paragraphs. Bytes that are no UTF-8 become U+FFFD.

    Ids are the file's name, with `@` and the byte where a line or paragraph begins.
    """
    with open_stream(Path(item.path)) as handle:
        if source.split == "file":
            content = handle.read(MAX_RECORD_BYTES + 1)
            yield whole_file(source.name, item, content, source.language)
            return
        pieces = _lines(handle, item) if source.split == "line" else _paragraphs(handle, item)
        for offset, raw in pieces:
            place = f"{item.name}@{offset}"
            if isinstance(raw, int):
                yield oversized(source.name, place, raw)
            elif text := _decode(raw).strip("\r\n"):
                yield Document(text, place, source.name, source.language, {"path": item.name})


def whole_file(source: str, item: Item, content: bytes, language: str | None) -> Document | Dropped:
    """A file that is one document; `content` is cut after MAX_RECORD_BYTES + 1."""
    if len(content) > MAX_RECORD_BYTES:
        return oversized(source, item.name, max(item.size, len(content)))
    return Document(_decode(content), item.name, source, language, {"path": item.name})


def read_jsonl(source: JsonlSource, item: Item, bad_lines: BadLines) -> Read:
    """JSON lines; blank lines are passed over. Ids are `id_field`, else the file's name, `@` and the line's first byte.

    Raises: DataError naming file and line when a line is broken and `bad_lines` is `fail`.
    """
    path = Path(item.path)
    with open_stream(path) as handle:
        for offset, raw in _lines(handle, item):
            place = f"{item.name}@{offset}"
            if isinstance(raw, int):
                yield oversized(source.name, place, raw)
                continue
            line = raw.removeprefix(b"\xef\xbb\xbf") if offset == 0 else raw
            if not line.strip():
                continue
            try:
                record = _parse(line)
                text, name = _fields(record, source.text_field, source.id_field)
            except ValueError as error:
                if bad_lines == "fail":
                    raise DataError(
                        f"{path}:{_line_number(path, offset)}: {error}; mend the line, or set corpus.bad_lines=drop"
                    ) from None
                yield _bad_record(source.name, place, str(error), raw.decode("utf-8", "replace"), len(raw))
                continue
            yield Document(text, name or place, source.name, source.language, {"path": item.name})


def read_parquet(source: ParquetSource, item: Item, bad_lines: BadLines) -> Read:
    """Parquet, a few rows at a time. Ids are `id_field`, else the file's name, `@` and the row, from 0.

    Raises: DataError when the file is damaged or lacks a column, or a value is no text and `bad_lines` is `fail`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [source.text_field, *([source.id_field] if source.id_field else [])]
    row = 0
    try:
        with pq.ParquetFile(item.path) as file:
            for column in columns:
                if column not in file.schema_arrow.names:
                    raise DataError(_no_column(item.path, column, file.schema_arrow.names))
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for record in batch.to_pylist():
                    yield _record(source, f"{item.name}@{row}", f"{item.path}: row {row}", record, bad_lines, item.name)
                    row += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{item.path}: not a whole parquet file (after row {row}: {reason}); fetch or make it again"
        ) from None


def read_huggingface(source: HuggingFaceSource, bad_lines: BadLines) -> Read:
    """Any `datasets` data set, streamed. Ids are `id_field`, else `@` and the row, from 0.

    Raises: DataError when it cannot be loaded or lacks a column, or a value is no text and `bad_lines` is `fail`.
    """
    from datasets import load_dataset

    name = f"source {source.name}: data set {source.path}"
    row = 0
    try:
        files = source.data_files
        dataset = load_dataset(source.path, source.config, split=source.split, data_files=files, streaming=True)
        rows = iter(dataset)
    except Exception as error:  # every builder raises its own; all of them mean that the data set cannot be had
        raise DataError(f"{name}: cannot be loaded: {_one_line(error)}") from None
    while True:
        try:
            record = next(rows, None)
        except Exception as error:
            raise DataError(f"{name}: cannot be read after row {row}: {_one_line(error)}") from None
        if record is None:
            return
        for column in (source.text_field, source.id_field):
            if row == 0 and column and column not in record:
                raise DataError(_no_column(name, column, list(record)))
        yield _record(source, f"{source.path}@{row}", f"{name}: row {row}", record, bad_lines, source.path)
        row += 1


# --- records -------------------------------------------------------------------------------------------------------


def oversized(source: str, place: str, size: int) -> Dropped:
    """A record that was passed over unread."""
    return Dropped(place, source, "max_record_bytes", size, MAX_RECORD_BYTES, "", size)


def _bad_record(source: str, place: str, reason: str, text: str, size: int) -> Dropped:
    return Dropped(place, source, "bad_record", reason, None, text[:BEGINNING], size)


def _record(
    source: ParquetSource | HuggingFaceSource,
    place: str,
    where: str,
    record: dict[str, Any],
    bad_lines: BadLines,
    path: str,
) -> Document | Dropped:
    try:
        text, name = _fields(record, source.text_field, source.id_field)
    except ValueError as error:
        if bad_lines == "fail":
            raise DataError(f"{where}: {error}; mend the row, or set corpus.bad_lines=drop") from None
        return _bad_record(source.name, place, str(error), "", 0)
    return Document(text, name or place, source.name, source.language, {"path": path})


def _fields(record: Any, text_field: str, id_field: str | None) -> tuple[str, str | None]:
    """Text and id of a record. Raises: ValueError that says what is wrong with it."""
    if not isinstance(record, dict):
        raise ValueError(f"is a JSON {_kind(record)}, not an object with a key '{text_field}'")
    for column in (text_field, id_field):
        if column and column not in record:
            raise ValueError(_no_column("", column, list(record)).removeprefix(": "))
    text, name = record[text_field], record[id_field] if id_field else None
    if not isinstance(text, str):
        raise ValueError(f"'{text_field}' is a {_kind(text)}, not text")
    if id_field and (not isinstance(name, (str, int)) or isinstance(name, bool)):
        raise ValueError(f"'{id_field}' is a {_kind(name)}, not text or a whole number")
    return text, str(name) if id_field else None


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number" if isinstance(value, (int, float)) else type(value).__name__)


def _no_column(where: str, column: str, there: list[str]) -> str:
    names = ", ".join(str(name)[:40] for name in there[:20]) or "none at all"
    return f"{where}: no column '{column}'; there are: {names}; set text_field (or id_field) to one of them"


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


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


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


# --- lines ---------------------------------------------------------------------------------------------------------

Piece = tuple[int, bytes | int]  # offset of its first byte, and its bytes; or its size alone when it is too large


def _lines(handle: IO[bytes], item: Item) -> Iterator[Piece]:
    """Lines that begin within the item's range of bytes, line ends included."""
    offset = item.start
    if offset:  # a line that begins before the range belongs to the one before
        handle.seek(offset - 1)
        offset += _skip_line(handle) - 1
    while item.end is None or offset < item.end:
        raw = handle.readline(MAX_RECORD_BYTES + 1)
        if not raw:
            return
        size = len(raw)
        if size > MAX_RECORD_BYTES and not raw.endswith(b"\n"):
            size += _skip_line(handle)
            yield offset, size
        else:
            yield offset, raw
        offset += size


def _paragraphs(handle: IO[bytes], item: Item) -> Iterator[Piece]:
    """Runs of lines between blank lines."""
    start, size, held = 0, 0, bytearray()
    for offset, raw in _lines(handle, item):
        if isinstance(raw, bytes) and not raw.strip():
            if size:
                yield start, bytes(held) if size == len(held) else size
            size, held = 0, bytearray()
            continue
        start = start if size else offset
        size += raw if isinstance(raw, int) else len(raw)
        if isinstance(raw, bytes) and size <= MAX_RECORD_BYTES:
            held += raw
    if size:
        yield start, bytes(held) if size == len(held) else size


def _skip_line(handle: IO[bytes]) -> int:
    """Read to the end of the line; how many bytes that was."""
    size = 0
    while block := handle.readline(1 << 20):
        size += len(block)
        if block.endswith(b"\n"):
            break
    return size


def _line_number(path: Path, offset: int) -> int:
    """The number, from 1, of the line that begins at `offset`: counted only when an error must name it."""
    number = 1
    with open_stream(path) as handle:
        while offset and (block := handle.read(min(offset, 1 << 20))):
            number += block.count(b"\n")
            offset -= len(block)
    return number
