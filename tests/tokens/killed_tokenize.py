"""Stage tokenize in a process group that is killed before it commits the n-th file whose path holds a name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from pipeline.config import load_recipe
from pipeline.manifest import Work
from pipeline.recipe import Recipe
from pipeline.tokens import tokenize
from pipeline.tracking import Tracker


def killed_tokenize(recipe: Recipe, number: int, name: str = "") -> int:
    """Exit status. number: which of those files is not committed any more; 0: the stage comes to its end."""
    path = recipe.workdir / "recipe.yaml"
    path.write_text(recipe.model_dump_json(include={"workdir", "tokenizer", "tokenize"}))
    words = [sys.executable, __file__, str(path), str(number), name]
    return subprocess.run(words, start_new_session=True, check=False).returncode


def main(path: str, number: str, name: str) -> None:
    left, rename = int(number), os.replace

    def replace(source: str, target: str | Path) -> None:  # every commit of a file goes through here
        nonlocal left
        if name in str(target):
            left -= 1
            if left == 0:
                os.kill(0, signal.SIGKILL)
        rename(source, target)

    os.replace = replace  # type: ignore[assignment]
    recipe = load_recipe(path)
    folder = recipe.workdir / "tokens"
    folder.mkdir(exist_ok=True)
    tokenize.run(recipe, Work("tokenize", folder, "key", {}, {}), Tracker())


if __name__ == "__main__":
    main(*sys.argv[1:])
