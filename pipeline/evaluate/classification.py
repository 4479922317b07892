"""How often a text classifier is right, beside what always answering the commonest training label would reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.errors import DataError
from pipeline.progress import Progress


@torch.inference_mode()
def predict(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], *, seq_len: int, batch: int, bar: Progress
) -> list[str]:
    """The label that the model gives to each text.

    Args: model and tokenizer, of a Hugging Face sequence classification directory; texts; seq_len, tokens after which
    a text is cut, as in training; batch, texts at once; bar, advanced by texts.
    """
    device = next(model.parameters()).device
    names: dict[int, str] = model.config.id2label  # type: ignore[union-attr, assignment]
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding: alike lengths together
    labels = [""] * len(texts)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        encoded = tokenizer(
            [texts[index] for index in chosen],
            truncation=True,
            max_length=seq_len,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        logits = model(
            input_ids=encoded["input_ids"].to(device), attention_mask=encoded["attention_mask"].to(device)
        ).logits
        for index, label in zip(chosen, logits.argmax(-1).tolist(), strict=True):
            labels[index] = names[label]
        bar.advance(len(chosen))
    return labels


def classification_metrics(
    actual: Sequence[str], predicted: Sequence[str], labels: Sequence[str], training: Sequence[str]
) -> dict[str, Any]:
    """scikit-learn's measures of single-label classification.

    Args: actual and predicted labels of the held-out texts; labels, the model's, in its order; training, the labels of
    the training texts.
    Returns: accuracy, macro_f1 (over all labels that occur or are predicted; a label never predicted has F1 0),
    majority_accuracy and majority_label (always answering the commonest training label; the first in order of names
    where two are as common), labels, confusion (rows: actual, columns: predicted, in the order of labels), per_class.
    Raises: DataError for a held-out label that the model does not know.
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

    if unknown := sorted(set(actual) - set(labels)):
        raise DataError(
            f"held-out label '{unknown[0]}' is not one of the model's ({', '.join(labels)}); hold out only examples "
            "whose label is in the training examples"
        )
    majority = DummyClassifier(strategy="most_frequent").fit([[0]] * len(training), list(training))
    constant = majority.predict([[0]] * len(actual))
    columns = precision_recall_fscore_support(actual, predicted, labels=list(labels), zero_division=0)
    names = ("precision", "recall", "f1", "support")
    return {
        "examples": len(actual),
        "accuracy": float(accuracy_score(actual, predicted)),
        "macro_f1": float(f1_score(actual, predicted, average="macro", zero_division=0)),
        "majority_accuracy": float(accuracy_score(actual, constant)),
        "majority_label": str(constant[0]),
        "labels": list(labels),
        "confusion": confusion_matrix(actual, predicted, labels=list(labels)).tolist(),
        "per_class": {
            label: {name: _number(column[index]) for name, column in zip(names, columns, strict=True)}
            for index, label in enumerate(labels)
        },
    }


def _number(value: Any) -> float | int:
    """A numpy scalar as a plain number: counts stay whole."""
    number = value.item()
    return int(number) if isinstance(number, int) else float(number)
