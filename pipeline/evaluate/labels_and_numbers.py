"""How good a model is that gives a text several labels at once, or a number: scikit-learn's and SciPy's measures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.evaluate.classification import AVERAGES, Probabilities
from pipeline.evaluate.confidence import interval, mean


def several_labels_metrics(
    actual: Sequence[str], probabilities: Probabilities, labels: Sequence[str]
) -> dict[str, Any]:
    """Measures of several labels at once; a label is given where its probability is above one half.

    Args: actual, each text's labels as a JSON list; probabilities (texts, labels).
    Returns: accuracy (all labels of a text right) with its interval, macro_ and micro_ precision, recall and f1, auc
    (the labels' mean) where every label occurs and none is everywhere, none_accuracy (never giving any), per_label.
    Raises: DataError for a held-out label that the model does not know.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

    true = np.zeros(probabilities.shape, dtype=np.int64)
    for row, text in enumerate(actual):
        for label in json.loads(text):
            if label not in labels:
                raise DataError(f"held-out label '{label}' is not one of the model's ({', '.join(labels)})")
            true[row, labels.index(label)] = 1
    given = (probabilities > 0.5).astype(np.int64)
    names = ("precision", "recall", "f1", "support")
    found: dict[str, Any] = {"examples": len(actual), "accuracy": float(accuracy_score(true, given))}
    for average in AVERAGES:
        means = precision_recall_fscore_support(true, given, average=average, zero_division=0)
        found |= {f"{average}_{name}": float(value) for name, value in zip(names[:3], means, strict=False)}
    if all(0 < bearers < len(true) for bearers in true.sum(0)):
        found["auc"] = float(roc_auc_score(true, probabilities, average="macro"))
    columns = precision_recall_fscore_support(true, given, average=None, zero_division=0)
    bounds = interval(mean, (true == given).all(-1))
    return {
        **found,
        "none_accuracy": float((true.sum(-1) == 0).mean()),
        "intervals": {"accuracy": bounds} if bounds else {},
        "labels": list(labels),
        "per_label": {
            label: {name: float(column[index]) for name, column in zip(names, columns, strict=True)}
            for index, label in enumerate(labels)
        },
    }


def number_metrics(actual: Sequence[str], predicted: Probabilities, training: Sequence[str]) -> dict[str, Any]:
    """Measures of regression.

    Args: actual, each text's number; predicted (texts, 1); training, the numbers of the training texts.
    Returns: rmse, mae with its interval, r2, pearson and spearman (where neither side is constant), and mean_rmse: that
    of always saying the training texts' mean.
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    true, said = np.array([float(value) for value in actual]), predicted[:, 0]
    constant = np.full(len(true), np.mean([float(value) for value in training]))
    found: dict[str, Any] = {
        "examples": len(true),
        "rmse": float(root_mean_squared_error(true, said)),
        "mae": float(mean_absolute_error(true, said)),
        "mean_rmse": float(root_mean_squared_error(true, constant)),
    }
    if len(true) > 1 and np.ptp(true) > 0 and np.ptp(said) > 0:
        found |= {
            "r2": float(r2_score(true, said)),
            "pearson": float(pearsonr(true, said).statistic),
            "spearman": float(spearmanr(true, said).statistic),
        }
    bounds = interval(mean, np.abs(true - said))
    return {**found, "intervals": {"mae": bounds} if bounds else {}}
