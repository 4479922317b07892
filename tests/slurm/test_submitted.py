"""What people give sbatch, and where they call it: arrays, GPUs, sessions, dependencies, other recipes."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from virtual_cluster import PAUSE, SCRIPTS, Cluster, Job, until

ONLY_FINETUNES = """
name: only
finetune: {tell: {task: sft, train_files: a.jsonl, base: other/model}}
"""


def submitted(said: str) -> dict[str, str]:
    """What a chain submitted: the command, and the last job that does it."""
    numbers = re.findall(r"^(\d+) +(\S+)\.sh (\S+)", said, re.MULTILINE)
    return {(word if script == "stage" else script): number for number, script, word in numbers}


def test_one_element_of_an_array_goes_its_own_way(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    """The element that Slurm starts last bears the number of the whole array."""
    stops = tmp_path / "python"  # element 1 stops in order at its first start; whoever works is at it for long
    stops.write_text(
        '#!/bin/sh\n[ "$3" = shard ] || exec ' + sys.executable + ' "$@"\n'
        '[ "$SLURM_ARRAY_TASK_ID" = 1 ] && [ "${SLURM_RESTART_COUNT:-0}" = 0 ] && exit 75\nexec sleep 600\n',
        encoding="utf-8",
    )
    stops.chmod(0o755)
    words = (str(SCRIPTS / "stage.sh"), "shard", "--task=array", str(tiny_recipe), f"workdir={tmp_path / 'run'}")
    log = tmp_path / "array-%a.log"
    whole = cluster.submit(log, "--array=0-1", *words, HEADWATER_PYTHON=str(stops))
    first, second = (Job(cluster, f"{whole.identity}_{number}", tmp_path / f"array-{number}.log") for number in (0, 1))
    second.wait_for_start(2)
    until(lambda: first.shown("JobState") == "RUNNING", "the first element", PAUSE)
    cluster.call("exec", "scancel", second.identity)
    assert second.end() == "CANCELLED"
    until(lambda: "ends: cancelled" in second.said(), "the last word of the second element", PAUSE)
    assert (first.shown("JobState"), first.shown("Restarts")) == ("RUNNING", "0")
    assert second.shown("JobState") == "CANCELLED"


def test_gpus_of_the_whole_job_an_environment_left_out_and_a_folder_with_other_peoples_modules(
    cluster: Cluster, tiny_recipe: Path, tmp_path: Path
) -> None:
    """A stage in one process, on two nodes: Slurm takes --gpus for the number of a step on one node."""
    if sys.version_info >= (3, 11):
        for name in ("pipeline", "tokenize"):
            (tmp_path / f"{name}.py").write_text("raise SystemExit('not mine')\n", encoding="utf-8")
    shape = ("--nodes=2", "--gpus=4", "--cpus-per-gpu=1", "--export=HEADWATER_PYTHON")
    job = cluster.submit(tmp_path / "job.log", *shape, str(SCRIPTS / "stage.sh"), "where", str(tiny_recipe))
    assert job.end() == "COMPLETED", job.said()
    assert "2 × 2 ranks" in job.said()


def test_a_chain_in_a_job_hands_its_gpus_on(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    """Slurm tells a job of --gres only how many GPUs its node has."""
    held = cluster.submit(tmp_path / "held.log", "--hold", "--wrap=true")
    words = (f"--dependency=afterany:{held.identity}", str(tiny_recipe), f"workdir={tmp_path / 'run'}")
    link = tmp_path / "chain.sh"  # as people have them in ~/bin
    link.symlink_to(SCRIPTS / "pipeline.sh")
    chain = cluster.submit(tmp_path / "job.log", "--nodes=2", "--gres=gpu:2", str(link), *words)
    assert chain.end() == "COMPLETED", chain.said()
    jobs = submitted(chain.said())
    assert list(jobs) == ["shard", "tokenizer", "tokenize", "pretrain", "finetune", "evaluate", "run"]
    train = Job(cluster, jobs["pretrain"], tmp_path / "none.log")
    assert (train.shown("NumNodes"), train.shown("TresPerNode")) == ("2-2", "gres:gpu:2")
    assert train.shown("Dependency") == f"afterok:{jobs['tokenize']}(unfulfilled)"
    first = re.search(r"^(\d+) ", chain.said(), re.MULTILINE)
    assert first is not None
    assert Job(cluster, first[1], tmp_path / "none.log").shown("Dependency") == f"afterany:{held.identity}(unfulfilled)"


def test_a_chain_is_submitted_from_a_session_of_what_the_recipe_has(cluster: Cluster, tmp_path: Path) -> None:
    recipe = tmp_path / "only.yaml"
    recipe.write_text(ONLY_FINETUNES, encoding="utf-8")
    held = cluster.submit(tmp_path / "held.log", "--hold", "--wrap=true")
    session = ("exec", "srun", "--nodes=1", "--ntasks-per-node=2", "--ntasks=1")
    words = (f"--dependency=afterany:{held.identity}", str(recipe), f"workdir={tmp_path / 'run'}")
    said = cluster.call(*session, str(SCRIPTS / "pipeline.sh"), *words, cwd=tmp_path)
    assert list(submitted(said)) == ["finetune", "evaluate", "run"]
    done = cluster.try_call(*session, str(SCRIPTS / "prepare.sh"), *words, cwd=tmp_path)
    assert done.returncode == 2
    assert "there is nothing to prepare for this recipe" in done.stderr


def test_a_cluster_in_another_users_folder_is_not_touched(tmp_path: Path) -> None:
    state = tmp_path / "state"
    cluster = Cluster(state)
    state.mkdir()
    (state / "nodes").write_text("1\n", encoding="utf-8")
    os.chown(state, 65534, 65534)
    for words in (("down",), ("exec", "true"), ("crash", "node1")):
        done = cluster.try_call(*words)
        assert done.returncode == 2
        assert "belongs to somebody else" in done.stderr
    assert (state / "nodes").is_file()
