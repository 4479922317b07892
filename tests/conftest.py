"""The command, and one whole run of a tiny recipe, for all tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from command import TINY, Pipeline, run_pipeline
from hypothesis import HealthCheck, settings
from processes import nothing_left_after_an_error

# The same examples in each run, so that a red run is red again; HYPOTHESIS_EXPLORE=1 looks for new ones. How fast a
# busy machine is proves nothing.
settings.register_profile(
    "headwater",
    deadline=None,
    derandomize="HYPOTHESIS_EXPLORE" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("headwater")

SLURM = "tests/slurm/"
SLOW = 60.0  # seconds of a test that are worth a line


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of Slurm come first: they take longest, and wait for much: they may last twice as long."""
    for item in items:
        if item.nodeid.startswith(SLURM):
            item.add_marker(pytest.mark.timeout(2400))
    items.sort(key=lambda item: not item.nodeid.startswith(SLURM))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """What a test that fails has started does not eat the cores of the next ones."""
    with nothing_left_after_an_error():
        yield


class AtOnce:
    """Says what failed, and what took long, when it happens: the summary never comes where the run is cut short."""

    def __init__(self, terminal: Any) -> None:
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.terminal.write_line(f"\n{report.nodeid}: failed in {report.when} after {report.duration:.0f} s")
            self.terminal.write_line(report.longreprtext[-10_000:])
        elif report.duration > SLOW:
            self.terminal.write_line(f"\n{report.nodeid}: {report.when} took {report.duration:.0f} s")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if terminal := config.pluginmanager.getplugin("terminalreporter"):
        config.pluginmanager.register(AtOnce(terminal))


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    """Runs the `pipeline` command: pipeline("run", "demo", …) -> finished process."""
    return run_pipeline


@pytest.fixture(scope="session")
def tiny_recipe() -> Path:
    """A recipe whose whole run takes about a minute."""
    return TINY


@pytest.fixture(scope="session")
def tiny_prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the tiny recipe up to its tokens; tests that change it work on a copy."""
    return _made(tmp_path_factory.mktemp("runs") / "tiny", "shard", "tokenizer", "tokenize")


@pytest.fixture(scope="session")
def tiny_trained(tiny_prepared: Path) -> Path:
    """The same up to pretraining."""
    return _made(tiny_prepared, "pretrain")


def _made(workdir: Path, *stages: str) -> Path:
    for stage in stages:
        done = run_pipeline(stage, TINY, f"workdir={workdir}")
        assert done.returncode == 0, done.stderr[-4000:]
    return workdir


@pytest.fixture(scope="session")
def tiny_run(tiny_trained: Path) -> Path:
    """The folder of a whole run of the tiny recipe; tests that change it work on a copy."""
    done = run_pipeline("run", TINY, f"workdir={tiny_trained}")
    assert done.returncode == 0, done.stderr[-4000:]
    (tiny_trained / "said.txt").write_text(done.stdout, encoding="utf-8")
    return tiny_trained


@pytest.fixture
def tiny_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of that run, to change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "runs" / "copy"))
