"""`pipeline generate`: what is asked for on the command line, and of which model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.errors import DataError, RecipeError
from pipeline.typed import load_typed, typed_again

EXAMPLES = """
\b
Examples:
  pipeline generate demo --prompt "def "                     continue a text, printed as it is made
  pipeline generate demo --chat                              a conversation with the fine-tuned model
  pipeline generate path/to/model --prompt "Once" --temperature 0
                                                             any Hugging Face model directory; greedy
  pipeline generate demo --prompts-file p.txt --json > out.jsonl
                                                             a file of prompts, in batches
  pipeline generate path/to/t5 --prompt "A text" --beams 4   beam search
"""


@click.command(epilog=EXAMPLES)
@click.argument("typed", metavar="RECIPE|MODEL_DIR")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--prompt", help="Text to continue; '-' reads it from standard input.")
@click.option("--prompts-file", type=click.Path(path_type=Path), help="One prompt a line; .jsonl: `prompt`.")
@click.option("--chat", is_flag=True, help="Talk with the fine-tuned model; with --prompt: one message.")
@click.option(
    "--task", help="Use this task's fine-tuned model. Default: the pretrained one; with --chat the first sft."
)
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(min=1), help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(min=0), help="0: the likeliest. Default: 0.8.")
@click.option("--top-k", default=0, show_default=True, type=click.IntRange(min=0), help="0: no limit.")
@click.option(
    "--top-p", default=0.95, show_default=True, type=click.FloatRange(0, 1, min_open=True), help="1: no limit."
)
@click.option(
    "--beams", default=1, show_default=True, type=click.IntRange(min=1), help="Beam search, in place of drawing."
)
@click.option("--stop", multiple=True, help="End the text before this string; may be given again.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(min=1), help="Prompts worked on at once.")
@click.option("--json", "as_json", is_flag=True, help="A JSON line for each prompt: prompt, text, tokens, ended.")
@click.option("--seed", "given_seed", type=click.IntRange(0, 2**32 - 1), help="Default: the recipe's seed, or 1234.")
def generate(
    typed: str,
    words: tuple[str, ...],
    *,
    prompt: str | None,
    prompts_file: Path | None,
    chat: bool,
    task: str | None,
    given_seed: int | None,
    as_json: bool,
    temperature: float | None,
    **settings: Any,
) -> None:
    """Text from a trained model, as it is made."""
    if prompt is None and prompts_file is None and not chat:
        raise click.UsageError("give --prompt TEXT, --prompts-file FILE or --chat", click.get_current_context())
    if temperature and settings["beams"] > 1:
        raise click.UsageError("--beams draws nothing; leave --temperature out", click.get_current_context())
    model, seed = _model_directory(typed, words, task, chat)
    settings["temperature"] = 0.8 if temperature is None else temperature
    settings["seed"] = seed if given_seed is None else given_seed
    if chat and prompt is None and prompts_file is None:
        if as_json or settings["beams"] > 1:
            raise click.UsageError("--json and --beams need --prompt or --prompts-file", click.get_current_context())
        from pipeline.evaluate.chat import chat as converse

        converse(model, **settings)
        return
    from pipeline.evaluate.generate_command import generate_command

    text = sys.stdin.read() if prompt == "-" else prompt
    generate_command(model, text, prompts_file, chat, as_json, **settings)


def _model_directory(typed: str, words: Sequence[str], task: str | None, chat: bool) -> tuple[Path, int]:
    """The model directory that is meant, and the seed to draw with."""
    if Path(typed).is_dir():
        if words or task:
            raise RecipeError(f"{typed} is a model directory: it takes no key=value words and no --task")
        return Path(typed), 1234
    if "=" not in typed and "/" in typed and not Path(typed).exists():
        raise DataError(f"{typed}: no such recipe, and no such folder with a model")
    recipe = load_typed(typed, words)
    run = typed_again(typed, words)
    if task is None and chat:
        task = next((name for name, settings in recipe.finetune.items() if settings.task == "sft"), None)
    if task is None:
        found, stage = recipe.workdir / "model", f"export {run}"
    elif task in recipe.finetune:
        found, stage = recipe.workdir / "finetune" / task / "model", f"finetune {run} --task {task}"
    else:
        raise RecipeError(f"--task {task}: the recipe's tasks are {', '.join(recipe.finetune) or '(none)'}")
    if not found.is_dir():
        raise DataError(f"{found}: no such folder; `pipeline {stage}` makes it, or `pipeline run` with all before it")
    return found, recipe.seed
