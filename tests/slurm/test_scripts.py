"""The scripts in slurm/ on a real Slurm of two virtual nodes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from virtual_cluster import SCRIPTS, Cluster, Job

from pipeline import manifest as manifests


def test_the_whole_pipeline_as_a_chain_of_jobs(
    cluster: Cluster, tiny_trained: Path, tiny_recipe: Path, quick_site: Path, tmp_path: Path
) -> None:
    workdir, site = tmp_path / "runs" / "slurm", {"HEADWATER_SITE": str(quick_site)}
    log = tmp_path / "submitted.log"
    words = (str(SCRIPTS / "pipeline.sh"), str(tiny_recipe), f"workdir={workdir}")
    first = cluster.submit(log, "--nodes=2", "--ntasks-per-node=1", *words, **site)
    assert first.end() == "COMPLETED", first.said()
    numbers = re.findall(r"^(\d+) +(\S+\.sh) (\S+)", first.said(), re.MULTILINE)
    assert [script for _, script, _ in numbers] == ["stage.sh"] * 8 + [  # two arrays shuffle the tokens
        "pretrain.sh",
        "finetune.sh",
        "evaluate.sh",
        "stage.sh",
    ]
    for number, script, what in numbers:
        job = Job(cluster, number, log)
        assert job.end() == "COMPLETED", f"{script} {what}: {Path(job.shown('StdOut')).read_text()[-4000:]}"
    for folder in ("text", "tokenizer", "tokens"):  # the same bytes as on one machine
        assert manifests.load(workdir / folder).outputs == manifests.load(tiny_trained / folder).outputs
    alone, here = (manifests.load(run / "checkpoints").metrics for run in (tiny_trained, workdir))
    for name in (name for name in alone if "loss" in name):
        assert here[name] == pytest.approx(alone[name], rel=1e-2), name
    assert (workdir / "report.html").is_file()


def test_bad_input_fails_the_job_with_one_line(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit(tmp_path / "job.log", str(SCRIPTS / "pretrain.sh"), "demo", "pretrain.tokenz=5")
    assert job.end() == "FAILED"
    assert "unknown key 'pretrain.tokenz'; did you mean 'tokens'?" in job.said()
    assert "Traceback" not in job.said()


def test_a_chain_with_bad_input_is_not_submitted(cluster: Cluster, tmp_path: Path) -> None:
    script = str(SCRIPTS / "pipeline.sh")
    for words, said in (
        (("--nodes=2", "dem"), "did you mean 'demo'?"),
        (("--nodes", "2", "demo"), "nothing was submitted; usage: slurm/pipeline.sh [SBATCH OPTIONS] RECIPE"),
        (("demo", "--nodes=2"), "--nodes=2: options of sbatch stand in front"),
        ((), "usage: slurm/pipeline.sh"),
    ):
        done = cluster.try_call("exec", script, *words, cwd=tmp_path)
        assert done.returncode == 2
        assert said in done.stderr
        assert not done.stdout
    assert not cluster.call("exec", "squeue", "--noheader")


def test_scripts_in_a_folder_with_a_space(cluster: Cluster, tmp_path: Path) -> None:
    copy = tmp_path / "my shop" / "slurm"
    shutil.copytree(SCRIPTS, copy)
    job = cluster.submit(tmp_path / "job.log", str(copy / "finetune.sh"), "--task")
    assert job.end() == "FAILED"
    assert job.said().startswith("usage: sbatch [SBATCH OPTIONS] slurm/finetune.sh [--task NAME] RECIPE")
