"""A recipe as it is typed: its name or path, then `key=value` words."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pipeline.config import load_recipe
from pipeline.errors import RecipeError
from pipeline.recipe import Recipe


def load_typed(typed: str, words: Sequence[str]) -> Recipe:
    """Raises: RecipeError, also for words that stand in the wrong place."""
    if "=" in typed:
        raise RecipeError(
            f"'{typed}' stands where the recipe should; the recipe comes first: pipeline run demo {typed}"
        )
    for word in words:
        if word.startswith("-"):
            raise RecipeError(f"'{word}': settings are written key=value, with no dashes")
    return load_recipe(typed, words)


def typed_again(typed: str, words: Sequence[str]) -> str:
    """The recipe and those of its words that say where the run lies, quoted for a shell: for commands to try next."""
    return shlex.join([typed, *(word for word in words if word.startswith(("workdir=", "name=")))])
