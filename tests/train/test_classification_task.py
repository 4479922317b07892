"""Labelled texts as the model sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import write_bert, write_llama, write_lstm

from pipeline.cluster.ranks import ALONE
from pipeline.recipe import FinetuneTask
from pipeline.train.base_model import load_base, open_tokenizer
from pipeline.train.classification import ClassifyTask
from pipeline.train.examples import Example, Examples

SETTINGS = FinetuneTask(task="classify", seq_len=24, global_batch=4, micro_batch=2, epochs=1)
EXAMPLES = tuple(Example(str(n), f"text {n} " + "word " * (n % 9), "ab"[n % 2]) for n in range(10))


@pytest.fixture(scope="module", params=[write_llama, write_bert, write_lstm], ids=["decoder", "encoder", "lstm"])
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ClassifyTask:
    folder = request.param(tmp_path_factory.mktemp("base"))
    tokenizer = open_tokenizer(folder, SETTINGS, "kind")
    model = load_base(folder, SETTINGS, ("a", "b"), tokenizer, seed=1)
    model.eval().requires_grad_(False)
    return ClassifyTask("classify", SETTINGS, model, tokenizer, Examples("classify", EXAMPLES, EXAMPLES[:3]), seed=1)


def test_labels_are_kept_by_name(task: ClassifyTask) -> None:
    config: Any = task.model.config
    assert (config.id2label, config.label2id, config.pad_token_id) == ({0: "a", 1: "b"}, {"a": 0, "b": 1}, 1)
    assert [example.label for example in task.train] == [0, 1] * 5


def test_long_texts_are_cut_and_counted(task: ClassifyTask) -> None:
    assert max(len(example.tokens) for example in task.train) == 24
    assert task.counts["truncated"] == sum(example.cut for example in task.train) > 0


def test_loss_is_that_of_each_text_alone(task: ClassifyTask) -> None:
    expected = 0.0
    for number in task.epochs.examples(0):
        logits = task.model(input_ids=torch.from_numpy(task.train[number].tokens[None])).logits
        expected += float(F.cross_entropy(logits, torch.tensor([task.train[number].label])))
    assert float(task.loss_sum(task.model, task.batch([0, 1, 2, 3, -1]))) == pytest.approx(expected, rel=1e-5)
    assert [task.targets(step) for step in range(3)].count(4) == 2
    assert sum(task.targets(step) for step in range(3)) == 10


def test_validation_counts_right_answers(task: ClassifyTask) -> None:
    found = task.validate(task.model, ALONE, list)
    right = 0
    for example in task.validation:
        logits = task.model(input_ids=torch.from_numpy(example.tokens[None])).logits
        right += int(logits.argmax()) == example.label
    assert found["accuracy"] == pytest.approx(right / 3)


def test_new_weights_follow_the_seed(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    tokenizer = open_tokenizer(folder, SETTINGS, "kind")
    first, again, other = (load_base(folder, SETTINGS, ("a", "b"), tokenizer, seed).score.weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
