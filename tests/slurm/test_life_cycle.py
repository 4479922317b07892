"""Trainings on a real Slurm that end early, again and again: nothing is lost or repeated, and MLflow shows one run."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from virtual_cluster import (
    PATIENT,
    PAUSE,
    SCRIPTS,
    STEPS,
    WORDS,
    Cluster,
    Prepared,
    Unbroken,
    losses,
    stop_rank,
    until,
)


def one_mlflow_run(workdir: Path) -> None:
    """A stock client finds one run of the stage, and each number once."""
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{workdir.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    runs = [run for run in client.search_runs([experiment.experiment_id]) if "pretrain" in (run.info.run_name or "")]
    assert len(runs) == 1
    steps = [point.step for point in client.get_metric_history(runs[0].info.run_id, "loss")]
    assert sorted(steps) == sorted(set(steps))
    assert max(steps) == STEPS


def test_time_limit_preemption_and_scancel(
    cluster: Cluster,
    prepared: Prepared,
    unbroken: Unbroken,
    quick_site: Path,
    tiny_recipe: Path,
    tmp_path: Path,
) -> None:
    workdir, log = prepared(tmp_path / "runs" / "life"), tmp_path / "job.log"
    folder, site = workdir / "checkpoints", {"HEADWATER_SITE": str(quick_site)}
    shape = ("--nodes=2", "--ntasks-per-node=2", "--exclusive")
    script = (str(SCRIPTS / "pretrain.sh"), str(tiny_recipe), f"workdir={workdir}", *WORDS)
    job = cluster.submit(log, *shape, *script, **site)

    # The time limit: three minutes before it, which is now, Slurm wakes the ranks and warns them. It looks every half
    # minute; the unbroken training is made meanwhile.
    stop_rank(cluster, folder, 3, 10)
    job.update(f"TimeLimit={3 + job.minutes()}")
    with ThreadPoolExecutor(1) as beside:
        unbroken_losses = beside.submit(unbroken, 4)
        until(lambda: job.shown("Restarts") == "1", "the requeue after the warning", PAUSE)
        job.update("TimeLimit=UNLIMITED")
        straight = unbroken_losses.result()
    job.wait_for_start(2)
    assert "a checkpoint is saved; the same command continues" in job.said()

    # Preemption: a job that matters more takes the nodes; the ranks have GRACE seconds.
    stop_rank(cluster, folder, 2, 25)
    urgent = cluster.submit(tmp_path / "urgent.log", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 1")
    assert urgent.end() == "COMPLETED"
    job.wait_for_start(3)
    assert job.shown("Restarts") == "2"

    # scancel is for good; the same command, given again, continues.
    rank = stop_rank(cluster, folder, 0, 40)
    cluster.call("exec", "scancel", job.identity)
    assert job.end() == "CANCELLED"
    assert not rank.alive()
    again = cluster.submit(log, *shape, *script, **site)
    assert again.end() == "COMPLETED", again.said()[-4000:]

    assert losses(folder) == straight
    one_mlflow_run(workdir)
    starts = [json.loads(line) for line in (workdir / "logs" / "jobs.jsonl").read_text(encoding="utf-8").splitlines()]
    starts = [line for line in starts if (line["stage"], line["event"]) == ("pretrain", "start")]
    assert [(line["job"], line["restart"], line["world_size"]) for line in starts] == [
        (job.identity, 0, 4),
        (job.identity, 1, 4),
        (job.identity, 2, 4),
        (again.identity, 0, 4),
    ]


def test_a_node_dies_and_the_job_goes_on_with_fewer_ranks_then_more(
    cluster: Cluster, prepared: Prepared, unbroken: Unbroken, quick_site: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    quick = quick_site.read_text(encoding="utf-8")
    shutil.copy(SCRIPTS / "site.sh", quick_site)  # with a preflight before the first start
    workdir, log = prepared(tmp_path / "runs" / "crash"), tmp_path / "job.log"
    folder = workdir / "checkpoints"
    job = cluster.submit(
        log,
        *("--nodes=1-2", "--mincpus=2", str(SCRIPTS / "pretrain.sh"), str(tiny_recipe), f"workdir={workdir}"),
        *(*WORDS, PATIENT),
        HEADWATER_RANKS_PER_NODE="2",
        HEADWATER_SITE=str(quick_site),
    )
    stop_rank(cluster, folder, 3, 10, host="node2")  # in the middle of a step …
    quick_site.write_text(quick, encoding="utf-8")
    cluster.call("crash", "node2")  # … its node dies
    assert "preflight: good, 4 ranks on 2 nodes" in job.said()
    job.wait_for_start(2)
    assert "start 2, 1 × 2 ranks on node1" in job.said()
    rank = stop_rank(cluster, folder, 1, 30, host="node1")
    cluster.call("start", "node2")
    until(lambda: "idle" in cluster.call("exec", "sinfo", "--noheader", "--nodes=node2"), "node2 is back", PAUSE)
    job.control("requeue")
    job.wait_for_start(3)
    assert not rank.alive()
    assert job.end() == "COMPLETED", job.said()[-4000:]
    assert "start 3, 2 × 2 ranks on node[1-2]" in job.said()
    found = losses(folder)
    assert list(found) == list(unbroken(4))
    for step, loss in unbroken(4).items():
        assert found[step] == pytest.approx(loss, rel=1e-3), step
    one_mlflow_run(workdir)


def test_a_job_that_gets_nowhere_is_not_started_for_ever(
    cluster: Cluster, prepared: Prepared, quick_site: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    text = quick_site.read_text(encoding="utf-8")
    quick_site.write_text(text.replace("\nmost_starts=5", "\nmost_starts=2"), encoding="utf-8")
    broken = tmp_path / "python"  # is killed as soon as it trains
    broken.write_text(
        f'#!/bin/sh\n[ "$3" != pretrain ] || kill -KILL $$\nexec {sys.executable} "$@"\n', encoding="utf-8"
    )
    broken.chmod(0o755)
    environment = {"HEADWATER_SITE": str(quick_site), "HEADWATER_PYTHON": str(broken)}
    workdir = prepared(tmp_path / "runs" / "nowhere")
    script = (str(SCRIPTS / "pretrain.sh"), str(tiny_recipe), f"workdir={workdir}")
    job = cluster.submit(tmp_path / "job.log", *script, **environment)
    assert job.end() == "FAILED"
    assert job.shown("Restarts") == "2"
    assert "stops: 2 starts in a row got nowhere" in job.said()
