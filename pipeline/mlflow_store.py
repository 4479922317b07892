"""The only file that imports MLflow, and only in the thread that sends: runs, numbers, files and models to its store.

Without a server the store is a sqlite file, which appears under its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pipeline.files import TEMPORARY, own_temporary, write_json
from pipeline.journal import Line
from pipeline.lineage import grid_of
from pipeline.printable import without_secrets
from pipeline.progress import log
from pipeline.recipe import Recipe
from pipeline.registered import descriptions, layout, place
from pipeline.spool import PIPELINE, Spool

MAKING = "mlflow.lock"  # held while runs are looked for and made
LEFT_SECONDS = 3600.0  # a new database takes a few seconds to make; one as old was given up

# Read by MLflow when it is imported or called; what a person has set wins.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing about the user leaves the machine
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # delivery.py tries again, and tells
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
ID_TAG = "headwater.id"
FINGERPRINT_TAG = "headwater.fingerprint"
MOST_METRICS, MOST_PARAMS = 1000, 100  # in a batch
NAME_LENGTH, VALUE_LENGTH, DIGEST_LENGTH = 250, 5000, 36
NEVER = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "PERMISSION_DENIED"}  # what no repetition mends


def tracking_uri(recipe: Recipe) -> str:
    """The MLflow server or store of a recipe's runs."""
    given = os.environ.get("MLFLOW_TRACKING_URI") or recipe.tracking.uri
    return given or f"sqlite:///{recipe.workdir.absolute().parent / 'mlflow.db'}"


class MlflowStore:
    """The runs of one workdir in an MLflow store (a `delivery.Store`). Making it takes seconds."""

    def __init__(self, recipe: Recipe) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        warnings.filterwarnings("ignore", module=r"(mlflow|alembic|sqlalchemy)(\.|$)")
        from mlflow import MlflowClient

        for noisy in ("mlflow", "alembic", "urllib3.connectionpool"):  # with tracebacks, of what delivery.py tells
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        uri = tracking_uri(recipe)
        self.database = _database(uri)
        if self.database:
            _make_database(uri, self.database)
        self.place, self.logs = without_secrets(uri), recipe.workdir / "logs"
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self.experiment = self._experiment(recipe.tracking.experiment or recipe.name)
        self.names = {"mlflow.user": _user(), "headwater.recipe": recipe.name}

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            # A server knows where its files go; beside a database file they go into a folder of their own.
            location = _artifacts(self.database) if self.database else None
            try:
                return str(self.client.create_experiment(name, location))
            except MlflowException:  # another process was quicker
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise ValueError(f"experiment {name} is deleted there; restore it, or set tracking.experiment=…")
        return str(found.experiment_id)

    def open_run(self, spool: Spool) -> str:
        """The id of the MLflow run of a spool: the one that bears its tag, else a new one."""
        began = spool.began()
        assert began is not None, spool.events.path
        with open(self.logs / MAKING, "ab") as handle:  # two processes make one parent run
            fcntl.flock(handle, fcntl.LOCK_EX)
            if began["stage"] == PIPELINE:
                run_id = self._find_or_create(began, {})
            else:
                root = Spool(self.logs, PIPELINE).began()
                assert root is not None, self.logs
                above = {"mlflow.parentRunId": self._find_or_create(root, {})}
                task = Spool(self.logs, grid_of(began["stage"])).began() if grid_of(began["stage"]) else None
                if task is not None:
                    above = {"mlflow.parentRunId": self._find_or_create(task, above)}
                run_id = self._find_or_create(began, above)
            self._note(spool, began["stage"], run_id)
        return run_id

    def _find_or_create(self, began: Line, tags: dict[str, str]) -> str:
        found = self.client.search_runs([self.experiment], f"tags.`{ID_TAG}` = '{began['id']}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        name = str(began["stage"])
        source = {"mlflow.source.name": f"pipeline {name}", "mlflow.source.type": "LOCAL"}
        tags = {**tags, **self.names, **source, ID_TAG: began["id"], "headwater.stage": name}
        run = self.client.create_run(self.experiment, int(began["time"] * 1000), tags, run_name=name)
        return str(run.info.run_id)

    def _note(self, spool: Spool, stage: str, run_id: str) -> None:
        """Keep the ids in mlflow.json: {"uri", "experiment_id", "run_id", "stages": {stage: run id}}."""
        path = self.logs / "mlflow.json"
        noted: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if noted.get("uri") != self.place:
            if noted:
                log.info("tracking: moves from %s to %s; all numbers are sent there", noted["uri"], self.place)
            noted = {"uri": self.place, "experiment_id": self.experiment, "stages": {}}
        if stage == PIPELINE:
            noted["run_id"] = run_id
        elif spool.logs == self.logs:  # not one that was set aside
            noted["stages"][stage] = run_id
        write_json(path, noted)

    def send_metrics(self, run_id: str, lines: Sequence[Line]) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(_name(name), value, int(line["time"] * 1000), line["step"] or 0)
            for line in lines
            if line
            for name, value in line["metrics"].items()
        ]
        for first in range(0, len(points), MOST_METRICS):
            with self._never("numbers", run_id):
                self.client.log_batch(run_id, metrics=points[first : first + MOST_METRICS])

    def send_event(self, run_id: str, event: Line) -> None:
        send = getattr(self, f"_send_{event.get('kind')}", None)
        if send is not None:
            with self._never(event["kind"], run_id):
                send(run_id, event)

    @contextlib.contextmanager
    def _never(self, what: str, run_id: str) -> Iterator[None]:
        """Tell and leave what the server will never take, so that the rest gets through."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            if error.error_code not in NEVER:
                raise
            reason = without_secrets(" ".join(str(error).split()))[:300]
            log.warning("tracking: MLflow refuses %s of run %s: %s", what, run_id, reason)

    def _send_params(self, run_id: str, event: Line) -> None:
        from mlflow.entities import Param, RunTag

        known = self.client.get_run(run_id).data.params
        given = {_name(name): value[:VALUE_LENGTH] for name, value in event["params"].items()}
        fresh = [Param(name, value) for name, value in given.items() if name not in known]
        changed = [RunTag(f"now.{name}"[:NAME_LENGTH], v) for name, v in given.items() if known.get(name, v) != v]
        for first in range(0, max(len(fresh), len(changed)), MOST_PARAMS):
            until = first + MOST_PARAMS
            self.client.log_batch(run_id, params=fresh[first:until], tags=changed[first:until])

    def _send_tags(self, run_id: str, event: Line) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(_name(name), value[:VALUE_LENGTH]) for name, value in event["tags"].items()]
        self.client.log_batch(run_id, tags=tags[:MOST_PARAMS])

    def _send_inputs(self, run_id: str, event: Line) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = [
            DatasetInput(
                Dataset(each["name"], each["digest"][:DIGEST_LENGTH], "local", json.dumps({"uri": each["path"]})),
                [InputTag("mlflow.data.context", each["context"])],
            )
            for each in event["inputs"]
        ]
        if datasets:
            self.client.log_inputs(run_id, datasets)

    def _send_artifact(self, run_id: str, event: Line) -> None:
        if Path(event["path"]).is_file():
            self.client.log_artifact(run_id, event["path"], event["folder"] or None)
        else:
            log.warning("tracking: %s is no longer there and is not sent", event["path"])

    def _send_status(self, run_id: str, event: Line) -> None:
        if event["status"] in ("RUNNING", "SCHEDULED"):
            self.client.update_run(run_id, event["status"])
        else:
            self.client.set_terminated(run_id, event["status"], int(event["time"] * 1000))
        self.client.set_tag(run_id, "headwater.why", event.get("why", ""))

    def _send_model(self, run_id: str, event: Line) -> None:
        from mlflow.exceptions import MlflowException

        name, folder, made = event["name"], Path(event["folder"]), event["fingerprint"]
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if any(
            version.tags.get(FINGERPRINT_TAG) == made for version in self.client.search_model_versions(f"name='{name}'")
        ):
            return
        if not (folder / "config.json").is_file():
            log.warning("tracking: %s is no longer there and is not registered", folder)
            return
        tags = {FINGERPRINT_TAG: made, "headwater.stage": event["stage"]}
        model = self.client.create_logged_model(
            self.experiment, re.sub(r"[^\w-]", "_", name), run_id, tags, model_type=event["task"]
        )
        texts = descriptions(folder, event["task"], model.model_id, run_id)
        location = urlparse(model.artifact_location)
        if location.scheme in ("", "file"):
            place(layout(folder), texts, Path(unquote(location.path)))
        else:
            self._upload(model.model_id, layout(folder), texts)
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.create_model_version(
            name, model.artifact_location, run_id, tags, await_creation_for=0, model_id=model.model_id
        )

    def _upload(self, model_id: str, files: dict[str, Path], texts: dict[str, str]) -> None:
        """To a server that keeps files by itself: the only case in which weights are copied."""
        import tempfile

        total = sum(path.stat().st_size for path in files.values())
        log.info("tracking: sending the model to MLflow, %.1f MB", total / 1e6)
        for name, path in files.items():
            self.client.log_model_artifact(model_id, str(path), os.path.dirname(name))
        with tempfile.TemporaryDirectory() as folder:
            for name, text in texts.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            self.client.log_model_artifacts(model_id, folder)


def _database(uri: str) -> Path | None:
    """The file of an sqlite store; None of any other."""
    from sqlalchemy import make_url

    if not uri.startswith("sqlite:"):
        return None
    name = make_url(uri).database  # without escapes
    return None if not name or name == ":memory:" or name.startswith("file:") else Path(name).absolute()


def _artifacts(database: Path) -> str:
    """Where the files of runs in a database file go."""
    return (database.parent / "mlartifacts").as_uri()


def _make_database(uri: str, path: Path) -> None:
    """A new database file, complete when it appears.

    MLflow makes a new one in some forty steps: two commands that do it at once, or one that is killed in the middle,
    leave one that MLflow can never use.
    """
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import make_url

    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{path.name}.*{TEMPORARY}*"):  # of killed ones, with their journals
        with contextlib.suppress(FileNotFoundError):  # another command has just finished with its own
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                left.unlink()
    temporary = own_temporary(path)
    try:
        there = make_url(uri).set(database=str(temporary)).render_as_string(hide_password=False)
        SqlAlchemyStore(there, _artifacts(path)).engine.dispose()
        try:
            os.link(temporary, path)
        except FileExistsError:  # another process was quicker: that one is as good
            return
        except OSError:  # a file system without links
            if not path.exists():
                os.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _user() -> str:
    """Who runs this; in a container the user may be a number without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the latter from Python 3.13 on
        return str(os.getuid())


def _name(name: str) -> str:
    """A name as MLflow takes it: letters of any script, digits, `_-. :/`; no empty or relative parts."""
    clean = re.sub(r"[^\w\-. :/]", "_", name)[:NAME_LENGTH]
    parts = [part for part in clean.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "_"
