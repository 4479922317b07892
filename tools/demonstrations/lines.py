"""JSON lines on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_lines(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """A row a line; a file that has these lines already keeps its time, so that nothing is made of it again."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
