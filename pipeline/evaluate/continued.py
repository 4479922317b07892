"""What more pretraining did: a task's held-out text under its base and under the model that came of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pipeline.evaluate.confidence import interval, ratio
from pipeline.evaluate.generate import context_length
from pipeline.evaluate.held_out import held_out_tokens
from pipeline.evaluate.language_model import Cost, document_costs
from pipeline.model.directory import load_causal_model
from pipeline.progress import log, progress
from pipeline.recipe import EvaluateSettings, FinetuneTask
from pipeline.tokens.encode import Encoder


def continued(
    name: str, task: FinetuneTask, folder: Path, base: Path, settings: EvaluateSettings, device: str
) -> dict[str, Any]:
    """Loss, perplexity and bits per byte of both models on the documents that the task held out.

    Args: folder, of the task (`tokens/`, `model/`); base, the directory of its base. Memory: two numbers a document.
    Raises: DataError when a model or the tokens cannot be used.
    """
    encoder = Encoder.open(base, fast=False)
    held_out = held_out_tokens(folder / "tokens", encoder, settings.max_bytes)
    found: dict[str, Any] = {"task": "continue"}
    intervals: dict[str, Any] = {}
    for label, place in (("base", base), ("finetuned", folder / "model")):
        model, _ = load_causal_model(place, device=device)
        asked = settings.context or task.seq_len
        context = min(asked, context_length(model) or asked)
        stride = min(context, settings.stride or max(1, context // 2))
        costs: list[Cost] = []
        with progress(f"bits per byte, {label}", sum(source.to_read for source in held_out)) as bar:
            for source in held_out:
                documents = source.documents()
                costs += [
                    cost
                    for _, cost in document_costs(
                        model, encoder, documents, context=context, stride=stride, batch=settings.batch, bar=bar
                    )
                ]
        found |= {"examples": len(costs), "context": context, "stride": stride, label: sum(costs, Cost()).table()}
        if bounds := interval(ratio, [cost.nats for cost in costs], [cost.bytes for cost in costs]):
            intervals[label] = {"bits_per_byte": [bound / math.log(2) for bound in bounds]}
    after, before = (found[label]["bits_per_byte"] for label in ("finetuned", "base"))
    log.info(f"evaluate: {name}: {after:.3f} bits per byte of its held-out text (before {before:.3f})")
    return {**found, "intervals": intervals}
