"""Numbers to MLflow: the only file that imports it, and only in the thread that sends.

One MLflow run shows a workdir ("pipeline"), a child run each stage. Everything is first written to `workdir/logs/`
(spool.py) and sent from there (delivery.py), so that work never waits for a server and nothing is lost when it is
away. Runs bear an id of ours as a tag and are found by it: a stage that is continued goes on as the same run.
`logs/mlflow.json` names the runs.

Where: the environment's MLFLOW_TRACKING_URI, else the recipe's tracking.uri, else `mlflow.db` (sqlite) in the folder
that holds the workdir, with files under `mlartifacts/` beside it.

State of a child run: RUNNING while its stage is at work (and after it was killed so that it could say nothing: the
next start continues it); SCHEDULED when it stopped early and waits to be continued; FINISHED; KILLED by Ctrl-C;
FAILED, with the reason as the tag `headwater.why`. The parent's state is that of the stage that ran last.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import logging
import os
import re
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pipeline import lineage
from pipeline import manifest as manifests
from pipeline.delivery import Delivery, without_secrets
from pipeline.files import write_json
from pipeline.manifest import Work
from pipeline.progress import log
from pipeline.recipe import Recipe
from pipeline.registered import descriptions, layout, place
from pipeline.spool import Line, Spool, spools
from pipeline.system_metrics import Sampler

PIPELINE = "pipeline"  # the spool of the parent run, and its name


class Tracker:
    """Takes a stage's parameters, metrics and files. This one keeps nothing: ranks other than 0, and tests, use it."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Settings and facts of the stage; nested ones get dotted names. A value that changes later becomes a tag."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers, at a training step or for the stage as a whole. Never waits for a server."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """A file to show beside the numbers, under `folder`. It is read when it is sent: it must stay as it is."""

    def rewind(self, step: int) -> None:
        """Training goes on after `step`: numbers of later steps, which will be made again, are forgotten."""


class SpoolTracker(Tracker):
    """Writes to a stage's spool. began: when its run did, in seconds since 1970."""

    def __init__(self, spool: Spool, began: float) -> None:
        self.spool, self.began = spool, began

    def log_params(self, params: Mapping[str, object]) -> None:
        if params:
            self.spool.event("params", params=lineage.flat(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if metrics:
            numbers = {name: float(value) for name, value in metrics.items()}
            self.spool.metrics.append({"step": step, "time": round(time.time(), 3), "metrics": numbers})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        lineage.offer(self.spool, path, folder)

    def rewind(self, step: int) -> None:
        self.spool.rewind(step)

    def log_load(self, metrics: Mapping[str, float]) -> None:
        """The machine's load; its step is the seconds since the run began, so that it grows over restarts too."""
        self.log_metrics(metrics, round(time.time() - self.began))


@contextlib.contextmanager
def open_tracker(recipe: Recipe, work: Work) -> Iterator[Tracker]:
    """Track one stage while the block runs; what the block raises passes through and decides the run's state.

    Settings, inputs, the manifest with its counts and metrics, and the machine's load are tracked here; the stage
    adds the rest.
    """
    spool, parent = Spool(recipe.workdir / "logs", work.stage), Spool(recipe.workdir / "logs", PIPELINE)
    parent.begin(PIPELINE, new_when_finished=False)
    tracker = SpoolTracker(spool, spool.begin(work.key)["time"])
    tags = {f"software.{name}": version for name, version in manifests.software_versions().items()}
    for each in (parent, spool):
        each.event("status", status="RUNNING")
        each.event("tags", tags={"headwater.host": socket.gethostname(), **tags})
    parent.event("params", params={"recipe": recipe.name, "seed": str(recipe.seed)})
    lineage.offer(parent, recipe.workdir / "recipe.yaml")
    spool.event("inputs", inputs=lineage.inputs(recipe, work))
    tracker.log_params({"seed": recipe.seed, **work.settings})
    delivery = _deliver(recipe, [parent, spool]) if recipe.tracking.enabled else None
    sampler = Sampler(recipe.workdir, tracker.log_load)
    sampler.start()
    try:
        try:
            yield tracker
        finally:
            sampler.stop()
        lineage.log_manifest(manifests.load(work.folder), work.folder, spool, parent)
    except BaseException as error:
        lineage.log_failure(error, spool, parent)
        raise
    finally:
        if delivery:
            delivery.close()


def publish(recipe: Recipe) -> None:
    """After the last stage: report, plots and recipe as artifacts of the parent run, the models in the registry.

    Also sends what could not be sent before. MLflow is not even imported when there is nothing new.
    """
    parent = Spool(recipe.workdir / "logs", PIPELINE)
    if not recipe.tracking.enabled or parent.began() is None:
        return
    for spool in spools(parent.logs):
        if spool.logs == parent.logs and spool.name != PIPELINE:
            lineage.log_forgotten(recipe, spool, parent)
    for path in (recipe.workdir / "recipe.yaml", recipe.workdir / "report.html"):
        lineage.offer(parent, path)
    for path in sorted((recipe.workdir / "logs" / "plots").glob("*.svg")):
        lineage.offer(parent, path, "plots")
    if recipe.tracking.register_model:
        made = recipe.workdir / "model"
        lineage.offer_model(parent, recipe.name, made, made, "text-generation")
        for name, task in recipe.finetune.items():
            made = recipe.workdir / "finetune" / name
            kind = "text-generation" if task.task == "sft" else "text-classification"
            lineage.offer_model(parent, f"{recipe.name}-{name}", made, made / "model", kind)
    if any(spool.unsent() for spool in spools(parent.logs)):
        _deliver(recipe, [parent]).close()


def _deliver(recipe: Recipe, own: Sequence[Spool]) -> Delivery:
    delivery = Delivery(lambda: MlflowStore(recipe), without_secrets(tracking_uri(recipe)), own)
    delivery.start()
    return delivery


def tracking_uri(recipe: Recipe) -> str:
    """The MLflow server or store of a recipe's runs."""
    given = os.environ.get("MLFLOW_TRACKING_URI") or recipe.tracking.uri
    return given or f"sqlite:///{recipe.workdir.absolute().parent / 'mlflow.db'}"


# --- MLflow --------------------------------------------------------------------------------------------------------

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


class MlflowStore:
    """The runs of one workdir in an MLflow store (a `delivery.Store`). Making it takes seconds."""

    def __init__(self, recipe: Recipe) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        warnings.filterwarnings("ignore", module=r"(mlflow|alembic|sqlalchemy)(\.|$)")
        from mlflow import MlflowClient

        for noisy in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        uri = tracking_uri(recipe)
        self.place, self.logs = without_secrets(uri), recipe.workdir / "logs"
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self.experiment = self._experiment(recipe.tracking.experiment or recipe.name, uri)
        self.names = {"mlflow.user": _user(), "headwater.recipe": recipe.name}

    def _experiment(self, name: str, uri: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            # A server knows where its files go; beside a database file they go into a folder of their own.
            database = Path(uri.removeprefix("sqlite:///")).absolute()
            location = (database.parent / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
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
        with open(self.logs / "mlflow.lock", "ab") as handle:  # two processes make one parent run
            fcntl.flock(handle, fcntl.LOCK_EX)
            if began["stage"] == PIPELINE:
                run_id = self._find_or_create(began, {})
            else:
                root = Spool(self.logs, PIPELINE).began()
                assert root is not None, self.logs
                run_id = self._find_or_create(began, {"mlflow.parentRunId": self._find_or_create(root, {})})
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
