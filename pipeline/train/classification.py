"""Fine-tuning a classifier: text in, one of a set of labels, several of them, or a number out, by
`AutoModelForSequenceClassification`.

Texts are encoded as the tokenizer does by itself (an encoder's [CLS] … [SEP] included), cut at their end, padded on the
right and masked. The saved tokenizer's `model_max_length` is the length they were cut at, so that `truncation=True`
cuts alike wherever the classifier is used. Of a pair the longer text is cut; where the tokenizer has no form of its own
for pairs (most decoders), a line break stands between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.cluster.ranks import Ranks
from pipeline.files import fingerprint
from pipeline.recipe import FinetuneTask
from pipeline.train.base_model import training_flops
from pipeline.train.epochs import Epochs, padded_length
from pipeline.train.example import Example
from pipeline.train.examples import Examples
from pipeline.train.instruction import AT_ONCE, IGNORED, digest, shares
from pipeline.train.shown import Shown
from pipeline.train.task import Batch, ReduceSum


@dataclass(frozen=True)
class Labelled:
    """One example as the model sees it. tokens: 1-D int64; types: which text of a pair each is of, where asked
    for; label: its class, a 0 or 1 for each class, or its number; cut: whether it was shortened."""

    tokens: npt.NDArray[np.int64]
    types: npt.NDArray[np.int64] | None
    label: int | float | npt.NDArray[np.float32]
    cut: bool


class ClassifyTask:
    """Fine-tuning on labels: a `task.Task`.

    The loss is the mean over examples: of the cross-entropy; for several labels of the binary cross-entropy, mean over
    classes; for numbers of the squared difference. Balanced weights are inverse to a class's share, mean 1 over
    examples; for several labels they weigh a class's bearers against the others.
    """

    def __init__(
        self, name: str, settings: FinetuneTask, model: Any, tokenizer: Any, examples: Examples, seed: int
    ) -> None:
        self.name, self.model, self.sequences = name, model, settings.global_batch
        self.best_by, self.patience = settings.best_by, settings.patience
        self.micro_batch = settings.micro_batch
        model.config.use_cache = False  # keys and values of a past serve generation only
        self.pad = int(tokenizer.pad_token_id)
        self.seq_len = settings.seq_len
        self.labels, self.problem = examples.labels, settings.problem
        self.train = self._encode(examples.train, tokenizer)
        self.validation = self._encode(examples.validation, tokenizer)
        self.weights = self._weights() if settings.class_weights == "balanced" else None
        self.counts = {
            "truncated": sum(example.cut for example in self.train),
            "tokens": sum(len(example.tokens) for example in self.train),
        }
        self.epochs = Epochs([len(example.tokens) for example in self.train], settings.global_batch, seed)
        self.steps = max(1, round(settings.epochs * self.epochs.steps))
        self.tokens_per_step = round(self.counts["tokens"] / self.epochs.steps)
        self.flops_per_step = training_flops(model, self.tokens_per_step, 0.0)
        data = digest((example.label, example.tokens) for example in self.train)
        self.fingerprint = fingerprint([data, list(self.labels), settings.settings(), seed])

    def _encode(self, examples: Sequence[Example], tokenizer: Any) -> list[Labelled]:
        numbers = {label: number for number, label in enumerate(self.labels)}
        found = []
        for first in range(0, len(examples), AT_ONCE):
            part = examples[first : first + AT_ONCE]
            texts = texts_of(tokenizer, [(example.text, example.pair) for example in part])
            whole = tokenizer(*texts, add_special_tokens=True)["input_ids"]
            cut = tokenizer(*texts, add_special_tokens=True, truncation=True, max_length=self.seq_len)
            types = cut["token_type_ids"] if len(texts) == 2 and "token_type_ids" in cut else [None] * len(part)
            for example, full, short, kinds in zip(part, whole, cut["input_ids"], types, strict=True):
                tokens = np.asarray(short, dtype=np.int64)
                which = None if kinds is None else np.asarray(kinds, dtype=np.int64)
                found.append(Labelled(tokens, which, self._label(example, numbers), len(short) < len(full)))
        return found

    def _label(self, example: Example, numbers: dict[str, int]) -> int | float | npt.NDArray[np.float32]:
        if self.problem == "regression":
            return float(example.answer)
        if self.problem == "single_label":
            return numbers[example.answer]
        label = np.zeros(len(numbers), dtype=np.float32)
        label[[numbers[name] for name in example.labels]] = 1
        return label

    def _weights(self) -> Tensor | None:
        """(classes,) fp32: how much each class counts."""
        if self.problem == "regression":
            return None
        if self.problem == "multi_label":
            bearers = np.stack([np.asarray(example.label) for example in self.train]).sum(axis=0)
            return torch.from_numpy((len(self.train) - bearers) / np.maximum(bearers, 1)).float()
        bearers = np.bincount([int(example.label) for example in self.train], minlength=len(self.labels))
        return torch.from_numpy(len(self.train) / (len(self.labels) * bearers)).float()

    def targets(self, step: int) -> int:
        """Examples in the step's batch."""
        return int((self.epochs.examples(step) >= 0).sum())

    def batch(self, sequences: Sequence[int]) -> Batch:
        """See `rows`."""
        numbers = [self.epochs.example(sequence) for sequence in sequences]
        return self.rows([self.train[number] if number >= 0 else None for number in numbers])

    def rows(self, examples: Sequence[Labelled | None]) -> Batch:
        """tokens and mask (rows, width) int64, right-padded, and `types` alike where there are any; labels (rows,)
        int64, (rows, classes) or (rows,) fp32, -100 for rows of padding; real (rows,) bool: which are none."""
        longest = max((len(example.tokens) for example in examples if example is not None), default=1)
        width = padded_length(longest, self.seq_len)
        tokens = np.full((len(examples), width), self.pad, dtype=np.int64)
        mask = np.zeros((len(examples), width), dtype=np.int64)
        types = np.zeros((len(examples), width), dtype=np.int64)
        mask[:, 0] = 1  # a row with no token at all would have nothing to attend to
        shape = (len(examples), len(self.labels)) if self.problem == "multi_label" else (len(examples),)
        labels = np.full(shape, IGNORED, dtype=np.int64 if self.problem == "single_label" else np.float32)
        for row, example in enumerate(examples):
            if example is not None:
                tokens[row, : len(example.tokens)] = example.tokens
                mask[row, : len(example.tokens)] = 1
                labels[row] = example.label
                if example.types is not None:
                    types[row, : len(example.types)] = example.types
        arrays = {"tokens": tokens, "mask": mask, "labels": labels}
        arrays["real"] = np.asarray([example is not None for example in examples])
        if any(example.types is not None for example in self.train[:1]):
            arrays["types"] = types
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        types = {"token_type_ids": batch["types"]} if "types" in batch else {}
        logits: Tensor = model(input_ids=batch["tokens"], attention_mask=batch["mask"], **types).logits
        return logits.float()

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the loss over examples, fp32."""
        return self._loss(self._logits(model, batch), batch)

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        labels = batch["labels"]
        weights = None if self.weights is None else self.weights.to(logits.device)
        if self.problem == "single_label":
            return F.cross_entropy(logits, labels, weights, ignore_index=IGNORED, reduction="sum")
        if self.problem == "multi_label":
            each = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="none").mean(dim=-1)
        else:
            each = (logits.squeeze(-1) - labels) ** 2
        return torch.where(batch["real"], each, 0.0).sum()

    def validate(self, model: nn.Module, ranks: Ranks, reduce_sum: ReduceSum) -> dict[str, float]:
        """loss: mean over held-out examples. One label: accuracy, the share of them whose label has the highest score.
        Several: accuracy, the share whose labels are all right (scores above 0). Both: macro_f1, the mean over classes.
        Numbers: rmse, the root of the mean squared difference."""
        by_length = sorted(self.validation, key=lambda example: len(example.tokens))
        device = next(model.parameters()).device
        classes, total, right = len(self.labels), 0.0, 0.0
        hits, given, borne = (torch.zeros(classes, dtype=torch.float64) for _ in range(3))
        squares = 0.0
        for rows in shares(by_length, self.micro_batch, ranks):
            batch = {name: value.to(device) for name, value in self.rows(rows).items()}
            logits = self._logits(model, batch)
            total += float(self._loss(logits, batch))
            logits, labels = logits[batch["real"]].cpu(), batch["labels"][batch["real"]].cpu()
            if self.problem == "regression":
                squares += float(((logits.squeeze(-1) - labels) ** 2).sum())
                continue
            if self.problem == "single_label":
                predicted, actual = (F.one_hot(one, classes).bool() for one in (logits.argmax(dim=-1), labels))
            else:
                predicted, actual = logits > 0, labels > 0.5
            right += float((predicted == actual).all(dim=-1).sum())
            hits += (predicted & actual).sum(dim=0)
            given += predicted.sum(dim=0)
            borne += actual.sum(dim=0)
        counts = torch.stack([hits, given, borne]).flatten().tolist()
        total, right, squares, *counts = reduce_sum([total, right, squares, *counts])
        count = len(self.validation)
        if self.problem == "regression":
            return {"loss": total / count, "rmse": float(np.sqrt(squares / count))}
        hits, given, borne = torch.tensor(counts, dtype=torch.float64).view(3, classes)
        seen = given + borne > 0  # as scikit-learn: a class that neither occurs nor is predicted has no F1
        return {
            "loss": total / count,
            "accuracy": right / count,
            "macro_f1": float((2 * hits[seen] / (given + borne)[seen]).mean()),
        }

    def end_token(self) -> int | None:
        """A classifier writes nothing."""
        return None

    def model_inputs(self) -> Batch:
        """A few held-out examples as the model's keyword arguments, to compare a saved model with the trained one."""
        rows = self.rows(self.validation[:4])
        types = {"token_type_ids": rows["types"]} if "types" in rows else {}
        return {"input_ids": rows["tokens"], "attention_mask": rows["mask"], **types}

    def shown(self, tokenizer: Any, number: int) -> Shown:
        """A training example as the model sees it, and its label."""
        example = self.train[number]
        answer = str(example.label)
        if self.problem == "single_label":
            answer = self.labels[int(example.label)]
        elif isinstance(example.label, np.ndarray):
            answer = ", ".join(self.labels[place] for place in np.flatnonzero(example.label))
        return Shown.answered(tokenizer, example.tokens.tolist(), answer, label=answer)


def texts_of(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> tuple[list[str], ...]:
    """What a tokenizer is called with for texts and second texts (empty: none): one list, or two where it can tell
    the texts of a pair apart by special tokens."""
    if not any(second for _, second in pairs):
        return ([first for first, _ in pairs],)
    if tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False):
        return [first for first, _ in pairs], [second for _, second in pairs]
    return ([f"{first}\n{second}" for first, second in pairs],)
