"""What `pipeline status` says of runs in every state, and that it says it anywhere: no heavy import, 80 columns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import PROJECT, Pipeline, clean_environment

from pipeline.config import load_recipe, save_recipe
from pipeline.files import write_json
from pipeline.owner import Identity, Lease, lease_path
from pipeline.progress import start_logging
from pipeline.recipe import Recipe
from pipeline.stage_state import prepare, status
from pipeline.stages import stages
from pipeline.status import read
from pipeline.status.queue import jobs_in_queue
from pipeline.status.read import open_run, read_run
from pipeline.status.show import lines

# A pretraining at work: it holds the stage, is recorded, and does nothing until it is killed.
AT_WORK = """
import sys, time
from pathlib import Path
from pipeline.cluster.jobs import recorded
from pipeline.cluster.ranks import Ranks
from pipeline.locks import hold
with hold(Path(sys.argv[1]), "pretrain"), recorded(Path(sys.argv[1]), "pretrain", Ranks(0, 4, 0, 2, "srun")):
    print("at work", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A run whose preparation is done and whose pretraining is half done."""
    (tmp_path / "a.txt").write_text("text\n", encoding="utf-8")
    path = tmp_path / "r.yaml"
    path.write_text(
        f"name: tiny\nworkdir: {tmp_path / 'run'}\n"
        f"corpus:\n  sources: [{{name: a, type: text, path: '{tmp_path}/a.txt'}}]\n",
        encoding="utf-8",
    )
    made = load_recipe(str(path))
    for name in ("shard", "tokenizer", "tokenize"):
        found = status(made, name)
        prepare(made, found)
        found.work.finish([])
    prepare(made, status(made, "pretrain"))
    (made.workdir / "recipe.yaml").write_text(save_recipe(made), encoding="utf-8")
    return made


@pytest.fixture
def trained(recipe: Recipe) -> Recipe:
    """The same with what training leaves behind: numbers, a checkpoint, events, a heartbeat."""
    folder, logs = recipe.workdir / "checkpoints", recipe.workdir / "logs"
    logs.mkdir(exist_ok=True)
    with open(logs / "pretrain.metrics.jsonl", "w", encoding="utf-8") as journal:
        for step in (10, 20, 30):
            numbers = {"loss": 9.0 - step / 10, "tokens": step * 1000.0, "tokens_per_second": 500.0}
            journal.write(json.dumps({"step": step, "time": 1.0, "metrics": numbers}) + "\n")
        journal.write(json.dumps({"step": 30, "time": 1.0, "metrics": {"validation/bits_per_byte": 1.25}}) + "\n")
        journal.write(json.dumps({"step": 99, "time": 1.0, "metrics": {"system/cpu": 3.0}}) + '\n{"step": 4')
    files = {"a.safetensors": [3_000_000, "0"]}
    write_json(folder / "step-000000020" / "checkpoint.json", {"step": 20, "files": files, "world_size": 4})
    (folder / "step-000000030.abc.tmp").mkdir()
    kinds = ["start", *["saved"] * 30, *["skipped"] * 12, "rollback"]
    (folder / "audit.jsonl").write_text(
        "".join(
            json.dumps({"time": "2026-11-22T01:02:03+00:00", "kind": kind, "step": number, "loss": 9.25}) + "\n"
            for number, kind in enumerate(kinds)
        ),
        encoding="utf-8",
    )
    beat = {"step": 29, "steps": 100, "tokens_per_step": 1000, "tokens_per_second": 2000.0, "doing": "validate"}
    write_json(folder / "heartbeats" / "rank-00000.json", beat)
    write_json(logs / "mlflow.json", {"uri": "sqlite:///x.db", "run_id": "abc", "stages": {}})
    return recipe


def pretrain_of(recipe: Recipe) -> dict[str, Any]:
    return next(stage for stage in read_run(recipe)["stages"] if stage["name"] == "pretrain")


def text_of(recipe: Recipe) -> str:
    shown = list(lines(read_run(recipe)))
    assert all(len(line) <= 80 for line in shown if " /" not in line and "sqlite" not in line)
    return "\n".join(shown)


def test_at_work_then_killed(trained: Recipe) -> None:
    logs = trained.workdir / "logs"
    environment = clean_environment(SLURM_JOB_ID="17", SLURM_RESTART_COUNT="1", SLURM_JOB_NODELIST="node[1-2]")
    process = subprocess.Popen(
        [sys.executable, "-c", AT_WORK, str(logs)], stdout=subprocess.PIPE, cwd=PROJECT, env=environment
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"at work\n"
        found = pretrain_of(trained)
        assert found["state"] == "at work"
        assert found["jobs"] == ["17"] and found["starts"] == 1
        assert found["last_start"]["hosts"] == "node[1-2]" and found["last_start"]["world_size"] == 4
        progress = found["progress"]
        assert (progress["step"], progress["steps"]) == (30, 100)
        assert (progress["tokens"], progress["total_tokens"]) == (30_000, 100_000)
        assert progress["seconds_left"] == pytest.approx(35.0)
        assert found["checkpoint"]["step"] == 20 and found["checkpoint"]["bytes"] == 3_000_000
        assert [event["kind"] for event in found["events"]] == [*["skipped"] * 9, "rollback"]
        text = text_of(trained)
        assert f"who job 17, restart 1, process {process.pid} on " in " ".join(text.split())  # a long name is wrapped
        assert "where         node[1-2], 4 ranks (srun)" in text
        assert "progress      30 k of 100 k (30.0%) tokens, step 30 of 100" in text
        assert "speed         2 k tokens/s, 35 s left" in text
        assert "held-out      bits per byte 1.25 (step 30)" in text
        assert "rollback, step 43: loss 9.25" in text
        assert "now           validate" in text
        assert "MLflow        sqlite:///x.db, run abc" in text
    finally:
        process.kill()
        process.wait()
    found = pretrain_of(trained)
    assert found["state"] == "killed"
    assert "seconds_left" not in found["progress"]
    assert f"process {process.pid} on " in found["why"] and found["why"].endswith(" is gone")
    assert "  last seen     20" in text_of(trained)


def test_every_other_state(recipe: Recipe) -> None:
    assert pretrain_of(recipe)["state"] == "half done"
    jobs = recipe.workdir / "logs" / "jobs.jsonl"
    jobs.parent.mkdir(exist_ok=True)
    line = {
        "time": "2026-11-22T01:02:03+00:00", "stage": "pretrain", "job": "", "restart": 0, "hosts": "a",
        "world_size": 1, "launcher": "alone", "pid": 1,
    }  # fmt: skip
    for ended, state in ((75, "stopped"), (130, "stopped"), (2, "failed")):
        told = [{**line, "event": "start"}, {**line, "event": "end", "status": ended, "why": f"because {ended}"}]
        jobs.write_text("".join(json.dumps(each) + "\n" for each in told) + '{"time', encoding="utf-8")
        found = pretrain_of(recipe)
        assert (found["state"], found["why"]) == (state, f"because {ended}")
        assert f"pretrain: {state}" in text_of(recipe)
    states = {stage["name"]: stage["state"] for stage in read_run(recipe)["stages"]}
    assert states["shard"] == "done" and states["export"] == "not begun"
    assert set(states) == set(stages(recipe))


def test_a_holder_on_another_machine_is_judged_by_its_last_sign_of_life(recipe: Recipe) -> None:
    logs = recipe.workdir / "logs"
    logs.mkdir(exist_ok=True)
    for age, state in ((5.0, "at work"), (3600.0, "half done")):
        lease = Lease(1, "x", Identity("node3", 5, "another"), renewed=time.time() - age)
        lease_path(logs, "pretrain").write_bytes(lease.encode())
        assert pretrain_of(recipe)["state"] == state


@pytest.mark.parametrize("job", ["", "17"])
def test_a_queue_that_does_not_answer_is_told_where_jobs_were(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], job: str
) -> None:
    queue = tmp_path / "bin" / "squeue"
    queue.parent.mkdir()
    queue.write_text("#!/bin/sh\necho 'squeue: error: Unknown host' >&2\nexit 1\n", encoding="utf-8")
    queue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{queue.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("pipeline.status.queue.SECONDS", 300.0)
    start_logging()
    assert jobs_in_queue({job} if job else set(), recipe.workdir) is None
    assert ("Unknown host" in capsys.readouterr().err) == bool(job)


def test_the_queue_shows_the_jobs_of_this_run(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = tmp_path / "bin" / "squeue"
    queue.parent.mkdir()
    comment = recipe.workdir.absolute()
    queue.write_text(
        "#!/bin/sh\ncat <<'END'\n"
        "17|17|pretrain|PENDING|2|0:00|(BeginTime)|\n"
        "18_3|24|shard|RUNNING|1|2:10|node1|\n"
        f"19|19|close|PENDING|1|0:00|(Dependency)|{comment}\n"
        "20|20|others|RUNNING|1|1:00|node2|(null)\nEND\n",
        encoding="utf-8",
    )
    queue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{queue.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("pipeline.status.queue.SECONDS", 300.0)
    logs = recipe.workdir / "logs"
    logs.mkdir(exist_ok=True)
    (logs / "slurm-18.starts").write_text("x:1\n", encoding="utf-8")
    start = {"time": "2026-11-22T01:02:03+00:00", "stage": "pretrain", "event": "start", "job": "17", "hosts": "a"}
    (logs / "jobs.jsonl").write_text(
        json.dumps({**start, "world_size": 1, "launcher": "srun"}) + "\n", encoding="utf-8"
    )
    assert [job["job"] for job in read_run(recipe)["queue"]] == ["17", "18_3", "19"]
    assert "queue         17 pretrain  pending 0:00  2 nodes  (BeginTime)" in text_of(recipe)


def test_a_checkpoint_that_is_deleted_while_it_is_read(trained: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before it is shown."""
    older = trained.workdir / "checkpoints" / "step-000000010"
    write_json(older / "checkpoint.json", {"step": 10, "files": {}, "world_size": 4})
    whole = read._json

    def deleted(path: Path) -> Any:
        found = whole(path)
        if path.parent.name == "step-000000020":
            path.unlink()
        return found

    monkeypatch.setattr(read, "_json", deleted)
    assert pretrain_of(trained)["checkpoint"]["step"] == 10


def test_a_moved_run_is_read_where_it_is(recipe: Recipe, tmp_path: Path) -> None:
    recipe.workdir.rename(tmp_path / "moved")
    assert open_run(None, tmp_path / "moved").workdir == tmp_path / "moved"


def test_the_command_on_a_whole_run(tiny_run: Path, pipeline: Pipeline) -> None:
    found = json.loads(pipeline("status", tiny_run, "--json").stdout)
    assert {stage["state"] for stage in found["stages"]} == {"done"}
    assert found["mlflow"]["run_id"]
    shown = pipeline("status", tiny_run)
    assert shown.returncode == 0
    assert "pretrain             done" in shown.stdout
    assert "MLflow" in shown.stdout


def test_a_run_that_is_not_there(pipeline: Pipeline, tmp_path: Path) -> None:
    for words in (["demo", f"workdir={tmp_path / 'none'}"], [str(tmp_path)]):
        done = pipeline("status", *words)
        assert done.returncode == 2
        assert "no run is there" in done.stderr and "Traceback" not in done.stderr


def test_nothing_heavy_is_imported() -> None:
    program = "import pipeline.status.show, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PROJECT)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "numpy", "deepspeed", "mlflow", "transformers"}
