"""SIGKILL in the middle of each kind of fine-tuning: started again it ends with the same bytes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import forked
import pytest
from tiny_models import write_llama, write_model

from pipeline.train.checkpoint_files import every, open_ranges, parameters_of

SHARED = (
    "ranks: 1, epochs: 1, global_batch: 8, micro_batch: 8, precision: fp32, self_test: no, checkpoint_steps: 1, "
    "validation_interval: 100"
)
RECIPE = """
name: tiny
workdir: {workdir}
tracking: {{enabled: false}}
finetune:
  classify: {{task: classify, seq_len: 32, train_files: {data}/classify.jsonl, {shared}, base: {data}/llama}}
  seq2seq: {{task: seq2seq, seq_len: 32, train_files: {data}/seq2seq.jsonl, {shared}, base: {data}/t5}}
  packed: {{task: sft, packing: yes, seq_len: 64, train_files: {data}/sft.jsonl, {shared}, base: {data}/llama}}
  lora: {{task: seq2seq, lora: {{dropout: 0.1}}, seq_len: 32, train_files: {data}/seq2seq.jsonl, {shared},
    base: {data}/t5}}
  continue: {{task: continue, data: jsonl, seq_len: 32, train_files: {data}/text.jsonl, {shared}, base: {data}/llama}}
"""
AT = 3  # the step in whose beginning the process is killed: one checkpoint is whole, the next may be half written


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_llama(folder / "llama")
    write_model(folder / "t5", "T5ForConditionalGeneration")
    rows = [
        (f"is {number} even or odd?" + " please" * (number % 5), ["even", "odd"][number % 2]) for number in range(60)
    ]
    kinds = {
        "sft": ("prompt", "completion"),
        "classify": ("text", "label"),
        "seq2seq": ("source", "target"),
        "text": ("text", "answer"),
    }
    for kind, names in kinds.items():
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def train(folder: Path, data: Path, task: str, kill_at: int | None = None) -> Path:
    """Run a task to its end, or to its death; returns its folder."""
    folder.mkdir(exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(workdir=folder / "run", data=data, shared=SHARED))
    stage = f"finetune.{task}"
    ended = forked.run(folder, forked.stages, recipe, [stage], (stage, kill_at) if kill_at is not None else None)
    assert ended.status == (0 if kill_at is None else -signal.SIGKILL), ended.said
    return folder / "run" / "finetune" / task


@pytest.mark.parametrize("task", ["classify", "seq2seq", "packed", "lora", "continue"])
def test_killed_and_started_again_it_ends_with_the_same_bytes(tmp_path: Path, data: Path, task: str) -> None:
    whole = train(tmp_path / "whole", data, task)
    cut = train(tmp_path / "cut", data, task, kill_at=AT)
    assert every(cut / "checkpoints") and not (cut / "manifest.json").exists()
    train(tmp_path / "cut", data, task)
    events = [json.loads(line)["kind"] for line in (cut / "checkpoints" / "audit.jsonl").open()]
    assert "resumed" in events
    files = ["model/model.safetensors", "examples/shown.json", "checkpoints/losses.jsonl"]
    files += ["adapter/adapter_model.safetensors"] if task == "lora" else []
    for file in files:
        assert (cut / file).read_bytes() == (whole / file).read_bytes(), file
    assert _outputs(cut) == _outputs(whole)
    if task == "lora":
        (saved,) = every(cut / "checkpoints")
        assert all("lora_" in name for name in parameters_of(open_ranges(saved)))  # no frozen weight


def _outputs(folder: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((folder / "manifest.json").read_text())["outputs"]
    return found
