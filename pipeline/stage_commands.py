"""The commands that do a stage: what is asked for on the command line, checked, and handed to run.py or tasks.py."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.config import load_recipe
from pipeline.errors import EnvironmentFault, RecipeError
from pipeline.progress import log
from pipeline.recipe import Recipe
from pipeline.typed import load_typed


def recipe_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """RECIPE [KEY=VALUE]…, as every command takes them."""
    function = click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")(function)
    return click.argument("typed", metavar="RECIPE")(function)


def _dry_run(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--dry-run", is_flag=True, help="Show what would be done and why; do nothing.")(function)


@click.command()
@recipe_words
@_dry_run
def run(typed: str, words: tuple[str, ...], dry_run: bool) -> None:
    """All stages in order; what is done already is skipped."""
    recipe = load_typed(typed, words)
    if dry_run:
        _show_dry_run(recipe, ())
        return
    from pipeline.closing import closing_lines
    from pipeline.run import duration, finish, run_all

    started = time.monotonic()
    made = run_all(recipe)
    finish(recipe)
    for line in closing_lines(recipe, made, typed, words):
        click.echo(line)
    click.echo(f"All in {duration(time.monotonic() - started)}.")


def _task(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--task",
        metavar="I/N",
        help="Do share I (from 0) of N beside other tasks, on this machine or others; `array`: what Slurm's job array "
        "says. The command without it completes the stage.",
    )(function)


@click.command()
@recipe_words
@_task
@click.option("--decide", is_flag=True, help="Only settle copies and held-out text: after each --task but the last.")
@click.option(
    "--show-drops",
    "drops",
    is_flag=False,
    flag_value="",
    metavar="[RULE]",
    help="Print twenty documents that a rule dropped; without RULE, all rules with their counts.",
)
@_dry_run
def shard(
    typed: str, words: tuple[str, ...], *, task: str | None, decide: bool, drops: str | None, dry_run: bool
) -> None:
    """Corpora to text tars: clean, deduplicate, hold some out.

    As a job array: --task (reads), then --decide, then --task again (writes), then the plain command. With
    near-duplicates, and with duplicate lines or paragraphs, each: once more --task (compares) and --decide before it
    writes.
    """
    if drops is not None:
        _show_drops(typed, words, drops)
    elif dry_run or not (task or decide):
        _run_stages(typed, words, lambda recipe: ("shard",), dry_run)
    elif task:
        _run_task(typed, words, "shard", task)
    else:
        from pipeline.tasks import run_decision

        run_decision(load_typed(typed, words), "shard")


def _show_drops(typed: str, words: Sequence[str], rule: str) -> None:
    """rule: "" for the table; a setting where --show-drops stands before one."""
    if "=" in rule:
        words, rule = [rule, *words], ""
    recipe = load_typed(typed, words)
    from pipeline.corpus.drops import drop_lines

    for line in drop_lines(recipe.workdir / "text", rule or None, recipe.seed):
        click.echo(line)


@click.command()
@click.argument("typed", metavar="RECIPE", required=False)
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@_task
@click.option("--inspect", type=click.Path(path_type=Path), metavar="TAR", help="Show what a token tar holds.")
@_dry_run
def tokenize(
    typed: str | None, words: tuple[str, ...], *, task: str | None, inspect: Path | None, dry_run: bool
) -> None:
    """Text tars to token tars.

    As a job array: --task, then the plain command. With --inspect no recipe is needed; where one is given, its
    tokenizer decodes.
    """
    if inspect is not None:
        from pipeline.tokens.inspection import inspect_tar

        for line in inspect_tar(inspect, load_typed(typed, words).workdir / "tokenizer" if typed else None):
            click.echo(line)
        return
    if typed is None:
        raise click.UsageError("Missing argument 'RECIPE'.", click.get_current_context())
    if task and not dry_run:
        _run_task(typed, words, "tokenize", task)
    else:
        _run_stages(typed, words, lambda recipe: ("tokenize",), dry_run)


def _run_task(typed: str, words: tuple[str, ...], name: str, task: str) -> None:
    from pipeline.cluster.job_array import read_share
    from pipeline.tasks import run_task

    run_task(load_typed(typed, words), name, read_share(task))


@click.command()
@recipe_words
@click.option(
    "--task",
    metavar="NAME|I/N",
    help="Only this fine-tuning task of the recipe; or share I (from 0) of N of all trainings (`array`: what Slurm's "
    "job array says): the last to end chooses the best of a grid.",
)
@click.option("--list-tasks", is_flag=True, help="Print the recipe's tasks, or a share's, one a line, for scripts.")
@_dry_run
def finetune(typed: str, words: tuple[str, ...], task: str | None, list_tasks: bool, dry_run: bool) -> None:
    """The model directory to fine-tuned ones, one a task."""
    from pipeline.cluster.job_array import is_share, read_share

    if list_tasks:
        recipe = load_typed(typed, words)
        for name in _trainings(recipe, task) if recipe.finetune else ():
            click.echo(name.removeprefix("finetune."))
    elif task and is_share(task) and not dry_run:
        from pipeline.tasks import run_trainings

        run_trainings(load_typed(typed, words), read_share(task))
    else:
        _run_stages(typed, words, lambda recipe: _trainings(recipe, task), dry_run)


def _trainings(recipe: Recipe, task: str | None) -> tuple[str, ...]:
    """The stages of all tasks, of one or of a share, the combinations of a grid before it. Under a launcher, which
    trains one model at a time, a name means that stage alone."""
    from pipeline.cluster.job_array import is_share, read_share
    from pipeline.cluster.ranks import read_ranks

    if not recipe.finetune:
        raise RecipeError(f"recipe {recipe.name} has no finetune tasks; add one under `finetune:`")
    every = [one for name in recipe.finetune for one in recipe.trainings(name)]
    if task is not None and is_share(task):
        from pipeline.tasks import share_of_trainings

        return tuple(f"finetune.{one}" for one in share_of_trainings(recipe, read_share(task)))
    if task is not None and task not in every:
        raise RecipeError(f"--task {task}: the recipe's tasks are {', '.join(every)}")
    if task in recipe.finetune and read_ranks() is None:
        every = list(recipe.trainings(task))
    elif task is not None:
        every = [task]
    return tuple(f"finetune.{one}" for one in every)


@click.command()
@click.argument("typed", metavar="RECIPE|RUN_DIR")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--against", metavar="RECIPE|RUN_DIR", help="Compare with another run, with paired tests.")
@click.option(
    "--harness", metavar="TASKS", help="Instead: these tasks of lm-evaluation-harness (names or *.yaml, with commas)."
)
@_dry_run
def evaluate(typed: str, words: tuple[str, ...], *, against: str | None, harness: str | None, dry_run: bool) -> None:
    """Numbers on held-out data, beside baselines; with --against beside another model."""
    if against is None:
        typed, words = _as_recipe(typed, words)
    if harness is not None:
        tasks = f"evaluate.harness.tasks={json.dumps(harness.split(','))}"
        _run_stages(typed, (*words, tasks), lambda recipe: ("harness",), dry_run)
        return
    if against is None or dry_run:
        _run_stages(typed, words, lambda recipe: ("evaluate",), dry_run)
        return
    ours = _run_folder(typed, words)
    if not (Path(typed).is_dir() and not words):
        _run_stages(typed, words, lambda recipe: ("evaluate",), dry_run)
    _compare(ours, _run_folder(against, ()))


def _compare(ours: Path, theirs: Path) -> None:
    """Print and keep a comparison of two runs, and tell MLflow."""
    from pipeline.evaluate.compare import compare_runs, comparison_lines, comparison_numbers, file_of
    from pipeline.run import RECIPE
    from pipeline.tracking import log_comparison

    result = compare_runs(ours, theirs)
    for line in comparison_lines(result):
        click.echo(line)
    if (ours / RECIPE).is_file():
        recipe = load_recipe(str(ours / RECIPE)).model_copy(update={"workdir": ours})
        log_comparison(recipe, file_of(ours, theirs), comparison_numbers(result))


def _as_recipe(typed: str, words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """A run's folder as the recipe that is kept in it, which may have been moved with it."""
    from pipeline.run import RECIPE

    kept = Path(typed) / RECIPE
    return (str(kept), (f"workdir={typed}", *words)) if kept.is_file() else (typed, words)


def _run_folder(typed: str, words: Sequence[str]) -> Path:
    """The folder of a run, given as such or by its recipe."""
    return Path(typed) if Path(typed).is_dir() and not words else load_typed(typed, words).workdir


def _stage_command(name: str, doc: str) -> click.Command:
    @click.command(name, help=doc, short_help=doc.split(".", maxsplit=1)[0])
    @recipe_words
    @_dry_run
    def one(typed: str, words: tuple[str, ...], dry_run: bool) -> None:
        _run_stages(typed, words, lambda recipe: (name,), dry_run)

    return one


def _run_stages(typed: str, words: tuple[str, ...], chosen: Callable[[Recipe], tuple[str, ...]], dry_run: bool) -> None:
    recipe = load_typed(typed, words)
    names = chosen(recipe)
    if dry_run:
        _show_dry_run(recipe, names)
        return
    from pipeline.cluster.ranks import read_ranks
    from pipeline.run import run_stage, warn_of_stale_inputs

    ranks = read_ranks()
    if ranks is not None and ranks.rank > 0:
        log.setLevel(logging.WARNING)  # rank 0 speaks for all
    if ranks is not None and ranks.world_size > 1 and len(names) > 1:
        raise EnvironmentFault(
            f"a launcher ({ranks.launcher}) starts one training at a time; give --task, one of "
            + ", ".join(name.partition(".")[2] for name in names)
        )
    for name in names:
        if ranks is None:
            warn_of_stale_inputs(recipe, name)
        run_stage(recipe, name)


def _show_dry_run(recipe: Recipe, names: tuple[str, ...]) -> None:
    from pipeline.dry_run import dry_run_lines

    for line in dry_run_lines(recipe, names):
        click.echo(line)


IN_ORDER = (  # as they are used
    run,
    shard,
    _stage_command("tokenizer", "Text tars to a tokenizer: byte-level BPE."),
    tokenize,
    _stage_command(
        "pretrain",
        "Token tars to checkpoints. Without a launcher it starts its own ranks; under srun, torchrun or deepspeed each "
        "task is a rank.",
    ),
    _stage_command("export", "The trained model to a Hugging Face directory, logits compared."),
    finetune,
    evaluate,
)
