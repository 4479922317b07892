"""Classification: scikit-learn's own numbers, the baseline by hand, predictions in the right order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

from pipeline.errors import DataError
from pipeline.evaluate.classification import (
    Probabilities,
    by_group,
    calibration,
    classification_metrics,
    macro_f1,
    macro_f1_of_resamples,
    predict,
)
from pipeline.evaluate.labels_and_numbers import number_metrics, several_labels_metrics
from pipeline.model.directory import load_model, load_tokenizer
from pipeline.progress import Progress

ACTUAL = ["a", "a", "b", "c", "c", "c"]
PREDICTED = ["a", "b", "b", "c", "a", "c"]


PROBABILITIES = np.array(
    [[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.5, 0.1, 0.4], [0.05, 0.05, 0.9]]
)
TRUE = np.array([0, 0, 1, 2, 2, 2])


def certain(predicted: list[str], labels: str) -> Probabilities:
    """Probabilities of a model that is sure of its answers."""
    return np.array([[float(label == answer) for label in labels] for answer in predicted])


def test_numbers_are_scikit_learns() -> None:
    found = classification_metrics(ACTUAL, certain(PREDICTED, "abcd"), list("abcd"), ["b", "b", "a", "c"])
    assert found["accuracy"] == accuracy_score(ACTUAL, PREDICTED)
    assert found["macro_f1"] == f1_score(ACTUAL, PREDICTED, average="macro")
    assert found["micro_f1"] == f1_score(ACTUAL, PREDICTED, average="micro")
    assert found["macro_precision"] == precision_score(ACTUAL, PREDICTED, average="macro")
    assert found["macro_recall"] == recall_score(ACTUAL, PREDICTED, average="macro")
    assert found["examples"] == 6
    assert found["per_class"]["c"] == {"precision": 1.0, "recall": 2 / 3, "f1": pytest.approx(0.8), "support": 3}
    assert found["per_class"]["d"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert "auc" not in found  # d never occurs


def test_macro_f1_of_many_resamples_is_scikit_learns_of_each() -> None:
    random = np.random.default_rng(1)
    for labels, examples in ((1, 3), (2, 5), (7, 40)):
        true, chosen = random.integers(0, labels, (2, 2, 20, examples))
        found = macro_f1_of_resamples(true, chosen)
        assert found.shape == (2, 20)
        for place in np.ndindex(2, 20):
            assert found[place] == pytest.approx(macro_f1(true[place], chosen[place]), rel=1e-12)
        assert macro_f1_of_resamples(true[0, 0], chosen)[1, 3] == pytest.approx(macro_f1(true[0, 0], chosen[1, 3]))
    assert macro_f1_of_resamples(TRUE, PROBABILITIES.argmax(-1)) == pytest.approx(macro_f1(ACTUAL, PREDICTED))


def test_area_under_the_curve_is_scikit_learns() -> None:
    found = classification_metrics(ACTUAL, PROBABILITIES, list("abc"), ["a"])
    assert found["auc"] == roc_auc_score(TRUE, PROBABILITIES, multi_class="ovr")
    two = classification_metrics(["n", "y", "n", "y"], TWO, ["n", "y"], ["n"])
    assert two["auc"] == 0.75  # of the four pairs of a y and an n, the y has the higher probability in three


TWO = np.array([[0.9, 0.1], [0.2, 0.8], [0.55, 0.45], [0.6, 0.4]])


def test_calibration_by_hand() -> None:
    # Confidences 0.7 right, 0.6 wrong, 0.8 right, 0.6 right, 0.5 wrong, 0.9 right; an edge belongs to the bin below:
    # (0.4, 0.5] 0.5 and 0 of 1 right, (0.5, 0.6] 0.6 and 1 of 2, (0.6, 0.7] 0.7 and 1 of 1, then 0.8 and 0.9, right.
    found = calibration(TRUE, PROBABILITIES)
    assert [row["examples"] for row in found["calibration"]] == [1, 2, 1, 1, 1]
    assert [row["accuracy"] for row in found["calibration"]] == [0, 0.5, 1, 1, 1]
    assert [row["confidence"] for row in found["calibration"]] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert found["ece"] == pytest.approx((0.5 + 2 * 0.1 + 0.3 + 0.2 + 0.1) / 6)


def test_groups_and_the_largest_gap() -> None:
    found = by_group(ACTUAL, PREDICTED, ["x", "x", "y", "y", "y", "z"])
    assert found["groups"]["x"]["accuracy"] == 0.5
    assert found["groups"]["y"]["accuracy"] == pytest.approx(2 / 3)
    assert found["groups"]["z"] == {"examples": 1, "accuracy": 1.0, "macro_f1": 1.0}
    assert found["largest_gap"] == {"best": "z", "worst": "x", "accuracy": 0.5}


def test_confusion_has_actual_labels_as_rows() -> None:
    found = classification_metrics(ACTUAL, certain(PREDICTED, "abc"), ["a", "b", "c"], ["a"])
    assert found["labels"] == ["a", "b", "c"]
    assert found["confusion"] == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]


def test_majority_is_that_of_the_training_labels() -> None:
    # c is the commonest held-out label (3 of 6), but b is that of training: always b is right once in six.
    predicted = certain(PREDICTED, "abc")
    found = classification_metrics(ACTUAL, predicted, ["a", "b", "c"], ["b", "b", "a", "c"])
    assert found["majority_label"] == "b"
    assert found["majority_accuracy"] == pytest.approx(1 / 6)
    tied = classification_metrics(ACTUAL, predicted, ["a", "b", "c"], ["c", "b", "c", "b"])
    assert tied["majority_label"] == "b"


def test_several_labels_are_scikit_learns() -> None:
    probabilities = np.array([[0.9, 0.6], [0.2, 0.7], [0.8, 0.1], [0.4, 0.3]])
    found = several_labels_metrics(['["a"]', '["b"]', '["a"]', "[]"], probabilities, ["a", "b"])
    true, given = np.array([[1, 0], [0, 1], [1, 0], [0, 0]]), np.array([[1, 1], [0, 1], [1, 0], [0, 0]])
    assert (found["accuracy"], found["none_accuracy"]) == (0.75, 0.25)
    assert found["micro_f1"] == f1_score(true, given, average="micro")
    assert found["macro_f1"] == f1_score(true, given, average="macro")
    assert found["auc"] == roc_auc_score(true, probabilities)
    assert found["per_label"]["b"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1.0}
    with pytest.raises(DataError, match="'c' is not one of"):
        several_labels_metrics(['["c"]'], probabilities[:1], ["a", "b"])


def test_numbers_by_hand() -> None:
    found = number_metrics(["1.0", "2.0", "4.0"], np.array([[1.0], [3.0], [3.0]]), ["0.0", "2.0"])
    assert found["rmse"] == pytest.approx((2 / 3) ** 0.5)
    assert found["mae"] == pytest.approx(2 / 3)
    assert found["mean_rmse"] == pytest.approx((10 / 3) ** 0.5)  # always 1.0: 0, 1 and 9
    assert found["spearman"] == pytest.approx(0.866, abs=1e-3)
    assert "pearson" not in number_metrics(["1.0"], np.array([[1.0]]), ["1.0"])


def test_unknown_held_out_label_is_named() -> None:
    with pytest.raises(DataError, match=r"'z' is not one of the model's \(a, b\)"):
        classification_metrics(["a", "z"], certain(["a", "a"], "ab"), ["a", "b"], ["a"])


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
            expected.append(model(torch.tensor([ids])).logits[0].softmax(-1).tolist())
    assert len({max(range(3), key=row.__getitem__) for row in expected}) > 1
    for batch in (1, 4, 6):
        assert predict(model, tokenizer, texts, seq_len=12, batch=batch, bar=bar) == pytest.approx(
            np.array(expected), abs=1e-5
        )
    assert bar.done == 18
