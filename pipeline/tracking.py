"""Numbers to MLflow: the only file that imports it. (The part that sends is being written.)"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class Tracker:
    """Takes a stage's parameters, metrics and files. This one keeps nothing: ranks other than 0, and tests, use it."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Settings of the stage."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers, at a training step or for the stage as a whole. Never waits for a server."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """A file or folder to show beside the numbers."""
