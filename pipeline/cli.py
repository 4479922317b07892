"""The `pipeline` command. Exit status: 0 done, 2 bad input, 75 stopped and resumable, 130 Ctrl-C, else a fault."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from pipeline import __version__
from pipeline.config import SHIPPED, load_recipe, shipped_recipes
from pipeline.errors import EnvironmentFault, PipelineError, RecipeError, Stopped, UserError
from pipeline.generate import generate
from pipeline.memory import collect_garbage_seldom
from pipeline.printable import one_line
from pipeline.progress import log, start_logging
from pipeline.recipe import Recipe
from pipeline.typed import load_typed

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended

EXAMPLES = """
\b
Examples:
  pipeline run demo                              everything, on text that is on this machine
  pipeline run demo --dry-run                    what would be done, and why
  pipeline run demo seed=7 workdir=runs/seven    settings of the recipe, changed for this run
  pipeline run my.yaml                           your own recipe
  pipeline pretrain demo pretrain.tokens=4e6     one stage
  pipeline generate demo --prompt "def "         text from the trained model
  pipeline generate demo --chat                  a conversation with the fine-tuned model

\b
RECIPE is a name that `pipeline recipes` lists, or the path of a YAML file. `key=value` words follow it.
Exit status: 0 done; 2 bad input (one line says what); 75 stopped early, the same command continues;
130 Ctrl-C, the same command continues; 4 a bad node (preflight); anything else is a fault.
"""


class _Commands(click.Group):
    """Commands in the order in which they are used; a setting where a command should stand is explained."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and "=" in args[0]:
            raise click.UsageError(
                f"'{args[0]}' stands where a command should; settings follow the recipe: pipeline run demo {args[0]}"
            )
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog=EXAMPLES,
)
@click.version_option(__version__, prog_name="pipeline")
@click.option("--local_rank", hidden=True, expose_value=False)  # the deepspeed launcher adds it; LOCAL_RANK says it too
def command() -> None:
    """Raw corpora in; a pretrained, fine-tuned and evaluated language model out."""


def _recipe_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """RECIPE [KEY=VALUE]…, as every command takes them."""
    function = click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")(function)
    return click.argument("typed", metavar="RECIPE")(function)


def _dry_run(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--dry-run", is_flag=True, help="Show what would be done and why; do nothing.")(function)


@command.command()
@_recipe_words
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


def _stage_command(name: str, doc: str) -> None:
    @command.command(name, help=doc, short_help=doc.split(".", maxsplit=1)[0])
    @_recipe_words
    @_dry_run
    def one(typed: str, words: tuple[str, ...], dry_run: bool) -> None:
        _run_stages(typed, words, lambda recipe: (name,), dry_run)


def _task(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--task",
        metavar="I/N",
        help="Do share I (from 0) of N beside other tasks, on this machine or others; `array`: what Slurm's job array "
        "says. The command without it completes the stage.",
    )(function)


@command.command()
@_recipe_words
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


_stage_command("tokenizer", "Text tars to a tokenizer: byte-level BPE.")


@command.command()
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


for _name, _doc in {
    "pretrain": "Token tars to checkpoints. Without a launcher it starts its own ranks; under srun, torchrun or "
    "deepspeed each task is a rank.",
    "export": "The trained model to a Hugging Face directory, logits compared.",
}.items():
    _stage_command(_name, _doc)


@command.command()
@_recipe_words
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


@command.command()
@click.argument("typed", metavar="RECIPE|RUN_DIR")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--against", metavar="RECIPE|RUN_DIR", help="Compare with another run, with paired tests.")
@click.option(
    "--harness", metavar="TASKS", help="Instead: these tasks of lm-evaluation-harness (names or *.yaml, with commas)."
)
@_dry_run
def evaluate(typed: str, words: tuple[str, ...], *, against: str | None, harness: str | None, dry_run: bool) -> None:
    """Numbers on held-out data, beside baselines; with --against beside another model."""
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


def _run_folder(typed: str, words: Sequence[str]) -> Path:
    """The folder of a run, given as such or by its recipe."""
    return Path(typed) if Path(typed).is_dir() and not words else load_typed(typed, words).workdir


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


command.add_command(generate)


@command.command()
@_recipe_words
def report(typed: str, words: tuple[str, ...]) -> None:
    """report.html, from what has been made so far."""
    from pipeline.report.build import write_report

    click.echo(write_report(load_typed(typed, words)))


@command.command()
def recipes() -> None:
    """The recipes that come with the package."""
    for name in shipped_recipes():
        click.echo(f"{name:<8} {load_recipe(name).description}")
    click.echo(f"\nThey lie in {SHIPPED}; copy one, or start yours with `base: demo`.")


@command.command()
@_recipe_words
@click.option("--comparisons", is_flag=True, help="Instead: the parallel steps of `shard` between reading and writing.")
@click.option("--token-passes", is_flag=True, help="Instead: the parallel steps of `tokenize`.")
def where(typed: str, words: tuple[str, ...], *, comparisons: bool, token_passes: bool) -> None:
    """The folder of a recipe's run, for scripts."""
    recipe = load_typed(typed, words)
    if comparisons or token_passes:
        click.echo("\n".join(recipe.corpus.comparisons if comparisons else recipe.tokenize.passes))
    else:
        click.echo(recipe.workdir)


@command.command()
@click.argument("typed", metavar="[RECIPE]", required=False)
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print all that was found as JSON.")
@click.option("--exclude-bad", is_flag=True, help="Also print a line `exclude=NODE,NODE`, for job scripts.")
def preflight(typed: str | None, words: tuple[str, ...], *, as_json: bool, exclude_bad: bool) -> None:
    """Look at every node of a job before it begins: versions, clocks, links, shared folder. Status 4: a bad node."""
    recipe = load_typed(typed, words) if typed else None
    from pipeline.cluster.preflight.command import preflight_command

    sys.exit(preflight_command(recipe, [*([typed] if typed else []), *words], as_json, exclude_bad))


@command.command()
@click.argument("typed", metavar="RECIPE|RUN_DIR")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print all that is known as JSON.")
@click.option("--watch", is_flag=True, help="Look again every few seconds, until Ctrl-C.")
def status(typed: str, words: tuple[str, ...], *, as_json: bool, watch: bool) -> None:
    """What a run is doing: stages, jobs, progress, speed, time left, last checkpoint, events."""
    folder = Path(typed).is_dir() and not words
    recipe = None if folder else load_typed(typed, words)
    from pipeline.status.show import status_command

    status_command(recipe, recipe.workdir if recipe else Path(typed), as_json, watch)


def _show_dry_run(recipe: Recipe, names: tuple[str, ...]) -> None:
    from pipeline.dry_run import dry_run_lines

    for line in dry_run_lines(recipe, names):
        click.echo(line)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and leave with its exit status; people see a line, not a traceback, for what they can mend."""
    collect_garbage_seldom()
    start_logging()
    warnings.simplefilter("ignore", FutureWarning)  # for those who maintain the libraries, not for those who train
    sys.exit(_status(arguments))


def _status(arguments: Sequence[str] | None) -> int:
    typed = sys.argv[1:] if arguments is None else list(arguments)
    try:
        command.main(typed or ["--help"], "pipeline", standalone_mode=False)
    except click.UsageError as error:
        context = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
        return _say(f"error: {one_line(error.format_message()).rstrip('.')}{context}", UserError.status)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _say("stopped by Ctrl-C; the same command continues", INTERRUPTED)
    except Stopped as stop:
        return _say(str(stop), stop.status)
    except UserError as error:
        return _say(f"error: {error}", error.status)
    except BrokenPipeError:
        sys.stdout = None  # `pipeline recipes | head`: nobody reads any more
        return PipelineError.status
    return 0 if typed else UserError.status  # the bare command shows its help, but did nothing


def _say(line: str, status: int) -> int:
    from pipeline.cluster.ranks import read_ranks

    try:
        ranks = read_ranks()
    except UserError:
        ranks = None  # this may be the very error that is told
    other = ranks is not None and ranks.rank > 0 and ranks.launcher != "local"  # our own launch names the rank itself
    log.error("%s%s", f"[rank {ranks.rank}] " if ranks is not None and other else "", line)
    return status
