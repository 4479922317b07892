"""Packed examples: none sees another, so that loss and gradient are those of the examples one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import write_llama, write_lstm, write_model

from pipeline.errors import DataError
from pipeline.recipe import FinetuneTask
from pipeline.train.base_model import load_base, open_tokenizer
from pipeline.train.example import Example
from pipeline.train.examples import Examples
from pipeline.train.instruction import SftTask
from pipeline.train.packed_rows import check_kept_apart, pack

SETTINGS = FinetuneTask(task="sft", packing=True, seq_len=96, global_batch=2, micro_batch=2, epochs=2)
EXAMPLES = tuple(
    Example(str(n), f"add {n} and {n + 1} " + "please " * (n % 5), f"that is {2 * n + 1}") for n in range(9)
)


def make_task(folder: Path, settings: FinetuneTask = SETTINGS) -> SftTask:
    tokenizer = open_tokenizer(folder, settings, "chat")
    model = load_base(folder, settings, (), tokenizer, seed=1)
    return SftTask("sft", settings, model, tokenizer, Examples("sft", EXAMPLES, EXAMPLES[:2]), seed=1)


@pytest.mark.parametrize("kind", ["llama", "GPT2LMHeadModel", "Qwen2ForCausalLM", "MistralForCausalLM"])
def test_loss_and_gradient_are_those_of_the_examples_one_by_one(tmp_path: Path, kind: str) -> None:
    folder = write_llama(tmp_path) if kind == "llama" else write_model(tmp_path, kind)
    task = make_task(folder, SETTINGS.model_copy(update={"dropout": False}))
    assert len(task.packed) < len(EXAMPLES) and sorted(n for row in task.packed for n in row) == list(range(9))
    batch = task.batch([0, 1])
    together = task.loss_sum(task.model, batch)
    together.backward()  # type: ignore[no-untyped-call]
    packed = {name: weight.grad.clone() for name, weight in task.model.named_parameters() if weight.grad is not None}
    task.model.zero_grad()
    alone, targets = 0.0, 0
    for row in task.epochs.examples(0):
        for number in task.packed[row]:
            one = task.rows([[task.train[number]]])
            del one["places"]  # as it would be trained without packing
            loss = task.loss_sum(task.model, one)
            loss.backward()  # type: ignore[no-untyped-call]
            alone, targets = alone + float(loss.detach()), targets + task.train[number].targets
    assert float(together.detach()) == pytest.approx(alone, rel=1e-5)
    assert task.targets(0) == targets == int((batch["targets"] != -100).sum())
    for name, weight in task.model.named_parameters():
        if name in packed:
            torch.testing.assert_close(packed[name], weight.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_the_whole_epoch_is_seen_once_and_padding_is_told(tmp_path: Path) -> None:
    task = make_task(write_llama(tmp_path))
    rows = [row for step in range(task.epochs.steps) for row in task.epochs.examples(step) if row >= 0]
    assert sorted(number for row in rows for number in task.packed[row]) == list(range(9))
    held = sum(len(encoded.tokens) - 1 for encoded in task.train)
    assert task.padding == pytest.approx(1 - held / (len(task.packed) * 96))
    shown = task.shown(open_tokenizer(tmp_path, SETTINGS, "chat"), 0)
    assert shown.more["places"].count(0) == len(task.packed[0]) and shown.kept()["places"] == shown.more["places"]


def test_rows_hold_what_fits() -> None:
    lengths = np.array([5, 9, 3, 10, 1, 7], dtype=np.int64)
    rows = pack(lengths, 10)
    assert all(lengths[row].sum() <= 10 for row in rows)
    assert sorted(number for row in rows for number in row) == list(range(6))
    assert len(rows) == 4  # 35 tokens fill four rows of ten


@pytest.mark.parametrize("kind", ["lstm", "deaf"])
def test_a_model_that_does_not_keep_examples_apart_is_refused(tmp_path: Path, kind: str) -> None:
    folder = write_lstm(tmp_path) if kind == "lstm" else write_llama(tmp_path)
    tokenizer = open_tokenizer(folder, SETTINGS, "chat")
    model = load_base(folder, SETTINGS, (), tokenizer, seed=1)
    if kind == "deaf":  # takes positions, and does not heed them
        forward = model.forward

        def deaf(input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> object:
            return forward(input_ids=input_ids, use_cache=False)

        model.forward = deaf
    with pytest.raises(DataError, match=r"^mine: .*set packing: no"):
        check_kept_apart(model, "mine")
