"""`--dry-run`: what would be done and why, and what would be trained, without touching anything."""

from __future__ import annotations

import json
import math
from pathlib import Path

from pipeline import manifest as manifests
from pipeline.errors import DataError, UserError
from pipeline.recipe import Recipe
from pipeline.stage_state import kept_work, status
from pipeline.stages import Stage, stages


def dry_run_lines(recipe: Recipe, only: tuple[str, ...] = ()) -> list[str]:
    """Each stage with its state and the reason, then the size of the training.

    Args: only, names of stages; empty for all.
    """
    lines = [f"{recipe.name}: seed {recipe.seed}, in {recipe.workdir}"]
    chosen = stages(recipe)
    will_run: set[str] = set()
    for name, stage in chosen.items():
        if only and name not in only:
            continue
        state, why = _planned(recipe, stage, will_run if not only else set())
        if state != "skip":
            will_run.add(name)
        lines.append(f"  {name:<20} {state:<9} {why}")
    return lines + training_lines(recipe)


def _planned(recipe: Recipe, stage: Stage, will_run: set[str]) -> tuple[str, str]:
    """What would happen to a stage: (`skip`, `continue`, `take back`, `run` or `cannot`, the reason)."""
    waits = [need for need in stage.needs if need in will_run]
    if waits:
        return "run", f"reads what {', '.join(waits)} will have made"
    try:
        found = status(recipe, stage.name)
    except UserError as error:
        return "cannot", str(error)
    if old := kept_work(recipe, found):
        return "take back", f"{old} was made from equal inputs"
    if found.state == "changed":
        return "run", f"{found.why} (what is there is kept under previous/)"
    return {"done": "skip", "continue": "continue"}.get(found.state, "run"), found.why


def training_lines(recipe: Recipe) -> list[str]:
    """Parameters, tokens, steps and sequences of the training stages."""
    lines = [""] if recipe.only_finetunes else ["", *_pretraining_lines(recipe)]
    for name, task in recipe.finetune.items():
        limit = f"at most {task.max_examples:,} examples" if task.max_examples else "all examples"
        lines.append(
            f"  {'finetune.' + name:<20} {task.task}, {limit}, {task.epochs:g} epochs, {task.global_batch} a step"
        )
    return lines


def _pretraining_lines(recipe: Recipe) -> list[str]:
    from pipeline.model.build import flops_per_token, parameter_count

    words, known = vocabulary(recipe)
    words = recipe.model.vocab_size or words
    settings = recipe.pretrain
    count = parameter_count(recipe.model, words)
    per_step = settings.global_batch * settings.seq_len
    steps = math.ceil(settings.tokens / per_step)
    flops = flops_per_token(recipe.model, words, settings.seq_len) * steps * per_step
    return [
        f"  model                {recipe.model.architecture}, {count:,} parameters ({count / 1e6:,.1f} M), "
        f"vocabulary {words:,}{'' if known else ' (at most)'}",
        f"  pretraining          {settings.tokens:,} tokens = {steps:,} steps of {settings.global_batch} sequences of "
        f"{settings.seq_len}; {flops:.2e} floating-point operations; DeepSpeed {settings.deepspeed}",
    ]


def vocabulary(recipe: Recipe) -> tuple[int, bool]:
    """Size of the vocabulary, and whether it is known already (a tokenizer is there) or only set.

    Raises: DataError when `tokenizer.path` holds no tokenizer.
    """
    try:
        return int(manifests.load(recipe.workdir / "tokenizer").counts["vocab_size"]), True
    except DataError:
        pass  # not made yet
    if recipe.tokenizer.given is None:
        return recipe.tokenizer.vocab_size, False
    path = Path(recipe.tokenizer.given) / "tokenizer.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        words = content["model"]["vocab"]  # a list in Unigram models, in the order of the ids
        ids = [*(words.values() if isinstance(words, dict) else range(len(words)))]
        ids += [token["id"] for token in content["added_tokens"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a tokenizer ({error}); set tokenizer.path to a folder that holds one") from None
    adds = recipe.tokenizer.added_tokens if recipe.tokenizer.continue_from else ()
    return max(ids) + 1 + len(adds), not adds
