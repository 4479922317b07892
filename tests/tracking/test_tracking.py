"""What a stock MLflow client finds, and what happens when a stage ends in another way than well."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tracked_stages import finish, work_of

from pipeline import lineage
from pipeline.errors import DataError, Stopped
from pipeline.manifest import Work
from pipeline.mlflow_store import _user, tracking_uri
from pipeline.recipe import Recipe
from pipeline.spool import Spool, spools
from pipeline.tracking import open_tracker, publish


def client_of(recipe: Recipe) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri(recipe))


def runs_of(recipe: Recipe) -> dict[str, Any]:
    """Stage → its newest run, by a stock client."""
    client = client_of(recipe)
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    return {run.data.tags["headwater.stage"]: run for run in sorted(found, key=lambda run: run.info.start_time)}


def test_a_stock_client_finds_runs_numbers_settings_inputs_and_files(recipe: Recipe, shard_work: Work) -> None:
    (recipe.workdir.parent / "mlflow.db").unlink()  # here it is made anew
    with open_tracker(recipe, shard_work) as tracker:
        tracker.log_params({"device": "cpu", "long": "x" * 9000})
        for step in range(1, 2501):
            tracker.log_metrics({"loss": 1 / step, "odd name? <&> 損失": 1.0}, step)
        tracker.log_metrics({"loss": math.nan}, 2501)
        tracker.log_artifact(recipe.workdir / "recipe.yaml", "extra")
        made = finish(shard_work)
    work = work_of(recipe, "tokenizer", "tokenizer", shard=made.fingerprint)
    with open_tracker(recipe, work):
        finish(work)

    client, runs = client_of(recipe), runs_of(recipe)
    assert set(runs) == {"pipeline", "shard", "tokenizer"}
    shard, parent = runs["shard"], runs["pipeline"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert shard.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert shard.data.tags["headwater.fingerprint"] == made.fingerprint
    assert parent.data.tags["fingerprint.shard"] == made.fingerprint
    history = client.get_metric_history(shard.info.run_id, "loss")
    assert [(point.step, point.value) for point in history[:-1]] == [(step, 1 / step) for step in range(1, 2501)]
    assert math.isnan(history[-1].value)
    assert shard.data.metrics["odd name_ ___ 損失"] == 1.0
    assert shard.data.metrics["result/bits_per_byte"] == 1.5
    assert shard.data.metrics["counts/train/documents"] == 5
    assert parent.data.metrics["shard/bits_per_byte"] == 1.5
    expected = {"layers": "4", "rules.min_words": "20", "device": "cpu", "seed": "1234"}
    assert expected.items() <= shard.data.params.items()
    [source] = shard.inputs.dataset_inputs
    assert (source.dataset.name, source.dataset.digest) == ("python", "5" * 32)
    [text] = runs["tokenizer"].inputs.dataset_inputs
    assert (text.dataset.name, text.dataset.digest) == ("shard", made.fingerprint)
    assert json.loads(text.dataset.source)["uri"] == str(recipe.workdir / "text")
    files = {item.path for item in client.list_artifacts(shard.info.run_id)}
    assert files == {"manifest.json", "extra"}
    assert [item.path for item in client.list_artifacts(parent.info.run_id)] == ["recipe.yaml"]
    ids = json.loads((recipe.workdir / "logs" / "mlflow.json").read_text(encoding="utf-8"))
    assert ids["run_id"] == parent.info.run_id
    assert ids["stages"]["shard"] == shard.info.run_id
    assert (recipe.workdir.parent / "mlflow.db").is_file()  # the default store: beside the run


def test_a_stopped_stage_goes_on_as_the_same_run(recipe: Recipe) -> None:
    work = work_of(recipe, "pretrain", "checkpoints")
    with pytest.raises(Stopped), open_tracker(recipe, work) as tracker:
        tracker.rewind(0)
        tracker.log_params({"world_size": 4})
        for step in (1, 2, 3):
            tracker.log_metrics({"loss": float(step)}, step)
        raise Stopped("time is up")
    first = runs_of(recipe)["pretrain"]
    assert first.info.status == "SCHEDULED"
    assert "same command continues" in first.data.tags["headwater.why"]
    with open_tracker(recipe, work) as tracker:
        tracker.rewind(2)
        tracker.log_params({"world_size": 2})
        tracker.log_metrics({"loss": 30.0}, 3)
        finish(work)
    again = runs_of(recipe)["pretrain"]
    assert again.info.run_id == first.info.run_id
    assert again.info.status == "FINISHED"
    assert again.data.params["world_size"] == "4" and again.data.tags["now.world_size"] == "2"
    kept = [line for line, _ in Spool(recipe.workdir / "logs", "pretrain").metrics.read() if "loss" in line["metrics"]]
    assert [(line["step"], line["metrics"]["loss"]) for line in kept] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    points = {point.value for point in client_of(recipe).get_metric_history(again.info.run_id, "loss")}
    assert points == {1.0, 2.0, 3.0, 30.0}  # what was sent before it was taken back stays there
    # Other settings: another run, and the first one's numbers stay.
    other = work_of(recipe, "pretrain", "checkpoints", key="other key")
    with pytest.raises(DataError), open_tracker(recipe, other):
        raise DataError("shard x.tar: truncated at https://user:secret@server/x")
    failed = runs_of(recipe)["pretrain"]
    assert failed.info.run_id != first.info.run_id
    assert failed.info.status == "FAILED"
    assert "x.tar: truncated" in failed.data.tags["headwater.why"]
    assert "secret" not in failed.data.tags["headwater.why"]
    assert runs_of(recipe)["pipeline"].info.status == "FAILED"


def test_models_are_registered_without_a_copy_and_load(
    recipe: Recipe, model_directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import mlflow
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)
    model_directory = Path(shutil.copytree(model_directory, recipe.workdir / "model"))
    work = Work("export", model_directory, "key", {}, {})
    with open_tracker(recipe, work):
        work.finish(model_directory.iterdir())
    (recipe.workdir / "report.html").write_text("<p>report</p>", encoding="utf-8")
    plots = recipe.workdir / "logs" / "plots"
    plots.mkdir()
    (plots / "loss.svg").write_text("<svg/>", encoding="utf-8")
    publish(recipe)
    publish(recipe)  # nothing new: nothing twice

    client, parent = client_of(recipe), runs_of(recipe)["pipeline"]
    files = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "recipe.yaml", "plots"} <= files
    [version] = client.search_model_versions("name='tiny'")
    assert version.run_id == parent.info.run_id
    weights = model_directory / "model.safetensors"
    assert weights.stat().st_nlink == 2  # linked, not copied
    uri = tracking_uri(recipe)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    loaded = mlflow.transformers.load_model("models:/tiny/1", return_type="components")
    tokens = torch.tensor([[2, 3, 4]])
    ours = AutoModelForCausalLM.from_pretrained(model_directory)
    with torch.no_grad():
        assert torch.equal(loaded["model"](tokens).logits, ours(tokens).logits)
    assert loaded["tokenizer"]("a b")["input_ids"] == [2, 3]
    assert not (tmp_path / "mlflow.db").exists() and not (tmp_path / "mlruns").exists()


def test_killed_between_the_manifest_and_its_telling(recipe: Recipe, shard_work: Work) -> None:
    program = (
        "import os, sys, pickle; from pipeline.tracking import open_tracker; from tracked_stages import finish\n"
        "recipe, work = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "with open_tracker(recipe, work): finish(work); os.kill(os.getpid(), 9)"
    )
    arguments = [sys.executable, "-c", program, pickle.dumps((recipe, shard_work)).hex()]
    assert subprocess.run(arguments, check=False, cwd=Path(__file__).parent).returncode == -signal.SIGKILL
    publish(recipe)
    run = runs_of(recipe)["shard"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["result/bits_per_byte"] == 1.5
    before = Spool(recipe.workdir / "logs", "shard").events.size()
    publish(recipe)
    assert Spool(recipe.workdir / "logs", "shard").events.size() == before


def test_switched_off_only_the_local_file_is_written(recipe: Recipe, shard_work: Work) -> None:
    (recipe.workdir.parent / "mlflow.db").unlink()
    off = recipe.model_copy(update={"tracking": recipe.tracking.model_copy(update={"enabled": False})})
    with open_tracker(off, shard_work) as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
        finish(shard_work)
    publish(off)
    assert not (recipe.workdir.parent / "mlflow.db").exists()
    assert next(Spool(recipe.workdir / "logs", "shard").metrics.read())[0]["metrics"] == {"loss": 1.0}
    publish(recipe)  # switched on later: what waited is sent
    assert runs_of(recipe)["shard"].data.metrics["loss"] == 1.0


def test_the_environment_wins_over_the_recipe_and_it_over_the_default(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking_uri(recipe) == f"sqlite:///{recipe.workdir.parent / 'mlflow.db'}"
    named = recipe.model_copy(update={"tracking": recipe.tracking.model_copy(update={"uri": "sqlite:////x/y.db"})})
    assert tracking_uri(named) == "sqlite:////x/y.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert tracking_uri(named) == "http://localhost:5000"


def test_a_server_that_is_away_is_told_once_without_secrets_and_gets_all_later(
    recipe: Recipe, shard_work: Work, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://person:secret@127.0.0.1:9")  # discard: nobody listens
    with caplog.at_level("INFO", "pipeline"), open_tracker(recipe, shard_work) as tracker:
        for step in range(1, 6):
            tracker.log_metrics({"loss": float(step)}, step)
        made = finish(shard_work)
    lines = [record.message for record in caplog.records if record.message.startswith("tracking:")]
    told = [line for line in lines if "cannot send to MLflow" in line]
    assert len(told) == 1
    assert "…@127.0.0.1:9 (ConnectionRefusedError: [Errno 111] Connection refused)" in told[0]
    assert any("sent at the next start" in line for line in lines)
    assert "secret" not in caplog.text
    assert "secret" not in "".join(path.read_text() for path in (recipe.workdir / "logs").glob("*.json*"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    work = work_of(recipe, "tokenizer", "tokenizer", shard=made.fingerprint)
    with open_tracker(recipe, work):  # the next stage brings along what was left
        finish(work)
    runs = runs_of(recipe)
    assert runs["shard"].data.metrics["loss"] == 5.0
    assert not any(spool.unsent() for spool in spools(recipe.workdir / "logs"))


def test_the_package_is_imported_without_mlflow() -> None:
    program = "import sys, pipeline.tracking, pipeline.run; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_where_tokens_come_from_is_told_without_secrets(recipe: Recipe) -> None:
    place = "s3://key:secret@bucket/tokens"
    recipe = recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update={"tokens_from": place})})
    work = work_of(recipe, "pretrain", "checkpoints", tokens_from="f" * 64)
    assert [line["path"] for line in lineage.inputs(recipe, work)] == ["s3://…@bucket/tokens"]
    assert lineage.flat({"pretrain": {"tokens_from": place}}) == {"pretrain.tokens_from": "s3://…@bucket/tokens"}


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 3_999_999_999)
    assert _user() == "3999999999"
