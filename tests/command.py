"""The command as people meet it: a subprocess, its exit status, its words."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess

from processes import PATIENCE, run_to_end

PROJECT = Path(__file__).parent.parent
TINY = PROJECT / "tests" / "end_to_end" / "tiny.yaml"
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "OMPI_", "MLFLOW_", "HEADWATER_")

Pipeline = Callable[..., CompletedProcess[str]]


def clean_environment(**changes: str) -> dict[str, str]:
    """This environment without what a launcher or a tracking server left in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    return kept | {"PYTHONWARNINGS": "ignore"} | changes


def run_pipeline(
    *words: str | Path, cwd: Path | None = None, environment: Mapping[str, str] | None = None, timeout: float = PATIENCE
) -> CompletedProcess[str]:
    """`pipeline WORDS…` in a process of its own."""
    return run_to_end(
        [sys.executable, "-m", "pipeline", *words],
        timeout,
        cwd=cwd or PROJECT,
        env=dict(environment) if environment is not None else clean_environment(),
    )
