"""The shard stage, run on a recipe that has sources only, and on that of a test module's `corpus(folder)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_corpora import MakeRecipe, Plain, Shard, tree

from pipeline.manifest import Manifest
from pipeline.recipe import Recipe
from pipeline.run import run_stage
from pipeline.stage_state import prepare, status
from pipeline.stages import load_stage
from pipeline.tracking import Tracker


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """Run the stage: `shard(sources, workdir=…, **corpus settings)`."""

    def run(sources: Sequence[dict[str, Any]], workdir: Path | None = None, **settings: Any) -> Manifest:
        corpus = {"workers": 1, "sources": list(sources)} | settings
        recipe = Recipe.model_validate({"workdir": workdir or tmp_path / "run", "corpus": corpus})
        found = status(recipe, "shard")
        prepare(recipe, found)
        return load_stage(found.stage)(recipe, found.work, Tracker())

    return run


@pytest.fixture(scope="module")
def recipe_in(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MakeRecipe:
    """A recipe over the corpus of the test's module: `recipe_in(workdir, **corpus settings)`."""
    folder = tmp_path_factory.mktemp("sources") / "in"

    def make(workdir: Path, **settings: Any) -> Recipe:
        corpus = request.module.corpus(folder) | settings
        return Recipe.model_validate({"workdir": workdir, "corpus": corpus, "tracking": {"enabled": False}})

    return make


@pytest.fixture(scope="module")
def plain(recipe_in: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """What the plain command makes of that corpus."""
    workdir = tmp_path_factory.mktemp("plain")
    made = run_stage(recipe_in(workdir), "shard")
    return Plain(tree(workdir / "text"), made)
