"""The shard stage, run on a recipe that has sources only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_corpora import Shard

from pipeline import stages
from pipeline.manifest import Manifest
from pipeline.recipe import Recipe
from pipeline.tracking import Tracker


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """Run the stage: `shard(sources, workdir=…, **corpus settings)`."""

    def run(sources: Sequence[dict[str, Any]], workdir: Path | None = None, **settings: Any) -> Manifest:
        corpus = {"workers": 1, "sources": list(sources)} | settings
        recipe = Recipe.model_validate({"workdir": workdir or tmp_path / "run", "corpus": corpus})
        found = stages.status(recipe, "shard")
        stages.prepare(recipe, found)
        return stages.load_stage(found.stage)(recipe, found.work, Tracker())

    return run
