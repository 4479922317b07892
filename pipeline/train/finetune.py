"""The fine-tuning stage: a model directory and examples in, a model directory out.

Makes, under finetune/<task>/: `examples/` (train.jsonl, validation.jsonl, examples.json: counts; shown.json: three
examples as the model sees them), `checkpoints/`, `model/` (weights, tokenizer, chat template, generation settings).
"""

from __future__ import annotations

import time
from pathlib import Path

from pipeline.cluster.ranks import ALONE, read_ranks
from pipeline.errors import PipelineError
from pipeline.files import write_json
from pipeline.manifest import Manifest, Work
from pipeline.progress import log
from pipeline.recipe import FinetuneTask, Recipe
from pipeline.tracking import Tracker
from pipeline.train import base_model, checkpoints
from pipeline.train.classification import ClassifyTask
from pipeline.train.collective import manifest_of_rank_0
from pipeline.train.examples import SUMMARY, Examples, prepare, read
from pipeline.train.instruction import SftTask
from pipeline.train.loop import train

SHOWN = 3  # examples that are printed and kept as the model sees them
SHOWN_CHARACTERS = 600
PATIENCE = 3600.0  # seconds that a rank waits for rank 0 to make the examples


def run(recipe: Recipe, work: Work, tracker: Tracker) -> Manifest:
    """Fine-tune one task, or continue to. Every rank calls it; rank 0 writes.

    Raises: DataError for a base model or examples that cannot be used; as `loop.train`.
    """
    ranks = read_ranks() or ALONE
    name = work.stage.partition(".")[2]
    settings = recipe.finetune[name]
    base = Path(settings.base) if settings.base else recipe.workdir / "model"
    tokenizer = base_model.open_tokenizer(base, settings, name)
    folder = work.folder / "examples"
    if ranks.first:
        examples = prepare(settings, name, recipe.workdir / "text", folder, special_words(tokenizer))
    else:
        examples = _examples_of_rank_0(folder, settings)
    model = base_model.load_base(base, settings, examples.labels, tokenizer, recipe.seed)
    task = (SftTask if settings.task == "sft" else ClassifyTask)(
        work.stage, settings, model, tokenizer, examples, recipe.seed
    )
    counts = {**examples.counts(), **task.counts, "steps": task.steps}
    if ranks.first:
        shown = [task.shown(tokenizer, number) for number in range(min(SHOWN, len(task.train)))]
        write_json(folder / "shown.json", shown)
        _tell(work.stage, examples, task, shown)
    tracker.log_params({"base": str(base), "train_examples": len(task.train), "steps": task.steps})
    result = train(task, settings, work.folder / "checkpoints", recipe.seed, ranks, tracker)
    if not ranks.first:
        return manifest_of_rank_0(work)
    outputs = base_model.save_model(
        work.folder / "model",
        base_model.load_base(base, settings, examples.labels, tokenizer, recipe.seed),
        checkpoints.consolidated_weights(result.checkpoint),
        tokenizer,
        task.end_token(),
        task.model_inputs(),
    )
    checkpoints.prune(work.folder / "checkpoints", keep=1)
    validation = result.validations[result.steps]
    return work.finish(
        [*outputs, *(folder / file for file in ("train.jsonl", "validation.jsonl", SUMMARY, "shown.json"))],
        counts=counts,
        metrics={
            "loss": result.losses[-1],
            **{f"validation/{key}": value for key, value in validation.items()},
            **result.metrics,
        },
    )


def special_words(tokenizer: object) -> list[str]:
    """Words that a tokenizer reads as control tokens wherever they stand in a text."""
    found = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted({token.content for token in found.values() if token.special})


def _examples_of_rank_0(folder: Path, settings: FinetuneTask) -> Examples:
    """Waits by looking: ranks are connected only once training starts."""
    deadline = time.monotonic() + PATIENCE
    while not (folder / SUMMARY).is_file():
        if time.monotonic() > deadline:
            raise PipelineError(f"{folder}: rank 0 has not made the examples within {PATIENCE:.0f} s")
        time.sleep(0.1)
    return read(folder, settings.task)


def _tell(stage: str, examples: Examples, task: SftTask | ClassifyTask, shown: list[str]) -> None:
    """What is learnt from, before hours are spent on it."""
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in examples.skipped.items())
    log.info(
        f"{stage}: {len(task.train):,} examples to learn, {len(task.validation):,} held out, "
        f"{task.counts['tokens']:,} tokens, {task.counts['truncated']:,} cut, {task.steps:,} steps"
    )
    if left_out:
        log.info(f"{stage}: left out: {left_out}")
    if examples.kind == "classify":
        classes = examples.counts()["classes"]
        log.info(f"{stage}: classes: " + ", ".join(f"{label} {count:,}" for label, count in classes.items()))
    for text in shown:
        short = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS // 2] + " … " + text[-200:]
        log.info(f"{stage}: as the model sees it: {short!r}")
