"""`pipeline preflight`: under a launcher one rank of it, else it starts the ranks that a training here would start."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.cluster.launch import launch_local
from pipeline.cluster.preflight.table import lines
from pipeline.cluster.preflight.verdict import Report
from pipeline.cluster.ranks import default_ranks, read_ranks
from pipeline.recipe import Recipe
from pipeline.settings.cluster import PreflightSettings


def preflight_command(recipe: Recipe | None, words: Sequence[str], as_json: bool, exclude_bad: bool) -> int:
    """Look, and tell on standard output. words: the recipe and its settings as typed, for ranks that are started here.

    Without a recipe the folder is the current one, and thresholds are the defaults. Returns the exit status.
    Raises: EnvironmentFault.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns of each failed try; we tell the fault once
    ranks = read_ranks()
    if ranks is None:
        options = ["--json"] * as_json + ["--exclude-bad"] * exclude_bad
        wanted = recipe.pretrain.ranks if recipe else 0
        return launch_local(["preflight", *words, *options], wanted or default_ranks())
    from pipeline.cluster.preflight.check import preflight

    def tell(report: Report) -> None:
        print(json.dumps(report.as_json(), indent=2) if as_json else "\n".join(lines(report)))
        if exclude_bad and report.bad_nodes():
            print(f"exclude={','.join(report.bad_nodes())}")
        sys.stdout.flush()

    return preflight(
        ranks, recipe.preflight if recipe else PreflightSettings(), recipe.workdir if recipe else Path.cwd(), tell
    )
