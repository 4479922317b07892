"""A job that is killed and requeued goes on as the same MLflow run; its ghost tells MLflow nothing more."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tracked_stages import finish, work_of

from pipeline import delivery, owner
from pipeline.errors import Fenced
from pipeline.locks import hold
from pipeline.mlflow_store import tracking_uri
from pipeline.owner import Identity, Owner
from pipeline.recipe import Recipe
from pipeline.spool import Spool
from pipeline.tracking import open_tracker

# A start of the job: trains from a step on, says when its numbers have reached MLflow, and then waits to be killed.
START = """
import dataclasses, pickle, sys, time
from pipeline import delivery
from pipeline.locks import hold
from pipeline.spool import Spool
from pipeline.tracking import open_tracker
from tracked_stages import finish
recipe, work, first, last, finishes = pickle.loads(bytes.fromhex(sys.argv[1]))
delivery.SEND_SECONDS, delivery.CLOSE_SECONDS, delivery.CLOSE_SECONDS_AWAY = 0.1, 300.0, 300.0
logs = recipe.workdir / "logs"
with hold(logs, work.stage) as fence:
    with open_tracker(recipe, dataclasses.replace(work, fence=fence)) as tracker:
        tracker.rewind(first - 1)
        for step in range(first, last + 1):
            tracker.log_metrics({"loss": 1 / step, "tokens_per_second": time.time()}, step)
        if finishes:
            finish(work)
        while not finishes:
            time.sleep(0.05)
            if not Spool(logs, work.stage).unsent():
                print("sent", flush=True)
                time.sleep(600)
"""


def start(recipe: Recipe, work: Any, first: int, last: int, finishes: bool, restart: int) -> subprocess.Popen[str]:
    told = pickle.dumps((recipe, work, first, last, finishes)).hex()
    environment = {**os.environ, "SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": str(restart)}
    return subprocess.Popen(
        [sys.executable, "-c", START, told],
        cwd=Path(__file__).parent,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_killed_and_requeued_twice_it_is_one_run_and_no_number_stands_twice(recipe: Recipe) -> None:
    from mlflow import MlflowClient

    work = work_of(recipe, "pretrain", "checkpoints")
    for restart, (first, last) in enumerate([(1, 8), (5, 6)]):  # the second start dies before it is where the first was
        process = start(recipe, work, first, last, False, restart)
        assert process.stdout is not None and process.stdout.readline() == "sent\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    process = start(recipe, work, 5, 10, True, 2)
    assert process.wait(timeout=600) == 0

    client = MlflowClient(tracking_uri=tracking_uri(recipe))
    experiment = client.get_experiment_by_name("tiny")
    runs = {run.data.tags["headwater.stage"]: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["pipeline", "pretrain"]
    assert runs["pretrain"].info.status == "FINISHED"
    history = client.get_metric_history(runs["pretrain"].info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / step) for step in range(1, 11)]
    lines = [line for line, _ in Spool(recipe.workdir / "logs", "pretrain").metrics.read()]
    steps = [line["step"] for line in lines if "loss" in line["metrics"]]
    assert steps == list(range(1, 11))


def test_a_ghost_writes_and_sends_nothing(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(delivery, "SEND_SECONDS", 0.05)
    monkeypatch.setattr(owner, "GRACE", 300.0)  # after that the fence's thread would end this very process
    logs = recipe.workdir / "logs"
    work = work_of(recipe, "pretrain", "checkpoints")
    with pytest.raises(Fenced), hold(logs, "pretrain") as fence:
        work = replace(work, fence=fence)
        with open_tracker(recipe, work) as tracker:
            tracker.log_metrics({"loss": 1.0}, 1)
            while Spool(logs, "pretrain").unsent():
                time.sleep(0.05)
            Owner.write(logs, "pretrain", Identity("node3", 12, "another"), None).close()
            time.sleep(1.1)  # no answer of the fence counts any more: until then the machine's load may be written
            before = {path.name: path.read_bytes() for path in logs.glob("*.json*")}
            with pytest.raises(Fenced):
                tracker.log_metrics({"loss": 9.0}, 2)
            with pytest.raises(Fenced):
                tracker.rewind(0)
            with pytest.raises(Fenced, match="process 12 on node3"):
                finish(work)
            raise FileNotFoundError("a file that the new owner has deleted")
    after = {path.name: path.read_bytes() for path in logs.glob("*.json*")}
    assert after == before
    assert not (work.folder / "manifest.json").exists()
    assert "wait in" not in caplog.text
