"""What a model made of each held-out document or example: JSON lines beside an evaluation's numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import atomic_write

Row = dict[str, Any]


def text_hash(text: str) -> str:
    """A name for a text: by it the same document is found again in another run."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def write_records(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as they come; the file is there once all are."""
    with atomic_write(path, "w") as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_records(path: Path) -> list[Row]:
    """All rows.

    Raises: DataError naming the file, the line, and the remedy.
    """
    remedy = "run `pipeline evaluate` there again"
    found: list[Row] = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    found.append(json.loads(line))
                except ValueError as error:
                    raise DataError(f"{path}:{number}: damaged ({error}); delete {path.parent} and {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {remedy}") from None
    return found
