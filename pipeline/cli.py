"""The `pipeline` command. Exit status: 0 done, 2 bad input, 75 stopped and resumable, 130 Ctrl-C, else a fault."""

from __future__ import annotations

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
from pipeline.errors import DataError, EnvironmentFault, PipelineError, RecipeError, Stopped, UserError
from pipeline.progress import log, start_logging
from pipeline.recipe import Recipe

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
130 Ctrl-C, the same command continues; anything else is a fault.
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
def command() -> None:
    """Raw corpora in; a pretrained, fine-tuned and evaluated language model out."""


def _recipe_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """RECIPE [KEY=VALUE]…, as every command takes them."""
    function = click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")(function)
    return click.argument("typed", metavar="RECIPE")(function)


def _dry_run(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--dry-run", is_flag=True, help="Show what would be done and why; do nothing.")(function)


def _load(typed: str, words: Sequence[str]) -> Recipe:
    if "=" in typed:
        raise RecipeError(
            f"'{typed}' stands where the recipe should; the recipe comes first: pipeline run demo {typed}"
        )
    for word in words:
        if word.startswith("-"):
            raise RecipeError(f"'{word}': settings are written key=value, with no dashes")
    return load_recipe(typed, words)


@command.command()
@_recipe_words
@_dry_run
def run(typed: str, words: tuple[str, ...], dry_run: bool) -> None:
    """All stages in order; what is done already is skipped."""
    recipe = _load(typed, words)
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


for _name, _doc in {
    "shard": "Corpora to text tars: clean, deduplicate, hold some out.",
    "tokenizer": "Text tars to a tokenizer: byte-level BPE.",
    "tokenize": "Text tars to token tars.",
    "pretrain": "Token tars to checkpoints. Without a launcher it starts its own ranks; under srun, torchrun or "
    "deepspeed each task is a rank.",
    "export": "The trained model to a Hugging Face directory, logits compared.",
}.items():
    _stage_command(_name, _doc)


@command.command()
@_recipe_words
@click.option("--task", help="Only this fine-tuning task of the recipe; all of them otherwise.")
@click.option("--list-tasks", is_flag=True, help="Print the recipe's tasks, one a line, for scripts.")
@_dry_run
def finetune(typed: str, words: tuple[str, ...], task: str | None, list_tasks: bool, dry_run: bool) -> None:
    """The model directory to fine-tuned ones, one a task."""
    if list_tasks:
        click.echo("".join(f"{name}\n" for name in _load(typed, words).finetune), nl=False)
        return

    def chosen(recipe: Recipe) -> tuple[str, ...]:
        if not recipe.finetune:
            raise RecipeError(f"recipe {recipe.name} has no finetune tasks; add one under `finetune:`")
        if task is not None and task not in recipe.finetune:
            raise RecipeError(f"--task {task}: the recipe's tasks are {', '.join(recipe.finetune)}")
        return tuple(f"finetune.{name}" for name in ([task] if task else recipe.finetune))

    _run_stages(typed, words, chosen, dry_run)


_stage_command("evaluate", "Numbers on held-out data, beside baselines.")


def _run_stages(typed: str, words: tuple[str, ...], chosen: Callable[[Recipe], tuple[str, ...]], dry_run: bool) -> None:
    recipe = _load(typed, words)
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


@command.command()
@click.argument("typed", metavar="RECIPE|MODEL_DIR")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--prompt", help="Text to continue; '-' reads it from standard input.")
@click.option("--prompts-file", type=click.Path(path_type=Path), help="A file of prompts, one a line.")
@click.option("--chat", is_flag=True, help="Talk with the fine-tuned model; with --prompt: one message.")
@click.option(
    "--task", help="Use this task's fine-tuned model. Default: the pretrained one; with --chat the first sft."
)
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(min=1), help="Longest answer.")
@click.option("--temperature", default=0.8, show_default=True, type=click.FloatRange(min=0), help="0: the likeliest.")
@click.option("--top-k", default=0, show_default=True, type=click.IntRange(min=0), help="0: no limit.")
@click.option(
    "--top-p", default=0.95, show_default=True, type=click.FloatRange(0, 1, min_open=True), help="1: no limit."
)
@click.option("--seed", "given_seed", type=click.IntRange(0, 2**32 - 1), help="Default: the recipe's seed, or 1234.")
def generate(
    typed: str,
    words: tuple[str, ...],
    *,
    prompt: str | None,
    prompts_file: Path | None,
    chat: bool,
    task: str | None,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    given_seed: int | None,
) -> None:
    """Text from a trained model, as it is made."""
    if prompt is None and prompts_file is None and not chat:
        raise click.UsageError("give --prompt TEXT, --prompts-file FILE or --chat", click.get_current_context())
    model, seed = _model_directory(typed, words, task, chat)
    settings: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": given_seed if given_seed is not None else seed,
    }
    if chat and prompt is None and prompts_file is None:
        from pipeline.evaluate.chat import chat as converse

        converse(model, **settings)
        return
    from pipeline.evaluate.generate import generate_command

    text = sys.stdin.read() if prompt == "-" else prompt
    generate_command(model, text, prompts_file, chat, **settings)


def _model_directory(typed: str, words: Sequence[str], task: str | None, chat: bool) -> tuple[Path, int]:
    """The model directory that is meant, and the seed to draw with."""
    if Path(typed).is_dir():
        if words or task:
            raise RecipeError(f"{typed} is a model directory: it takes no key=value words and no --task")
        return Path(typed), 1234
    recipe = _load(typed, words)
    if task is None and chat:
        task = next((name for name, settings in recipe.finetune.items() if settings.task == "sft"), None)
    if task is None:
        found, stage = recipe.workdir / "model", f"export {typed}"
    elif task in recipe.finetune:
        found, stage = recipe.workdir / "finetune" / task / "model", f"finetune {typed} --task {task}"
    else:
        raise RecipeError(f"--task {task}: the recipe's tasks are {', '.join(recipe.finetune) or '(none)'}")
    if not found.is_dir():
        raise DataError(f"{found}: no such folder; `pipeline {stage}` makes it, or `pipeline run` with all before it")
    return found, recipe.seed


@command.command()
@_recipe_words
def report(typed: str, words: tuple[str, ...]) -> None:
    """report.html, from what has been made so far."""
    from pipeline.report.build import write_report

    click.echo(write_report(_load(typed, words)))


@command.command()
def recipes() -> None:
    """The recipes that come with the package."""
    for name in shipped_recipes():
        click.echo(f"{name:<8} {load_recipe(name).description}")
    click.echo(f"\nThey lie in {SHIPPED}; copy one, or start yours with `base: demo`.")


def _show_dry_run(recipe: Recipe, names: tuple[str, ...]) -> None:
    from pipeline.dry_run import dry_run_lines

    for line in dry_run_lines(recipe, names):
        click.echo(line)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and leave with its exit status; people see a line, not a traceback, for what they can mend."""
    start_logging()
    warnings.simplefilter("ignore", FutureWarning)  # for those who maintain the libraries, not for those who train
    sys.exit(_status(arguments))


def _status(arguments: Sequence[str] | None) -> int:
    typed = sys.argv[1:] if arguments is None else list(arguments)
    try:
        command.main(typed or ["--help"], "pipeline", standalone_mode=False)
    except click.UsageError as error:
        context = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
        return _say(f"error: {_one_line(error.format_message()).rstrip('.')}{context}", UserError.status)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _say("stopped by Ctrl-C; the same command continues", INTERRUPTED)
    except Stopped as stop:
        return _say(str(stop), stop.status)
    except UserError as error:
        return _say(f"error: {_one_line(str(error))}", error.status)
    except BrokenPipeError:
        sys.stdout = None  # `pipeline recipes | head`: nobody reads any more
        return PipelineError.status
    return 0 if typed else UserError.status  # the bare command shows its help, but did nothing


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _say(line: str, status: int) -> int:
    from pipeline.cluster.ranks import read_ranks

    try:
        ranks = read_ranks()
    except UserError:
        ranks = None  # this may be the very error that is told
    other = ranks is not None and ranks.rank > 0 and ranks.launcher != "local"  # our own launch names the rank itself
    log.error("%s%s", f"[rank {ranks.rank}] " if ranks is not None and other else "", line)
    return status
