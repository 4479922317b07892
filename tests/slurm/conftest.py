"""A virtual cluster of two nodes for the tests here (one a process of pytest-xdist), and what trainings on it need."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import TINY, clean_environment, run_pipeline
from virtual_cluster import PAUSE, SCRIPTS, STEPS, WORDS, Cluster, Prepared, Unbroken, losses, missing, until

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests in this folder need a cluster."""
    why = missing()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            if why:
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="headwater-slurm-") as folder:
        os.chmod(folder, 0o755)  # munge refuses folders that are not open to all, as pytest's are
        made = Cluster(Path(folder) / "state")
        try:
            made.call("up", "2", GRACE="30", GPUS="2")
            yield made
        finally:
            made.call("down")


def at_rest(cluster: Cluster) -> bool:
    """Whether all nodes wait for work. Slurm takes a node out of service where a step that was cut off did not end in
    time, perhaps long after the test that cut it off: such a node is put back."""
    if cluster.all_idle():
        return True
    for node in ("node1", "node2"):
        cluster.try_call("exec", "scontrol", "update", f"NodeName={node}", "State=RESUME")
    return False


@pytest.fixture
def cluster(two_nodes: Cluster) -> Iterator[Cluster]:
    """The cluster, with nothing at work and all nodes there, before and after a test."""
    until(functools.partial(at_rest, two_nodes), "all nodes idle", pause=PAUSE, shown=two_nodes.state_of_all)
    yield two_nodes
    two_nodes.call("exec", "scancel", "--full", "--user=root")
    for node in ("node1", "node2"):
        two_nodes.call("heal", node)


@pytest.fixture
def quick_site(tmp_path: Path) -> Path:
    """slurm/site.sh as a site might edit it: no preflight, two pieces of preparation."""
    text = (SCRIPTS / "site.sh").read_text(encoding="utf-8")
    for line, other in (("preflight=yes ", "preflight=no  "), ("array_tasks=4 ", "array_tasks=2 ")):
        assert f"\n{line}" in text
        text = text.replace(f"\n{line}", f"\n{other}")
    path = tmp_path / "site.sh"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def prepared(tiny_prepared: Path) -> Prepared:
    """prepared(PATH) makes a run folder there whose text, tokenizer and tokens are the tiny run's."""

    def copy(workdir: Path) -> Path:
        for folder in ("text", "tokenizer", "tokens"):
            shutil.copytree(tiny_prepared / folder, workdir / folder)
        return workdir

    return copy


@pytest.fixture(scope="session")
def unbroken(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """unbroken(RANKS): losses of STEPS steps on so many ranks of this machine, never interrupted."""

    @functools.cache
    def train(ranks: int) -> dict[int, float]:
        workdir = prepared(tmp_path_factory.mktemp("unbroken") / "tiny")
        words = ("pretrain", TINY, f"workdir={workdir}", *WORDS, f"pretrain.ranks={ranks}", "tracking.enabled=false")
        done = run_pipeline(*words, environment=clean_environment(OMP_NUM_THREADS="1"))
        assert done.returncode == 0, done.stderr[-4000:]
        found = losses(workdir / "checkpoints")
        assert len(found) == STEPS
        return found

    return train
