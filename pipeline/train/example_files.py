"""Rows of the user's own files: JSON lines, comma-separated values, Parquet, or a data set of `datasets`.

Each row comes with its place (file and line), so that whatever is wrong in it can be found.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.corpus.compressed import open_stream
from pipeline.corpus.locations import find_files
from pipeline.errors import DataError
from pipeline.train.example import Example, Form

SUFFIXES = {
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst"),
    "parquet": (".parquet",),
}
MAX_LINE = 16 * 1024 * 1024  # bytes; a longer line, or field of a table, is no example
ROWS_AT_ONCE = 256

Rows = Iterator[tuple[str, Any]]


def examples(data: str, pattern: str, where: str, form: Form) -> Iterator[Example]:
    """The examples in the files of a pattern (or in a data set), in their order.

    where: the key of the recipe. Raises: DataError naming the file and line, or the key.
    """
    if data == "datasets":
        yield from (form.parse(row, place) for place, row in dataset_rows(pattern, where))
        return
    try:
        found = find_files(pattern, SUFFIXES[data])
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    for item in found:
        yield from read_file(Path(item.path), form)


def read_file(path: Path, form: Form) -> Iterator[Example]:
    """The examples of one file, by its suffix; ids are the file's own, or its name and the line.

    Raises: DataError naming the file and line, and what is wrong there.
    """
    yield from (form.parse(row, place) for place, row in rows_of(path, str(form)))


def rows_of(path: Path, wanted: str) -> Rows:
    """The rows of one file, by its suffix, each with its place. wanted: what a row must be, for messages.

    Raises: DataError naming the file and line, where it is not of its format.
    """
    if path.name.endswith(SUFFIXES["parquet"]):
        return _parquet(path)
    return _table(path) if path.name.endswith(SUFFIXES["csv"]) else _lines(path, wanted)


def _lines(path: Path, wanted: str) -> Rows:
    with open_stream(path) as handle:
        for number, line in enumerate(iter(lambda: handle.readline(MAX_LINE), b""), 1):
            place = f"{path}:{number}"
            if len(line) == MAX_LINE:
                raise DataError(f"{place}: longer than {MAX_LINE // 2**20} MiB; each line must be {wanted}")
            if not line.strip():
                continue
            try:
                yield place, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place}: not valid JSON ({error}); each line must be {wanted}") from None


def _table(path: Path) -> Rows:
    """Rows under a first row of names."""
    csv.field_size_limit(MAX_LINE)
    with open_stream(path) as handle, io.TextIOWrapper(handle, encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, delimiter="\t" if ".tsv" in path.name else ",", strict=True)
        try:
            names = next(rows, [])
            for row in rows:
                place = f"{path}:{rows.line_num}"
                if row and len(row) != len(names):
                    raise DataError(f"{place}: {len(row)} values under {len(names)} columns; mend the row")
                if row:
                    yield place, dict(zip(names, row, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}:{rows.line_num}: not a row of UTF-8 text that can be read ({error})") from None


def _parquet(path: Path) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({str(error).splitlines()[0]})") from None


def dataset_rows(name: str, where: str) -> Rows:
    """The rows of a data set of `datasets`, each with its place.

    name: a folder that `save_to_disk` made, or a hub name; `#split` after it names another split than train. where: the
    key of the recipe. Raises: DataError naming the key, and the data set that cannot be read.
    """
    from datasets import DatasetDict, load_dataset, load_from_disk

    place, _, split = name.partition("#")
    split = split or "train"
    try:
        if Path(place).is_dir() and any(Path(place).glob("*.json")):
            found = load_from_disk(place)
            rows = found[split] if isinstance(found, DatasetDict) else found
        else:
            rows = load_dataset(place, split=split)
    except Exception as error:  # datasets raises any kind
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise DataError(f"{where}: data set {place}, split {split}: cannot be read ({reason})") from error
    for number, row in enumerate(rows, 1):
        yield f"{name}:{number}", row
