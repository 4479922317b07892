"""The command, and one whole run of a tiny recipe, for all tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command import TINY, Pipeline, run_pipeline
from hypothesis import settings

settings.register_profile("headwater", deadline=None)  # how fast a busy machine is proves nothing
settings.load_profile("headwater")


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    """Runs the `pipeline` command: pipeline("run", "demo", …) -> finished process."""
    return run_pipeline


@pytest.fixture(scope="session")
def tiny_recipe() -> Path:
    """A recipe whose whole run takes about a minute."""
    return TINY


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run of the tiny recipe; tests that change it work on a copy."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    done = run_pipeline("run", TINY, f"workdir={workdir}")
    assert done.returncode == 0, done.stderr[-4000:]
    (workdir / "said.txt").write_text(done.stdout, encoding="utf-8")
    return workdir


@pytest.fixture
def tiny_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of that run, to change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "runs" / "copy"))
