"""Data sets of the `datasets` library."""

from __future__ import annotations

from pipeline.corpus.readers.records import BadLines, Read, no_column, record
from pipeline.errors import DataError
from pipeline.recipe import HuggingFaceSource


def read_huggingface(source: HuggingFaceSource, bad_lines: BadLines) -> Read:
    """Any `datasets` data set, streamed. Ids are `id_field`, else `@` and the row, from 0.

    Raises: DataError when it cannot be loaded or lacks a column, or a value is no text and `bad_lines` is `fail`.
    """
    from datasets import load_dataset

    name = f"source {source.name}: data set {source.path}"
    row = 0
    try:
        chosen = {"split": source.split, "data_files": source.data_files, "revision": source.revision}
        dataset = load_dataset(source.path, source.config, streaming=True, **chosen)
        rows = iter(dataset)
    except Exception as error:  # every builder raises its own; all of them mean that the data set cannot be had
        raise DataError(f"{name}: cannot be loaded: {_one_line(error)}") from None
    while True:
        try:
            values = next(rows, None)
        except Exception as error:
            raise DataError(f"{name}: cannot be read after row {row}: {_one_line(error)}") from None
        if values is None:
            return
        for column in (source.text_field, source.id_field, source.url_field):
            if row == 0 and column and column not in values:
                raise DataError(no_column(name, column, list(values)))
        yield record(source, f"{source.path}@{row}", f"{name}: row {row}", values, bad_lines, source.path)
        row += 1


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
