"""A real MLflow server that is killed in the middle and started again: nothing is lost, and work never waits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tracked_stages import finish, work_of

from pipeline import delivery
from pipeline.cluster.launch import free_port
from pipeline.recipe import Recipe
from pipeline.tracking import open_tracker, publish

STEPS = 200


@contextlib.contextmanager
def server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`mlflow server` on localhost, answering; killed at the end with all its workers."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "files"),
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
    try:
        deadline = time.monotonic() + 500
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            assert process.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_server_killed_in_the_middle_loses_nothing(
    recipe: Recipe,
    tmp_path: Path,
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from mlflow import MlflowClient

    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(delivery, "SEND_SECONDS", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")  # a killed server resets what it never answered
    work = work_of(recipe, "pretrain", "checkpoints")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")  # the store behind the server

    def arrived() -> int:
        experiment = client.get_experiment_by_name("tiny")
        query = "tags.`headwater.stage` = 'pretrain'"
        runs = client.search_runs([experiment.experiment_id], query) if experiment else []
        return len(client.get_metric_history(runs[0].info.run_id, "loss")) if runs else 0

    def wait_until(what: Callable[[], object]) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if what():
                return
            time.sleep(0.1)
        raise AssertionError(caplog.text)

    with caplog.at_level("INFO", "pipeline"), contextlib.ExitStack() as servers:
        first = servers.enter_context(server(tmp_path, port))
        with open_tracker(recipe, work) as tracker:

            def train(first_step: int) -> None:
                for step in range(first_step, first_step + STEPS):
                    tracker.log_metrics({"loss": 1 / step}, step)

            train(1)
            wait_until(arrived)
            os.killpg(first.pid, signal.SIGSTOP)  # it takes connections and never answers
            train(1 + STEPS)  # would hang here if it waited for the server
            os.killpg(first.pid, signal.SIGKILL)
            wait_until(lambda: "cannot send to MLflow" in caplog.text)
            assert "work goes on" in caplog.text
            train(1 + 2 * STEPS)  # with nobody there
            servers.enter_context(server(tmp_path, port))
            finish(work)
        assert arrived() == 3 * STEPS
        model = work_of(recipe, "export", "model")
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (model.folder / name).write_text("{}", encoding="utf-8")
        with open_tracker(recipe, model):
            model.finish(model.folder.glob("*.*n"))
        publish(recipe)  # to a server that keeps the files by itself
        [version] = client.search_model_versions("name='tiny'")
        files = {path.relative_to(tmp_path / "files") for path in (tmp_path / "files").rglob("*") if path.is_file()}
        kept = {"/".join(path.parts[path.parts.index("artifacts") + 1 :]) for path in files if "models" in path.parts}
        assert {"MLmodel", "model/model.safetensors", "components/tokenizer/tokenizer.json"} <= kept
        assert "/models/m-" in version.source
    assert caplog.text.count("cannot send to MLflow") == 1
    assert "is back" in caplog.text
    assert "urllib3" not in caplog.text
