"""Classification: scikit-learn's own numbers, the baseline by hand, predictions in the right order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from pipeline.errors import DataError
from pipeline.evaluate.classification import classification_metrics, predict
from pipeline.model.directory import load_model, load_tokenizer
from pipeline.progress import Progress

ACTUAL = ["a", "a", "b", "c", "c", "c"]
PREDICTED = ["a", "b", "b", "c", "a", "c"]


def test_numbers_are_scikit_learns() -> None:
    found = classification_metrics(ACTUAL, PREDICTED, ["a", "b", "c", "d"], ["b", "b", "a", "c"])
    assert found["accuracy"] == accuracy_score(ACTUAL, PREDICTED)
    assert found["macro_f1"] == f1_score(ACTUAL, PREDICTED, average="macro")
    assert found["examples"] == 6
    assert found["per_class"]["c"] == {"precision": 1.0, "recall": 2 / 3, "f1": pytest.approx(0.8), "support": 3}
    assert found["per_class"]["d"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def test_confusion_has_actual_labels_as_rows() -> None:
    found = classification_metrics(ACTUAL, PREDICTED, ["a", "b", "c"], ["a"])
    assert found["labels"] == ["a", "b", "c"]
    assert found["confusion"] == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]


def test_majority_is_that_of_the_training_labels() -> None:
    # c is the commonest held-out label (3 of 6), but b is that of training: always b is right once in six.
    found = classification_metrics(ACTUAL, PREDICTED, ["a", "b", "c"], ["b", "b", "a", "c"])
    assert found["majority_label"] == "b"
    assert found["majority_accuracy"] == pytest.approx(1 / 6)
    tied = classification_metrics(ACTUAL, PREDICTED, ["a", "b", "c"], ["c", "b", "c", "b"])
    assert tied["majority_label"] == "b"


def test_unknown_held_out_label_is_named() -> None:
    with pytest.raises(DataError, match=r"'z' is not one of the model's \(a, b\)"):
        classification_metrics(["a", "z"], ["a", "a"], ["a", "b"], ["a"])


def test_predictions_come_back_in_order_whatever_the_batch(run_folder: Path) -> None:
    folder = run_folder / "finetune" / "topic" / "model"
    model = load_model(folder, "AutoModelForSequenceClassification")
    tokenizer = load_tokenizer(folder)
    texts = ["river " * n + str(n) for n in (5, 1, 9, 3, 0, 7)]
    bar = Progress("test", 0, " texts")
    expected = []
    for text in texts:  # one by one, by hand: no padding anywhere
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:12]
        with torch.inference_mode():
            expected.append(model.config.id2label[int(model(torch.tensor([ids])).logits.argmax())])
    assert len(set(expected)) > 1
    for batch in (1, 4, 6):
        assert predict(model, tokenizer, texts, seq_len=12, batch=batch, bar=bar) == expected
    assert bar.done == 18
