"""Items of evaluation sets, read from files or through `datasets`."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from pipeline.corpus.compressed import open_stream
from pipeline.corpus.locations import find_files
from pipeline.errors import DataError
from pipeline.files import fingerprint
from pipeline.settings.decontaminate import EvaluationSet

_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".txt": "text", ".text": "text"}
_LONGEST_CELL = 1 << 26  # characters of a csv file's cell


@dataclass(frozen=True)
class EvaluationItem:
    """One item. id: file and line (or row), counted from 1. texts: of its columns, one by one."""

    id: str
    texts: tuple[str, ...]


def set_fingerprint(one: EvaluationSet) -> str:
    """Names a set's content: of files their bytes, of a data set of the hub its name and revision.

    Raises: DataError when nothing is there.
    """
    local = one.path if one.type != "huggingface" else one.data_files
    if one.type == "huggingface" and local is None and Path(one.path).exists():
        local = one.path
    if local is None or "://" in local:
        return fingerprint([one.path, one.config, one.revision, one.split, one.data_files])
    found = []
    for item in _files(one, local):
        digest = hashlib.sha256()
        with open(item.path, "rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
        found.append([item.name, digest.hexdigest()])
    return fingerprint(found)


def _files(one: EvaluationSet, pattern: str) -> list[Any]:
    try:
        return find_files(pattern, ("",))
    except DataError as error:
        raise DataError(f"corpus.decontaminate: set {one.name}: {error}") from None


def read_items(one: EvaluationSet) -> Iterator[EvaluationItem]:
    """The items of a set, in order. Raises: DataError naming file and line."""
    if one.type == "huggingface":
        yield from _read_data_set(one)
        return
    for file in _files(one, one.path):
        path = Path(file.path)
        plain = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
        kind = one.type if one.type != "auto" else _ENDINGS.get(plain.suffix)
        if kind is None:
            raise DataError(f"corpus.decontaminate: set {one.name}: {path}: state its `type`; its name does not tell")
        with open_stream(path) as handle:
            for line, row in _rows(handle, kind, path):
                texts = (row,) if isinstance(row, str) else tuple(_texts(row, one.columns, f"{path}:{line}"))
                yield EvaluationItem(f"{file.name}:{line}", texts)


def _rows(handle: IO[bytes], kind: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Rows with their lines, from 1: text, or a mapping."""
    if kind in ("csv", "tsv"):
        csv.field_size_limit(_LONGEST_CELL)
        stream = io.TextIOWrapper(handle, encoding="utf-8-sig", errors="replace", newline="")
        try:
            for row in (reader := csv.DictReader(stream, delimiter="," if kind == "csv" else "\t")):
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{path}: not a {kind} file: {error}") from None
        return
    for number, raw in enumerate(handle, 1):
        line = raw.removeprefix(b"\xef\xbb\xbf").strip()
        if not line:
            continue
        if kind == "text":
            yield number, line.decode("utf-8", "replace")
            continue
        try:
            yield number, orjson.loads(line)
        except ValueError:
            raise DataError(f"{path}:{number}: not valid JSON; mend the line, an item must not be lost") from None


def _read_data_set(one: EvaluationSet) -> Iterator[EvaluationItem]:
    from datasets import load_dataset

    name = f"corpus.decontaminate: set {one.name}: data set {one.path}"
    try:
        chosen = {"split": one.split, "data_files": one.data_files, "revision": one.revision}
        rows = enumerate(load_dataset(one.path, one.config, streaming=True, **chosen), 1)
        for number, row in rows:
            yield EvaluationItem(f"{one.split}:{number}", tuple(_texts(row, one.columns, f"{name}: row {number}")))
    except DataError:
        raise
    except Exception as error:  # every builder raises its own; all of them mean that the data set cannot be had
        raise DataError(f"{name}: cannot be read: {' '.join(str(error).split())[:300]}") from None


def _texts(row: Any, columns: tuple[str, ...], place: str) -> Iterator[str]:
    for column in columns:
        value = row
        for key in column.split("."):
            if not isinstance(value, dict) or key not in value:
                there = ", ".join(map(str, row)) if isinstance(row, dict) else "no columns"
                raise DataError(
                    f"{place}: no '{column}' in it, there are: {there}; set `columns` of the evaluation set"
                )
            value = value[key]
        yield from _strings(value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
