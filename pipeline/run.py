"""The run driver: for each stage skip, continue or begin; for stages that train, start ranks; at the end, the sum.

A stage that trains runs in ranks. Without a launcher this process prepares the folder and starts the ranks, which
come back here with their rank in the environment; under a launcher (srun, torchrun, deepspeed) they are here already.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType

from pipeline import manifest as manifests
from pipeline.cluster.jobs import launch_id, recorded
from pipeline.cluster.ranks import Ranks, default_ranks, read_ranks, unused_tasks
from pipeline.config import save_recipe
from pipeline.errors import DataError, EnvironmentFault, PipelineError, Stopped, UserError
from pipeline.files import write_text
from pipeline.locks import hold
from pipeline.manifest import Manifest
from pipeline.owner import Fence, Follower, is_ready
from pipeline.progress import log, log_file
from pipeline.recipe import FinetuneTask, PretrainSettings, Recipe
from pipeline.stage_state import Status, prepare, status, take_back
from pipeline.stages import Stage, load_stage, named_stage, stages
from pipeline.tracking import Tracker

RECIPE = "recipe.yaml"  # the resolved recipe, in the workdir
NO_ROOM = 1_000_000  # bytes free under which nothing can be written
RANK_PATIENCE = 600.0  # seconds that a rank waits for rank 0 to prepare the stage


def run_stage(recipe: Recipe, name: str) -> Manifest:
    """Bring one stage (a name of `stages(recipe)`) up to date and return its manifest.

    Raises: UserError, Stopped; SystemExit with the status of ranks that have already said why they failed.
    """
    ranks = read_ranks()
    found = status(recipe, name) if ranks is None or ranks.rank == 0 else None
    if found and found.manifest:
        log.info("%-20s skipped: %s", name, found.why)
        return found.manifest
    stage = stages(recipe)[name]
    if ranks is not None and ranks.world_size > 1 and not stage.trains:
        raise EnvironmentFault(
            f"{name}: runs in one process, but a launcher ({ranks.launcher}) started {ranks.world_size}; "
            "give it one task"
        )
    logs = recipe.workdir / "logs"
    if ranks is not None and ranks.rank > 0:
        run = load_stage(stage)  # seconds, in which rank 0 prepares the folder
        found = _wait_for_rank_0(recipe, name, launch_id(ranks))
        if found.manifest:
            return found.manifest
        with Follower(logs, name, launch_id(ranks)) as fence:
            return run(recipe, replace(found.work, fence=fence), Tracker())
    with full_disk_named(recipe), log_file(logs / f"{name}.log"), stop_on_signal(stage):
        if stage.trains and not stage.chooses and ranks is None:
            return _start_ranks(recipe, stage)
        with hold(logs, name, stage.needs, launch=launch_id(ranks)) as fence:
            return _make(recipe, stage, fence, ranks)


def run_all(recipe: Recipe) -> dict[str, Manifest]:
    """All stages in order. Returns each stage's manifest.

    Raises: as `run_stage`.
    """
    ranks = read_ranks()
    if ranks is not None and ranks.world_size > 1:
        raise EnvironmentFault(
            f"run: starts its own ranks, but a launcher ({ranks.launcher}) started {ranks.world_size} of it; "
            "give the launcher a single stage, such as pretrain, or use slurm/pipeline.sh"
        )
    log.info("%s: seed %d, in %s", recipe.name, recipe.seed, recipe.workdir)
    check_ahead(recipe)
    return {name: run_stage(recipe, name) for name in stages(recipe)}


def check_ahead(recipe: Recipe) -> None:
    """Look for what later stages will need, before hours are spent on the first.

    Raises: UserError naming a file or folder that is not there, or what is wrong in a DeepSpeed file.
    """
    from pipeline.train.deepspeed_files import read_config

    for settings in (recipe.pretrain, *recipe.finetune.values()):
        read_config(settings.deepspeed)
    for stage in stages(recipe).values():
        task = recipe.finetune.get(stage.name.partition(".")[2])
        if task and task.base:
            if Path(task.base).absolute().is_relative_to(recipe.workdir.absolute()):
                continue  # it may be what an earlier task will make
            from pipeline.model.hub import local_folder

            local_folder(task.base)  # fetched now, if it is of the hub
        stage.sources(recipe)


def finish(recipe: Recipe) -> None:
    """What follows the last stage: the report, where something is newer than it, and the models' registration."""
    from pipeline.report.build import write_report
    from pipeline.tracking import publish

    report = recipe.workdir / "report.html"
    folders = [recipe.workdir / stage.folder for stage in stages(recipe).values()]
    newest = max((folder / manifests.MANIFEST).stat().st_mtime for folder in folders)
    if not report.is_file() or report.stat().st_mtime < newest:
        with full_disk_named(recipe):
            write_report(recipe)
    publish(recipe)


def warn_of_stale_inputs(recipe: Recipe, name: str) -> None:
    """Say so when a stage that is run alone reads what another recipe made."""
    for need in named_stage(recipe, name).needs:
        with contextlib.suppress(DataError):  # a source may be on another machine: then nobody can tell
            found = status(recipe, need)
            if found.state == "changed":
                log.warning("%s: reads %s, made with other settings: %s", name, found.work.folder, found.why)


# --- one stage -----------------------------------------------------------------------------------------------------


def _make(recipe: Recipe, stage: Stage, fence: Fence, ranks: Ranks | None) -> Manifest:
    """Run a stage in this process, which holds its lock."""
    found = status(recipe, stage.name)  # again: the lock's holder before us may have finished it
    if found.manifest:
        log.info("%-20s skipped: %s", stage.name, found.why)
        return found.manifest
    told = ranks is not None and ranks.launcher == "local"  # by the command that started the ranks
    if not (told and found.state == "continue"):
        found = _prepare(recipe, found)
        if found.manifest:
            return found.manifest
    fence.ready(found.work.key)
    from pipeline.tracking import open_tracker

    work = replace(found.work, fence=fence)
    with recorded(recipe.workdir / "logs", stage.name, ranks), open_tracker(recipe, work) as tracker:
        run = load_stage(stage)
        made = run(recipe, work, tracker)
    log.info("%-20s done in %s: %s", stage.name, duration(made.seconds), _size(made))
    return made


def make_ready(recipe: Recipe, found: Status) -> Status:
    """Keep the recipe with the run, and make the stage's folder ready, or take earlier work back. The lock is held.

    Returns the status then; of a stage that is done nothing is changed.
    """
    _save_with_run(recipe)
    if lines := take_back(recipe, found):
        for line in lines:
            log.info("%s", line)
        found = status(recipe, found.stage.name)
    if not found.manifest:
        for line in prepare(recipe, found):
            log.info("%s", line)
    return found


def _prepare(recipe: Recipe, found: Status) -> Status:
    """The same, and say what comes next."""
    found = make_ready(recipe, found)
    if found.manifest:
        log.info("%-20s skipped: %s", found.stage.name, found.why)
    else:
        log.info("%-20s %s", found.stage.name, "continues: " + found.why if found.state == "continue" else "starts")
    return found


def _start_ranks(recipe: Recipe, stage: Stage) -> Manifest:
    """Prepare the folder, let ranks on this machine do the work, read the manifest that rank 0 commits.

    The ranks read the resolved recipe that is kept with the run: what was typed may be another recipe by now, since
    people edit theirs for the next run while this one is at work.
    """
    with hold(recipe.workdir / "logs", stage.name, stage.needs):  # given back: rank 0 takes it for as long as it lives
        found = status(recipe, stage.name)
        if found.manifest:
            return found.manifest
        found = _prepare(recipe, found)
        if found.manifest:
            return found.manifest
    from pipeline.cluster.launch import launch_local

    if tasks := unused_tasks():
        log.warning(
            "%s: this Slurm job has room for %d tasks, but nothing started them: all ranks are on this node, %s; "
            "`srun` in front of the command starts a rank a task, `sbatch slurm/pretrain.sh` does all of it",
            stage.name,
            tasks,
            socket.gethostname(),
        )
    command, _, task = stage.name.partition(".")
    arguments = [command, str(recipe.workdir / RECIPE), *(["--task", task] if task else [])]
    ended = launch_local(arguments, training_settings(recipe, stage.name).ranks or default_ranks())
    if ended == 0:
        return manifests.load(found.work.folder)
    if ended == Stopped.status:
        raise Stopped(f"{stage.name}: stopped early; the same command continues")
    told = 0 < ended < 128 or ended == 128 + signal.SIGINT
    raise SystemExit(ended if told else PipelineError.status)  # the rank has said why


def _wait_for_rank_0(recipe: Recipe, name: str, launch: str) -> Status:
    """The stage's status once rank 0 of this launch has prepared its folder (or found it done).

    A folder that is half done proves nothing: a command from before, which may still be at work, has prepared it.
    """
    deadline = time.monotonic() + RANK_PATIENCE
    while True:
        try:
            found = status(recipe, name)
            ready = found.state == "continue" and is_ready(recipe.workdir / "logs", name, launch, found.work.key)
            if ready or found.state == "done":
                return found
        except DataError:  # rank 0 may be renaming the folder at this moment; it says what is really wrong
            found = None
        if time.monotonic() > deadline:
            raise EnvironmentFault(
                f"{name}: rank 0 has not prepared {recipe.workdir} within {RANK_PATIENCE:.0f} s; "
                "is it on a file system that all nodes share?"
            )
        time.sleep(0.2)


def training_settings(recipe: Recipe, name: str) -> PretrainSettings | FinetuneTask:
    """The part of the recipe that a stage trains by."""
    return recipe.pretrain if name == "pretrain" else recipe.task(name.partition(".")[2])


@contextlib.contextmanager
def stop_on_signal(stage: Stage) -> Iterator[None]:
    """SIGTERM (and for stages that train SIGUSR1, Slurm's warning) ends a stage in order, with status 75.

    While steps are made, `train.signals` takes their place: a checkpoint is saved first.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(f"{stage.name}: stopped by {signal.Signals(number).name}; the same command continues")

    asking = (signal.SIGTERM, signal.SIGUSR1) if stage.trains else (signal.SIGTERM,)
    before = {number: signal.signal(number, stop) for number in asking}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def full_disk_named(recipe: Recipe) -> Iterator[None]:
    """Libraries report a full disk in many ways; whatever failed while there was no room left is told as that."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        folder = recipe.workdir.absolute()
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        free = shutil.disk_usage(there).free
        if free >= NO_ROOM and not (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
            raise
        raise EnvironmentFault(
            f"{recipe.workdir}: the disk is full ({free / 1e6:.0f} MB free); free some space (or set workdir=… to a "
            "larger disk) and give the same command again, it continues"
        ) from error


def _save_with_run(recipe: Recipe) -> None:
    """Keep the resolved recipe with the run."""
    path, text = recipe.workdir / RECIPE, save_recipe(recipe)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


# --- words ---------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Seconds as a person says them: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _size(made: Manifest) -> str:
    total = made.total_bytes()
    shown = f"{total / 1e9:.1f} GB" if total >= 1e9 else f"{total / 1e6:.1f} MB"
    return f"{len(made.outputs)} file{'s' if len(made.outputs) != 1 else ''}, {shown}"
