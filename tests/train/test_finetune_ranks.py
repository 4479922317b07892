"""Fine-tuning on two ranks: the losses of one."""

from __future__ import annotations

import json
from pathlib import Path

import forked
import pytest
from tiny_models import write_llama

RECIPE = """
name: tiny
workdir: {folder}/run
tracking: {{enabled: false}}
finetune:
  packed: {{task: sft, packing: yes, seq_len: 64, train_files: {data}/sft.jsonl, {shared}}}
  continue: {{task: continue, data: jsonl, seq_len: 32, train_files: {data}/text.jsonl, {shared}}}
"""
SHARED = (
    "base: {data}/llama, epochs: 2, global_batch: 6, micro_batch: 2, precision: fp32, self_test: no, "
    "validation_interval: 4, optimizer: {{learning_rate: 0.01}}"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_llama(folder / "llama")
    rows = [
        {"prompt": f"is {number} even?" + " please" * (number % 5), "completion": ["yes", "no"][number % 2]}
        for number in range(61)
    ]
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": row["prompt"]}) + "\n" for row in rows))
    return folder


def records(folder: Path) -> tuple[list[float], list[dict[str, float]]]:
    """The loss of every step, and what was validated."""
    lines = [json.loads(line) for line in (folder / "checkpoints" / "losses.jsonl").open()]
    return [one["loss"] for one in lines if "loss" in one], [one["validation"] for one in lines if "validation" in one]


@pytest.mark.parametrize("task", ["packed", "continue"])
def test_two_ranks_have_the_losses_of_one(tmp_path: Path, data: Path, task: str) -> None:
    """A global batch of 6 rows: on one rank three times two, on two ranks a last share that is half padding."""
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        recipe = folder / "recipe.yaml"
        recipe.write_text(RECIPE.format(folder=folder, data=data, shared=SHARED.format(data=data)))
        done = forked.run(folder, forked.stages, recipe, [f"finetune.{task}"], ranks=ranks)
        assert done.status == 0, done.said
        found.append(folder / "run" / "finetune" / task)
    (losses, validations), (on_two, validated) = map(records, found)
    assert len(losses) > 4 and losses[-1] < losses[0]
    assert on_two == pytest.approx(losses, rel=1e-4)
    assert len(validated) == len(validations) > 1
    for one, two in zip(validations, validated, strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    counts = [json.loads((folder / "manifest.json").read_text())["counts"] for folder in found]
    assert counts[0] == counts[1]
