"""Small corpora on disk for the tests of this room."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.manifest import Manifest
from pipeline.recipe import Recipe

PROSE = (
    "The river rises in the hills above the town and runs for forty miles before it meets the sea. "
    "In spring the water is high, and boats can go as far as the old mill; by August there is hardly any. "
)

Shard = Callable[..., Manifest]  # of the fixture `shard`
MakeRecipe = Callable[..., Recipe]  # of the fixture `recipe_in`


class Plain(NamedTuple):
    """What the plain command makes of a recipe; of the fixture `plain`."""

    files: dict[str, bytes]
    made: Manifest


def prose(number: int, repeats: int = 2) -> str:
    """A text that passes the default rules, different for each number."""
    return f"Chapter {number}. " + PROSE * repeats + f"So ends chapter {number}.\n"


def write_jsonl(path: Path, texts: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": f"doc{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest, which holds the time of day."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
