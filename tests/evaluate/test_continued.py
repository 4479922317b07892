"""More pretraining, measured: the held-out text of the task under its base and under what came of it."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.evaluate.continued import continued
from pipeline.evaluate.evaluate import numbers_of
from pipeline.recipe import EvaluateSettings, FinetuneTask
from pipeline.train.continuation_tokens import prepare

TEXTS = [f"The river number {n} runs to the sea." for n in range(30)]


def test_both_models_are_measured_on_the_held_out_text(workdir: Path) -> None:
    rows = workdir / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    task = FinetuneTask(task="continue", data="jsonl", train_files=str(rows), validation=0.3, seq_len=32)
    folder, base = workdir / "finetune" / "answer", workdir / "model"
    index = prepare(task, "answer", workdir / "text", folder / "tokens", base)
    found = continued("answer", task, folder, base, EvaluateSettings(), "cpu")
    held_out = [shard for shard in index.shards() if shard.file.startswith("validation")]
    assert found["examples"] == sum(shard.documents for shard in held_out) > 1
    for label in ("base", "finetuned"):
        assert found[label]["tokens"] == sum(shard.tokens for shard in held_out)
        assert found[label]["bytes"] == sum(shard.text_bytes for shard in held_out)
        low, high = found["intervals"][label]["bits_per_byte"]
        assert low <= found[label]["bits_per_byte"] <= high
    assert found["base"]["loss"] != found["finetuned"]["loss"]
    assert numbers_of(found, "more")["more/finetuned/bits_per_byte"] == found["finetuned"]["bits_per_byte"]
    alike = continued("answer", task, folder, folder / "model", EvaluateSettings(), "cpu")
    assert alike["base"] == alike["finetuned"] == found["finetuned"]
