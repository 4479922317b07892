"""Stages for tests to track."""

from __future__ import annotations

from pipeline.manifest import Manifest, Work
from pipeline.recipe import Recipe


def work_of(recipe: Recipe, stage: str, folder: str, key: str = "key", **inputs: str) -> Work:
    found = Work(stage, recipe.workdir / folder, key, {"layers": 4, "rules": {"min_words": 20}}, inputs)
    found.folder.mkdir(parents=True, exist_ok=True)
    return found


def finish(work: Work) -> Manifest:
    output = work.folder / "output.txt"
    output.write_text("made", encoding="utf-8")
    return work.finish([output], {"train": {"documents": 5}}, {"bits_per_byte": 1.5})
