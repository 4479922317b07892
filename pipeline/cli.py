"""The `pipeline` command. Exit status: 0 done, 2 bad input, 75 stopped and resumable, 130 Ctrl-C, else a fault."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import click

from pipeline import __version__
from pipeline.config import SHIPPED, load_recipe, shipped_recipes
from pipeline.errors import PipelineError, Stopped, UserError
from pipeline.generate import generate
from pipeline.memory import collect_garbage_seldom
from pipeline.printable import one_line
from pipeline.progress import log, start_logging
from pipeline.stage_commands import IN_ORDER, recipe_words
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


for _stage in IN_ORDER:
    command.add_command(_stage)
command.add_command(generate)


@command.command()
@recipe_words
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
@recipe_words
@click.option("--comparisons", is_flag=True, help="Instead: the parallel steps of `shard` between reading and writing.")
@click.option("--token-passes", is_flag=True, help="Instead: the parallel steps of `tokenize`.")
@click.option("--stages", "commands", is_flag=True, help="Instead: the commands that `run` is made of.")
def where(typed: str, words: tuple[str, ...], *, comparisons: bool, token_passes: bool, commands: bool) -> None:
    """The folder of a recipe's run, for scripts."""
    recipe = load_typed(typed, words)
    if commands:
        from pipeline.stages import stages

        click.echo("\n".join(dict.fromkeys(name.partition(".")[0] for name in stages(recipe))))
    elif comparisons or token_passes:
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
