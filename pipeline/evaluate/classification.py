"""How often a text classifier is right, beside what always answering the commonest training label would reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.errors import DataError
from pipeline.evaluate.confidence import interval, mean
from pipeline.progress import Progress
from pipeline.train.classification import texts_of

Probabilities = NDArray[np.float64]  # (texts, labels), each row sums to 1
BINS = 10  # of confidence, equally wide
AVERAGES = ("macro", "micro")


@torch.inference_mode()
def predict(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    seq_len: int,
    batch: int,
    bar: Progress,
    pairs: Sequence[str] = (),
    problem: str = "single_label",
) -> Probabilities:
    """The probability that the model gives to each label, in the order of its config's id2label; of several labels at
    once each has its own, for regression it is the number itself.

    Args: model and tokenizer, of a Hugging Face sequence classification directory; texts; pairs, the second texts of
    pairs; seq_len, tokens after which a text is cut, as in training; batch, texts at once; bar, advanced by texts.
    """
    device = next(model.parameters()).device
    both = list(zip(texts, pairs or [""] * len(texts), strict=True))
    order = sorted(range(len(both)), key=lambda index: len("".join(both[index])))  # alike lengths: little padding
    found = np.zeros((len(texts), int(model.config.num_labels)))  # type: ignore[union-attr, arg-type]
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        encoded = tokenizer(
            *texts_of(tokenizer, [both[index] for index in chosen]),
            truncation=True,
            max_length=seq_len,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        names = ("input_ids", "attention_mask", *(("token_type_ids",) if pairs and "token_type_ids" in encoded else ()))
        logits = model(**{name: encoded[name].to(device) for name in names}).logits.double()
        if problem != "regression":
            logits = logits.softmax(-1) if problem == "single_label" else logits.sigmoid()
        found[chosen] = logits.cpu().numpy()
        bar.advance(len(chosen))
    return found


def classification_metrics(
    actual: Sequence[str], probabilities: Probabilities, labels: Sequence[str], training: Sequence[str]
) -> dict[str, Any]:
    """scikit-learn's measures of single-label classification.

    Args: actual, labels of the held-out texts; probabilities (texts, labels), of the model; labels, the model's, in
    its order; training, the labels of the training texts.
    Returns: accuracy; macro_ and micro_ precision, recall and f1 (over all labels that occur or are predicted; a label
    never predicted has F1 0); auc (area under the ROC curve; one label against the rest and their mean where there are
    more than two), where it is defined: every label occurs; ece and calibration (`calibration`); intervals of accuracy,
    macro_f1 and ece; majority_accuracy and majority_label (always answering the commonest training label; the first
    in order of names where two are as common), labels, confusion (rows: actual, columns: predicted, in the order of
    labels), per_class.
    Raises: DataError for a held-out label that the model does not know.
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    if unknown := sorted(set(actual) - set(labels)):
        raise DataError(
            f"held-out label '{unknown[0]}' is not one of the model's ({', '.join(labels)}); hold out only examples "
            "whose label is in the training examples"
        )
    numbers = {label: number for number, label in enumerate(labels)}
    true = np.array([numbers[label] for label in actual])
    chosen = probabilities.argmax(-1)
    majority = DummyClassifier(strategy="most_frequent").fit([[0]] * len(training), list(training))
    constant = majority.predict([[0]] * len(actual))
    columns = precision_recall_fscore_support(true, chosen, labels=range(len(labels)), zero_division=0)
    names = ("precision", "recall", "f1", "support")
    found: dict[str, Any] = {"examples": len(actual), "accuracy": float(accuracy_score(true, chosen))}
    for average in AVERAGES:
        means = precision_recall_fscore_support(true, chosen, average=average, zero_division=0)
        found |= {f"{average}_{name}": float(value) for name, value in zip(names[:3], means, strict=False)}
    if (auc := _auc(true, probabilities)) is not None:
        found["auc"] = auc
    found |= calibration(true, probabilities)
    sure = {
        "accuracy": interval(mean, true == chosen),
        "macro_f1": interval(macro_f1_of_resamples, true, chosen),
    }
    return {
        **found,
        "intervals": {name: bounds for name, bounds in sure.items() if bounds},
        "majority_accuracy": float(accuracy_score(actual, constant)),
        "majority_label": str(constant[0]),
        "labels": list(labels),
        "confusion": confusion_matrix(true, chosen, labels=range(len(labels))).tolist(),
        "per_class": {
            label: {name: _number(column[index]) for name, column in zip(names, columns, strict=True)}
            for index, label in enumerate(labels)
        },
    }


def answers_of(probabilities: Probabilities, labels: Sequence[str], problem: str) -> list[Any]:
    """What a model says of each text: its likeliest label; the list of those above one half, where several may be
    right; of a regression its number."""
    if problem == "regression":
        return [float(value) for value in probabilities[:, 0]]
    if problem == "multi_label":
        return [[label for label, is_given in zip(labels, row > 0.5, strict=True) if is_given] for row in probabilities]
    return [labels[int(place)] for place in probabilities.argmax(-1)]


def macro_f1(true: Any, chosen: Any) -> float:
    """scikit-learn's macro F1 over the labels that occur or are predicted."""
    from sklearn.metrics import f1_score

    return float(f1_score(true, chosen, average="macro", zero_division=0))


def macro_f1_of_resamples(true: Any, chosen: Any, axis: int = -1) -> Any:
    """`macro_f1` along the last axis, as SciPy calls a statistic: scikit-learn takes some 3 ms for each resample."""
    true, chosen = np.broadcast_arrays(true, chosen)
    labels = int(max(true.max(), chosen.max())) + 1
    rows = true.size // true.shape[axis]
    first = labels * np.arange(rows).reshape(*true.shape[:-1], 1)  # place of each resample's label 0

    def count(places: Any) -> Any:
        return np.bincount(places.ravel(), minlength=rows * labels).reshape(*true.shape[:-1], labels)

    hits = count((true + first)[true == chosen])
    either = count(true + first) + count(chosen + first)
    return (2 * hits / np.maximum(either, 1)).sum(-1) / (either > 0).sum(-1)


def calibration(true: NDArray[np.int64], probabilities: Probabilities) -> dict[str, Any]:
    """Whether a model that says 80% is right in 80% of the cases, of the label that it chooses (Guo et al. 2017).

    Returns: ece, the expected calibration error (mean distance of confidence and accuracy over ten bins of confidence,
    each weighted by its texts); calibration, the reliability curve: for each bin with texts its mean confidence, its
    accuracy and its texts.
    """
    from sklearn.calibration import calibration_curve

    confidence = probabilities.max(-1).clip(0, 1)
    accuracy, mean_confidence = calibration_curve(probabilities.argmax(-1) == true, confidence, n_bins=BINS)
    # The bins of calibration_curve: a confidence on an edge belongs to the bin below it.
    texts = np.bincount(np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence), minlength=BINS)
    texts = texts[texts > 0]
    rows = zip(mean_confidence.tolist(), accuracy.tolist(), texts.tolist(), strict=True)
    return {
        "ece": float(np.average(np.abs(accuracy - mean_confidence), weights=texts)),
        "calibration": [dict(zip(("confidence", "accuracy", "examples"), row, strict=True)) for row in rows],
    }


def by_group(actual: Sequence[str], predicted: Sequence[str], groups: Sequence[str]) -> dict[str, Any]:
    """The same measures for each group of texts, and where they lie furthest apart.

    Returns: groups (group → examples, accuracy, macro_f1, interval of the accuracy), and largest_gap: the groups with
    the best and the worst accuracy, and the difference. A group of few examples has a wide interval: compare these.
    """
    found: dict[str, Any] = {}
    for group in sorted(set(groups)):
        true, chosen = (
            np.array([value for value, name in zip(values, groups, strict=True) if name == group])
            for values in (actual, predicted)
        )
        accuracy = float(np.mean(true == chosen))
        found[group] = {"examples": len(true), "accuracy": accuracy, "macro_f1": macro_f1(true, chosen)}
        if bounds := interval(mean, true == chosen):
            found[group]["interval"] = bounds
    best = max(found, key=lambda group: found[group]["accuracy"])
    worst = min(found, key=lambda group: found[group]["accuracy"])
    gap = found[best]["accuracy"] - found[worst]["accuracy"]
    return {"groups": found, "largest_gap": {"best": best, "worst": worst, "accuracy": gap}}


def _auc(true: NDArray[np.int64], probabilities: Probabilities) -> float | None:
    from sklearn.metrics import roc_auc_score

    labels = probabilities.shape[1]
    if labels < 2 or len(set(true.tolist())) < labels:
        return None
    if labels == 2:
        return float(roc_auc_score(true, probabilities[:, 1]))
    return float(roc_auc_score(true, probabilities, multi_class="ovr", average="macro"))


def _number(value: Any) -> float | int:
    """A numpy scalar as a plain number: counts stay whole."""
    number = value.item()
    return int(number) if isinstance(number, int) else float(number)
