"""The scripts in slurm/ on a real Slurm of two virtual nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import PROJECT, clean_environment

from pipeline import manifest as manifests

CLUSTER = PROJECT / "tools" / "slurm_cluster"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


def missing() -> str | None:
    if os.geteuid() != 0:
        return "a virtual Slurm cluster needs root"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in ("sbatch", "slurmctld", "slurmd", "munged", "ip") if not shutil.which(name, path=path)]
    return f"not installed: {', '.join(absent)} (Debian: slurm-wlm munge iproute2)" if absent else None


pytestmark = [pytest.mark.slurm, pytest.mark.skipif(missing() is not None, reason=str(missing()))]


class Cluster:
    """A cluster that tools/slurm_cluster started."""

    def __init__(self, state: Path) -> None:
        self.environment = clean_environment(SLURM_CLUSTER=str(state), HEADWATER_PYTHON=sys.executable)

    def call(self, *words: str, cwd: Path = PROJECT) -> str:
        done = subprocess.run(
            [str(CLUSTER), *words],
            env=self.environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, log: Path, *words: str) -> str:
        """sbatch on two nodes, one task each; returns the job's state at its end."""
        options = ("--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={log}")
        job = self.call("exec", "sbatch", *options, *words).strip()
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            shown = self.call("exec", "scontrol", "--oneliner", "show", "job", job)
            state = shown.split("JobState=", 1)[1].split()[0]
            if state in ENDED:
                return state
            time.sleep(0.5)
        self.call("exec", "scancel", "--full", job)
        return "too slow"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="headwater-slurm-") as folder:
        os.chmod(folder, 0o755)  # munge refuses folders that are not open to all, as pytest's are
        made = Cluster(Path(folder) / "state")
        try:
            made.call("up", "2")
            yield made
        finally:
            made.call("down")


def test_the_whole_pipeline_on_two_nodes(cluster: Cluster, tiny_run: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    workdir, log = tmp_path / "runs" / "slurm", tmp_path / "job.log"
    state = cluster.submit(log, "slurm/pipeline.sh", str(tiny_recipe), f"workdir={workdir}")
    assert state == "COMPLETED", log.read_text(encoding="utf-8")[-4000:]
    for folder in ("text", "tokenizer", "tokens"):  # the same bytes as on one machine
        assert manifests.load(workdir / folder).outputs == manifests.load(tiny_run / folder).outputs
    alone, here = (manifests.load(run / "checkpoints").metrics for run in (tiny_run, workdir))
    for name in (name for name in alone if "loss" in name):
        assert here[name] == pytest.approx(alone[name], rel=1e-2), name
    assert (workdir / "report.html").is_file()


def test_pretraining_alone_on_two_nodes(cluster: Cluster, tiny_copy: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    shutil.rmtree(tiny_copy / "checkpoints")
    log = tmp_path / "job.log"
    state = cluster.submit(log, "slurm/pretrain.sh", str(tiny_recipe), f"workdir={tiny_copy}")
    said = log.read_text(encoding="utf-8")
    assert state == "COMPLETED", said[-4000:]
    assert "2 ranks on node[1-2]" in said
    assert manifests.load(tiny_copy / "checkpoints").stage == "pretrain"


def test_bad_input_fails_the_job_with_one_line(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    assert cluster.submit(log, "slurm/pretrain.sh", "demo", "pretrain.tokenz=5") == "FAILED"
    said = log.read_text(encoding="utf-8")
    assert "unknown key 'pretrain.tokenz'; did you mean 'tokens'?" in said
    assert "Traceback" not in said
