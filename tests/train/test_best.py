"""The best validation: which it is, when to stop waiting for a better one, and that its weights are what is left."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import ValidationError
from tiny_models import write_bert

from pipeline.cluster.ranks import ALONE
from pipeline.recipe import FinetuneTask
from pipeline.tracking import Tracker
from pipeline.train import checkpoint_files
from pipeline.train.base_model import load_base, open_tokenizer
from pipeline.train.best import best_step, has_waited_enough
from pipeline.train.classification import ClassifyTask
from pipeline.train.example import Example
from pipeline.train.examples import Examples
from pipeline.train.loop import train


@dataclass
class Asks:
    best_by: str
    patience: int = 0


def test_the_first_of_the_best_counts() -> None:
    found = {step: {"loss": loss, "accuracy": 1 - loss} for step, loss in ((2, 0.5), (4, 0.3), (6, 0.3), (8, 0.4))}
    assert best_step(Asks("loss"), found) == best_step(Asks("accuracy"), found) == 4
    assert best_step(Asks(""), found) is None and best_step(object(), found) is None
    assert best_step(Asks("loss"), {}) is None
    assert best_step(Asks("loss"), {2: {"loss": math.nan}, 4: {"loss": 9.0}}) == 4
    assert [has_waited_enough(Asks("loss", patience), found) for patience in (0, 1, 2, 3)] == [False, True, True, False]


def test_training_ends_early_and_leaves_the_best_weights(tmp_path: Path) -> None:
    """Held out are the training texts under other labels: the more is learnt, the worse it gets."""
    settings = FinetuneTask.model_validate(
        {"task": "classify", "seq_len": 32, "global_batch": 8, "micro_batch": 8, "epochs": 20, "precision": "fp32"}
        | {"validation_interval": 1, "best_by": "loss", "patience": 3, "keep_checkpoints": 1, "self_test": False}
        | {"optimizer": {"learning_rate": 0.01}, "checkpoint_steps": 1}
    )
    folder = write_bert(tmp_path / "base")
    tokenizer = open_tokenizer(folder, settings, "worse")
    texts = [Example(str(n), f"number {n}", "ab"[n % 2]) for n in range(16)]
    wrong = [Example(one.id, one.text, "ba"["ab".index(one.answer)]) for one in texts]
    examples = Examples("classify", tuple(texts), tuple(wrong))

    def task() -> ClassifyTask:
        model = load_base(folder, settings, examples.labels, tokenizer, seed=1)
        return ClassifyTask("worse", settings, model, tokenizer, examples, seed=1)

    result = train(task(), settings, tmp_path / "checkpoints", 1, ALONE, Tracker())
    best = min(result.validations, key=lambda step: result.validations[step]["loss"])
    assert result.steps == best + 3 < 40
    assert checkpoint_files.step_of(result.checkpoint) == best
    assert checkpoint_files.every(tmp_path / "checkpoints") == [
        checkpoint_files.path_of(tmp_path / "checkpoints", step) for step in (best, result.steps)
    ]
    again = train(task(), settings, tmp_path / "checkpoints", 1, ALONE, Tracker())
    assert (again.checkpoint, again.steps) == (result.checkpoint, result.steps)
    model = load_base(folder, settings, examples.labels, tokenizer, seed=1)
    model.load_state_dict(dict(checkpoint_files.weights(result.checkpoint)), strict=False)
    measured = task().validate(model.eval().requires_grad_(False), ALONE, list)
    assert measured["loss"] == pytest.approx(result.validations[best]["loss"], rel=1e-5)


def test_what_is_not_measured_is_refused() -> None:
    with pytest.raises(ValidationError, match="best_by: accuracy is not measured here; take one of loss"):
        FinetuneTask(task="sft", best_by="accuracy")
    with pytest.raises(ValidationError, match="patience needs best_by"):
        FinetuneTask(task="sft", patience=2)


def test_how_often_is_measured_matters_only_where_the_best_is_kept() -> None:
    assert "validation_interval" not in FinetuneTask(task="sft").settings()
    assert FinetuneTask(task="sft", best_by="loss", validation_interval=7).settings()["validation_interval"] == 7
