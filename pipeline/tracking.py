"""Numbers to MLflow: what a stage tells, and when.

One MLflow run shows a workdir ("pipeline"), a child run each stage. Everything is first written to `workdir/logs/`
(spool.py) and sent from there (delivery.py, mlflow_store.py), so that work never waits for a server and nothing is lost
when it is away. Runs bear an id of ours as a tag and are found by it: a stage that is continued goes on as the same
run. `logs/mlflow.json` names the runs.

Where: the environment's MLFLOW_TRACKING_URI, else the recipe's tracking.uri, else `mlflow.db` (sqlite) in the folder
that holds the workdir, with files under `mlartifacts/` beside it.

State of a child run: RUNNING while its stage is at work (and after it was killed so that it could say nothing: the
next start continues it); SCHEDULED when it stopped early and waits to be continued; FINISHED; KILLED by Ctrl-C;
FAILED, with the reason as the tag `headwater.why`. The parent's state is that of the stage that ran last.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline import lineage
from pipeline import manifest as manifests
from pipeline.delivery import Delivery
from pipeline.errors import Fenced
from pipeline.manifest import Work
from pipeline.mlflow_store import MAKING, MlflowStore, tracking_uri
from pipeline.printable import without_secrets
from pipeline.recipe import Recipe
from pipeline.registered import task_of
from pipeline.spool import PIPELINE, Spool, spools
from pipeline.system_metrics import Sampler


class Tracker:
    """Takes a stage's parameters, metrics and files. This one keeps nothing: ranks other than 0, and tests, use it."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Settings and facts of the stage; nested ones get dotted names. A value that changes later becomes a tag."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers, at a training step or for the stage as a whole. Never waits for a server."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """A file to show beside the numbers, under `folder`. It is read when it is sent: it must stay as it is."""

    def rewind(self, step: int, rounding: float | None = None) -> None:
        """Training goes on after `step`: numbers of later steps, which will be made again, are forgotten. rounding:
        see `Spool.rewind`."""

    def run_id(self) -> str:
        """What the MLflow run bears as the tag `headwater.id`; empty where nothing is tracked."""
        return ""


class SpoolTracker(Tracker):
    """Writes to a stage's spool. began: when its run did, in seconds since 1970."""

    def __init__(self, spool: Spool, began: float) -> None:
        self.spool, self.began = spool, began

    def log_params(self, params: Mapping[str, object]) -> None:
        if params:
            self.spool.event("params", params=lineage.flat(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if metrics:
            self.spool.numbers({name: float(value) for name, value in metrics.items()}, step)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        lineage.offer(self.spool, path, folder)

    def rewind(self, step: int, rounding: float | None = None) -> None:
        self.spool.rewind(step, rounding)

    def run_id(self) -> str:
        began = self.spool.began()
        return began["id"] if began else ""

    def log_load(self, metrics: Mapping[str, float]) -> None:
        """The machine's load; its step is the seconds since the run began, so that it grows over restarts too."""
        self.log_metrics(metrics, round(time.time() - self.began))


@contextlib.contextmanager
def open_tracker(recipe: Recipe, work: Work) -> Iterator[Tracker]:
    """Track one stage while the block runs; what the block raises passes through and decides the run's state.

    Settings, inputs, the manifest with its counts and metrics, and the machine's load are tracked here; the stage
    adds the rest.
    """
    logs = recipe.workdir / "logs"
    spool, parent = Spool(logs, work.stage, work.fence), Spool(logs, PIPELINE, work.fence)
    if work.fence.after_a_ghost:
        for each in (parent, spool):
            each.break_lock()
        (logs / MAKING).unlink(missing_ok=True)
    parent.begin(PIPELINE, new_when_finished=False)
    own = [parent, spool]
    if task := lineage.grid_of(work.stage):  # a combination of its grid: its run stands under the task's
        own.insert(1, Spool(logs, task, work.fence))
        own[1].begin(lineage.key_of_run(recipe, task, ""), new_when_finished=False)
    tracker = SpoolTracker(spool, spool.begin(lineage.key_of_run(recipe, work.stage, work.key))["time"])
    tags = {f"software.{name}": version for name, version in manifests.software_versions().items()}
    for each in own:
        each.event("status", status="RUNNING")
        each.event("tags", tags={"headwater.host": socket.gethostname(), **tags})
    parent.event("params", params={"recipe": recipe.name, "seed": str(recipe.seed)})
    lineage.offer(parent, recipe.workdir / "recipe.yaml")
    spool.event("inputs", inputs=lineage.inputs(recipe, work))
    tracker.log_params({"seed": recipe.seed, **work.settings})
    delivery = _deliver(recipe, own) if recipe.tracking.enabled else None
    sampler = Sampler(recipe.workdir, tracker.log_load)
    sampler.start()
    try:
        try:
            yield tracker
        finally:
            sampler.stop()
        lineage.log_manifest(manifests.load(work.folder), work.folder, spool, parent)
    except Fenced:  # how the stage ends is told by whoever has it now
        raise
    except BaseException as error:
        lineage.log_failure(error, *reversed(own))
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
        for name in recipe.finetune:
            made = recipe.workdir / "finetune" / name
            if (made / "model" / "config.json").is_file():
                kind = task_of(made / "model")
                lineage.offer_model(parent, f"{recipe.name}-{name}", made, made / "model", kind)
    if any(spool.unsent() for spool in spools(parent.logs)):
        _deliver(recipe, [parent]).close()


def log_comparison(recipe: Recipe, path: Path, numbers: Mapping[str, float]) -> None:
    """A comparison with another run, on the parent run: its numbers as `against/<name of its file>/…`, and the file.

    The same comparison is told once; nothing is told where the run itself was not tracked.
    """
    parent = Spool(recipe.workdir / "logs", PIPELINE)
    if not recipe.tracking.enabled or parent.began() is None or not lineage.offer(parent, path, path.parent.name):
        return
    parent.numbers({f"against/{path.stem}/{name}": value for name, value in numbers.items()}, None)
    _deliver(recipe, [parent]).close()


def _deliver(recipe: Recipe, own: Sequence[Spool]) -> Delivery:
    delivery = Delivery(lambda: MlflowStore(recipe), without_secrets(tracking_uri(recipe)), own)
    delivery.start()
    return delivery
