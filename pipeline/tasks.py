"""One task of a job array: a share of a stage's work, done beside others on other machines.

Fine-tuning is shared by whole trainings, each of which is a stage; the rest of this is of stages that are split. Tasks
hold the stage's lock together; the plain command, which completes and commits, holds it alone. Whichever task comes
first makes the folder ready. A task never commits a manifest and tells MLflow nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from typing import Any

from pipeline import manifest as manifests
from pipeline.cluster.job_array import Share
from pipeline.cluster.jobs import recorded
from pipeline.cluster.ranks import read_ranks
from pipeline.errors import DataError, EnvironmentFault
from pipeline.locks import hold
from pipeline.manifest import Work
from pipeline.progress import log, log_file
from pipeline.recipe import Recipe
from pipeline.run import full_disk_named, make_ready, run_stage, stop_on_signal
from pipeline.stage_state import Status, holds_work, status
from pipeline.stages import stages

BEGIN = ".begin"  # of the lock under which the first task makes the folder ready
BEGIN_PATIENCE = 600.0  # seconds: thousands of tasks may begin at once, and one of them may be setting work aside
FINETUNE = "finetune."  # before the name of a training: its stage
CHOOSE = ".choose"  # of the lock under which the best of a grid is chosen
CHOOSE_PATIENCE = 600.0  # seconds: two tasks may end at once, and where a disk has no links the model is copied


def run_task(recipe: Recipe, name: str, share: Share) -> None:
    """Do a share of the step of a stage that is due.

    Raises: DataError when half-done work of another recipe is there; else as the stage does.
    """
    with _stage_work(recipe, name, f"{name}.task-{share.number}") as work:
        if work is None:
            return
        _begin(recipe, name, work)
        needs = stages(recipe)[name].needs
        with hold(recipe.workdir / "logs", name, needs, shared=True):
            if _is_done(name, work):
                return
            _module(recipe, name).run_task(recipe, work, share)


def run_decision(recipe: Recipe, name: str) -> None:
    """Do the one step of a stage that is not shared: what tasks left undone before it, and then the step itself.

    Raises: as the stage does.
    """
    with _stage_work(recipe, name, f"{name}.decide") as work:
        if work is None:
            return
        _begin(recipe, name, work)
        with hold(recipe.workdir / "logs", name, stages(recipe)[name].needs):
            if _is_done(name, work):
                return
            _module(recipe, name).run_decision(recipe, work)


def share_of_trainings(recipe: Recipe, share: Share) -> tuple[str, ...]:
    """The fine-tuning trainings of a task, by the names of `--task`: combinations of grids, and tasks without one."""
    every = [stage for stage in stages(recipe).values() if stage.name.startswith(FINETUNE) and not stage.chooses]
    return tuple(stage.name.removeprefix(FINETUNE) for stage in share.of(every))


def run_trainings(recipe: Recipe, share: Share) -> None:
    """Do a share of the fine-tuning trainings. Of a grid whose combinations are all done then, by whatever tasks, the
    best is chosen: so the last task does it, or one that is repeated.

    Raises: EnvironmentFault under a launcher of several ranks; else as `run_stage`.
    """
    ranks = read_ranks()
    if ranks is not None and ranks.world_size > 1:
        raise EnvironmentFault(
            f"finetune --task {share}: trains one model after the other, but a launcher ({ranks.launcher}) started "
            f"{ranks.world_size} ranks; give it the names one by one that `finetune --list-tasks --task {share}` lists"
        )
    names = share_of_trainings(recipe, share)
    if not names:
        log.info("finetune: none of the trainings is of task %s", share)
    for name in names:
        run_stage(recipe, FINETUNE + name)
    for stage in stages(recipe).values():
        if stage.chooses and all(status(recipe, need).manifest for need in stage.needs):
            with hold(recipe.workdir / "logs", stage.name + CHOOSE, patience=CHOOSE_PATIENCE):
                run_stage(recipe, stage.name)  # skipped where another task came first


@contextlib.contextmanager
def _stage_work(recipe: Recipe, name: str, called: str) -> Iterator[Work | None]:
    """The stage's work, with signals, logs and a full disk seen to; None when the stage is done.

    called: in logs/jobs.jsonl, and in front of `.log`.
    """
    ranks = read_ranks()
    if ranks is not None and ranks.world_size > 1:
        raise EnvironmentFault(
            f"{name}: a task of a job array is one process, but a launcher ({ranks.launcher}) started "
            f"{ranks.world_size}; give each element of the array one (srun --ntasks=1)"
        )
    found = status(recipe, name)
    if found.manifest:
        log.info("%-20s skipped: %s", name, found.why)
        yield None
        return
    logs = recipe.workdir / "logs"
    with (
        full_disk_named(recipe),
        log_file(logs / f"{called}.log"),
        recorded(logs, called, ranks),
        stop_on_signal(found.stage),
    ):
        yield found.work


def _begin(recipe: Recipe, name: str, work: Work) -> None:
    """Make the stage's folder ready, once, whoever comes first."""
    if _is_building(work):
        return
    logs = recipe.workdir / "logs"
    with hold(logs, name + BEGIN, patience=BEGIN_PATIENCE):
        if _is_building(work):  # the lock's holder before us made it
            return
        with hold(logs, name):  # nobody else is at work here, with another recipe either
            found = status(recipe, name)
            if found.manifest:
                return
            _refuse_half_done(found)
            make_ready(recipe, found)


def _refuse_half_done(found: Status) -> None:
    """Raises: DataError where tasks would set aside what other tasks, not at work now, have half done."""
    folder = found.work.folder
    if found.state == "changed" and not (folder / manifests.MANIFEST).is_file() and holds_work(folder):
        raise DataError(
            f"{found.stage.name}: {folder} holds half-done work of another recipe ({found.why}); give tasks the "
            f"settings that it began with, or begin anew: delete {folder}"
        )


def _is_done(name: str, work: Work) -> bool:
    """Whether the stage was finished while this task waited for its turn.

    Raises: DataError when it was set aside meanwhile.
    """
    if _is_building(work):
        return False
    if (work.folder / manifests.MANIFEST).is_file() and manifests.load(work.folder).key == work.key:
        log.info("%-20s skipped: finished meanwhile", name)
        return True
    raise DataError(f"{name}: {work.folder} was set aside while this task began; give the command again")


def _is_building(work: Work) -> bool:
    """Whether the folder holds half-done work of this very recipe."""
    try:
        building = json.loads((work.folder / manifests.BUILDING).read_text(encoding="utf-8"))
        return bool(building["key"] == work.key) and not (work.folder / manifests.MANIFEST).is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False  # `status` says what is wrong with it


def _module(recipe: Recipe, name: str) -> Any:
    return importlib.import_module(stages(recipe)[name].module)
