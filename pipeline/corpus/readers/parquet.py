"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.corpus.locations import BadFile, Item, open_raw, shown
from pipeline.corpus.readers import records
from pipeline.corpus.readers.records import BadLines, Read, no_column, oversized, record
from pipeline.recipe import ParquetSource

_ROWS = 256  # at a time, at most


def read_parquet(source: ParquetSource, item: Item, bad_lines: BadLines) -> Read:
    """Parquet, a few rows at a time. Ids are `id_field`, else the file's name, `@` and the row, from 0.

    What a file packs into one page is decoded in one piece: there a text larger than MAX_RECORD_BYTES takes its memory
    once, and is dropped before it becomes a document.
    Raises: BadFile when the file is damaged or lacks a column; DataError when a value is no text and `bad_lines` is
    `fail`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [name for name in (source.text_field, source.id_field, source.url_field) if name]
    where, row = shown(item.path), 0
    try:
        with open_raw(item.path) as handle, pq.ParquetFile(handle, buffer_size=1 << 20) as file:
            for column in columns:
                if column not in file.schema_arrow.names:
                    raise BadFile(no_column(where, column, file.schema_arrow.names))
            for batch in file.iter_batches(batch_size=_rows_at_a_time(file, source.text_field), columns=columns):
                for size, values in _sized(batch, source.text_field):
                    place = f"{item.name}@{row}"
                    if size > records.MAX_RECORD_BYTES:
                        yield oversized(source.name, place, size)
                    else:
                        yield record(source, place, f"{where}: row {row}", values, bad_lines, item.name)
                    row += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise BadFile(
            f"{where}: not a whole parquet file (after row {row}: {reason}); fetch or make it again"
        ) from None


def _rows_at_a_time(file: Any, column: str) -> int:
    """So many rows that an average batch of the group with the longest texts stays below MAX_RECORD_BYTES."""
    average = 1
    for place in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(place)
        stored = [group.column(n) for n in range(group.num_columns)]
        size = sum(one.total_uncompressed_size for one in stored if one.path_in_schema.split(".")[0] == column)
        average = max(average, size // max(group.num_rows, 1))
    return max(1, min(_ROWS, records.MAX_RECORD_BYTES // average))


def _sized(batch: Any, column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a batch, each after the bytes of its text (0 where it is no text); what is too large is left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = batch.column(column)
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        return zip([0] * len(batch), batch.to_pylist(), strict=True)
    sizes = pc.fill_null(pc.binary_length(texts), 0)
    over = pc.greater(sizes, records.MAX_RECORD_BYTES)
    if pc.any(over).as_py():
        number = batch.schema.get_field_index(column)
        batch = batch.set_column(number, column, pc.if_else(over, pa.scalar(None, texts.type), texts))
    return zip(sizes.to_pylist(), batch.to_pylist(), strict=True)
