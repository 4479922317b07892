"""The fine-tuning stage: a model directory and examples, or plain text, in; a model directory out.

Makes, under finetune/<task>/: `examples/` (train.jsonl, validation.jsonl, examples.json: counts; shown.json: three
examples as the model sees them) or, of task `continue`, `tokens/` (token tars) and shown.json; `checkpoints/`, `model/`
(weights, tokenizer, chat template, generation settings), and with LoRA `adapter/` (the adapters alone; model/ has them
merged).
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from pipeline.cluster.device import find_device
from pipeline.cluster.ranks import ALONE, read_ranks
from pipeline.errors import DataError, PipelineError
from pipeline.files import write_json
from pipeline.manifest import Manifest, Output, Work
from pipeline.model.hub import local_folder
from pipeline.progress import log
from pipeline.recipe import FinetuneTask, Recipe
from pipeline.tokens.data import TokenData
from pipeline.tokens.token_tars import INDEX, MEMBERS
from pipeline.tracking import Tracker
from pipeline.train import base_model, checkpoint_files, continuation_tokens, lora
from pipeline.train.classification import ClassifyTask
from pipeline.train.collective import manifest_of_rank_0
from pipeline.train.continuation import ContinueTask
from pipeline.train.example import Form
from pipeline.train.examples import SUMMARY, Examples, prepare, read
from pipeline.train.instruction import SftTask
from pipeline.train.loop import train
from pipeline.train.sequence_to_sequence import Seq2SeqTask
from pipeline.train.shown import Shown
from pipeline.train.speed import peak_memory

SHOWN = 3  # examples that are printed and kept as the model sees them
PATIENCE = 3600.0  # seconds that a rank waits for rank 0 to make the examples

Tuning = SftTask | ClassifyTask | Seq2SeqTask | ContinueTask


def run(recipe: Recipe, work: Work, tracker: Tracker) -> Manifest:
    """Fine-tune one task, or continue to. Every rank calls it; rank 0 writes.

    Raises: DataError for a base model or examples that cannot be used; as `loop.train`.
    """
    ranks = read_ranks() or ALONE
    name = work.stage.partition(".")[2]
    settings = recipe.task(name)
    base = local_folder(settings.base) if settings.base else recipe.workdir / "model"
    tokenizer = base_model.open_tokenizer(base, settings, name)
    data = _data(settings, name, recipe.workdir / "text", work.folder, base, tokenizer, ranks.first)
    labels = data.labels if isinstance(data, Examples) else ()
    model, _ = _model(base, settings, labels, tokenizer, recipe.seed)
    task = _task(work.stage, settings, model, tokenizer, data, recipe.seed)
    counts = {**_counts(data), **task.counts, "steps": task.steps}
    shown = work.folder / "examples" / "shown.json"
    if ranks.first:
        rows = len(task.packed) if isinstance(task, SftTask) else len(task.train)
        samples = [task.shown(tokenizer, number) for number in range(min(SHOWN, rows))]
        write_json(shown, [sample.kept() for sample in samples])
        _tell(work.stage, data, task, samples)
    tracker.log_params({"base": str(base), "train_examples": len(task.train), "steps": task.steps})
    learnt, parameters = lora.trainable(model)
    resolved = recipe.model_dump(mode="json", exclude={"tracking"})  # that may hold a password
    result = train(task, settings, work.folder / "checkpoints", recipe.seed, ranks, tracker, work.fence, resolved)
    peak = peak_memory(find_device(ranks).kind)  # before the model is loaded again
    if ranks.first:
        log.info(
            f"{work.stage}: {learnt:,} of {parameters:,} weights are learnt ({learnt / parameters:.2%}), "
            f"{result.metrics.get('step_seconds', math.nan):.3f} s a step, {peak / 2**20:,.0f} MiB a rank at the most"
        )
    if not ranks.first:
        return manifest_of_rank_0(work)
    work.fence.check()
    model, adapted = _model(base, settings, labels, tokenizer, recipe.seed)
    base_model.fill(model, checkpoint_files.weights(result.checkpoint))
    merging: dict[str, float] = {}
    outputs = []
    if adapted is not None:
        outputs += lora.save_adapter(work.folder / "adapter", adapted)
        model, merging["merged_difference"] = lora.merge(adapted, task.model_inputs())
    outputs += base_model.save_model(
        work.folder / "model",
        model,
        tokenizer,
        task.end_token(),
        task.model_inputs(),
        base if settings.trust_remote_code and any(base.glob("*.py")) else None,
    )
    kept = checkpoint_files.step_of(result.checkpoint)
    checkpoint_files.prune(work.folder / "checkpoints", keep=1, keep_every=settings.keep_every, best=kept)
    validation = result.validations[kept]
    return work.finish(
        [*outputs, *_files(data, work.folder), shown],
        counts={
            **counts,
            "steps_done": result.steps,
            "best_step": kept,
            "parameters": parameters,
            "trainable_parameters": learnt,
            "skipped_steps": len(result.happened["skipped_steps"]),
        },
        metrics={
            "loss": next((loss for loss in reversed(result.losses) if math.isfinite(loss)), math.nan),
            **{f"validation/{key}": value for key, value in validation.items()},
            **result.metrics,
            "peak_memory_bytes": peak,
            **merging,
        },
    )


def _model(base: Path, settings: FinetuneTask, labels: tuple[str, ...], tokenizer: Any, seed: int) -> tuple[Any, Any]:
    """The base as it is trained, and the `peft.PeftModel` around it; None for the latter without LoRA."""
    model = base_model.load_base(base, settings, labels, tokenizer, seed)
    adapted = lora.adapt(model, settings.lora, settings, seed) if settings.lora else None
    return model, adapted


def _data(
    settings: FinetuneTask, name: str, text: Path, folder: Path, base: Path, tokenizer: Any, first: bool
) -> Examples | TokenData:
    """What is learnt from: made by rank 0, read by all."""
    if settings.task == "continue":
        if first:
            continuation_tokens.prepare(settings, name, text, folder / "tokens", base)
        else:
            _wait_for(folder / "tokens" / INDEX)
        return TokenData.open(folder / "tokens")
    examples = folder / "examples"
    if first:
        return prepare(settings, name, text, examples, special_words(tokenizer))
    _wait_for(examples / SUMMARY)
    return read(examples, Form(Form.of(settings).kind, settings.problem))


def _task(
    name: str, settings: FinetuneTask, model: Any, tokenizer: Any, data: Examples | TokenData, seed: int
) -> Tuning:
    if isinstance(data, TokenData):
        return ContinueTask(name, settings, model, data, seed)
    kind: type[SftTask | ClassifyTask | Seq2SeqTask] = SftTask
    if settings.task == "classify":
        kind = ClassifyTask
    elif model.config.is_encoder_decoder:
        kind = Seq2SeqTask
    if settings.packing and kind is not SftTask:
        raise DataError(f"{name}: packing is for decoders, and its base is an encoder–decoder; set packing: no")
    return kind(name, settings, model, tokenizer, data, seed)


def _counts(data: Examples | TokenData) -> dict[str, Any]:
    """For the manifest: of examples, or of documents."""
    if isinstance(data, Examples):
        return data.counts()
    return {"train": data.documents("train"), "validation": data.documents("validation")}


def _files(data: Examples | TokenData, folder: Path) -> list[Path | Output]:
    """What was made to learn from."""
    if isinstance(data, Examples):
        return [folder / "examples" / file for file in ("train.jsonl", "validation.jsonl", SUMMARY)]
    tars = [Output(f"tokens/{shard.file}", shard.bytes, shard.sha256) for shard in data.index.shards()]
    return [folder / "tokens" / INDEX, folder / "tokens" / MEMBERS, *tars]


def special_words(tokenizer: object) -> list[str]:
    """Words that a tokenizer reads as control tokens wherever they stand in a text."""
    found = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted({token.content for token in found.values() if token.special})


def _wait_for(file: Path) -> None:
    """Until rank 0 has made it. Waits by looking: ranks are connected only once training starts."""
    deadline = time.monotonic() + PATIENCE
    while not file.is_file():
        if time.monotonic() > deadline:
            raise PipelineError(f"{file.parent}: rank 0 has not made this within {PATIENCE:.0f} s")
        time.sleep(0.1)


def _tell(stage: str, data: Examples | TokenData, task: Tuning, shown: list[Shown]) -> None:
    """What is learnt from, before hours are spent on it."""
    kind = "examples" if isinstance(data, Examples) else f"windows of {task.seq_len:,} tokens"
    log.info(
        f"{stage}: {len(task.train):,} {kind} to learn, {len(task.validation):,} held out, "
        f"{task.counts['tokens']:,} tokens, {task.counts['truncated']:,} cut, {task.steps:,} steps"
    )
    if isinstance(task, SftTask) and task.packs:
        log.info(
            f"{stage}: packed into {len(task.packed):,} rows of at most {task.seq_len:,} tokens; "
            f"{task.padding:.1%} of their places are padding"
        )
    if isinstance(data, Examples):
        if data.skipped:
            left_out = ", ".join(f"{count:,} {reason}" for reason, count in data.skipped.items())
            log.info(f"{stage}: left out: {left_out}")
        if data.labels:
            classes = data.counts()["classes"]
            log.info(f"{stage}: classes: " + ", ".join(f"{label} {count:,}" for label, count in classes.items()))
    for sample in shown:
        for line in sample.lines():
            log.info(f"{stage}: {line}")
