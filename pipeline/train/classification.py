"""Fine-tuning a classifier: text in, one of a set of labels out, by `AutoModelForSequenceClassification`.

Texts are encoded as the tokenizer does by itself (an encoder's [CLS] … [SEP] included), cut at their end, padded on the
right and masked. The saved tokenizer's `model_max_length` is the length they were cut at, so that `truncation=True`
cuts alike wherever the classifier is used.
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
from pipeline.train.examples import Example, Examples
from pipeline.train.instruction import AT_ONCE, IGNORED, digest, shares
from pipeline.train.loop import Batch, ReduceSum


@dataclass(frozen=True)
class Labelled:
    """One example as the model sees it. tokens: 1-D int64; label: its class; cut: whether it was shortened."""

    tokens: npt.NDArray[np.int64]
    label: int
    cut: bool


class ClassifyTask:
    """Fine-tuning on labels: a `loop.Task`. The loss is the mean cross-entropy over examples."""

    def __init__(
        self, name: str, settings: FinetuneTask, model: Any, tokenizer: Any, examples: Examples, seed: int
    ) -> None:
        self.name, self.model, self.sequences = name, model, settings.global_batch
        self.micro_batch = settings.micro_batch
        model.config.use_cache = False  # keys and values of a past serve generation only
        self.pad = int(tokenizer.pad_token_id)
        self.seq_len = settings.seq_len
        self.labels = examples.labels
        self.train = _encode(examples.train, self.labels, tokenizer, settings.seq_len)
        self.validation = _encode(examples.validation, self.labels, tokenizer, settings.seq_len)
        self.counts = {
            "truncated": sum(example.cut for example in self.train),
            "tokens": sum(len(example.tokens) for example in self.train),
        }
        self.epochs = Epochs([len(example.tokens) for example in self.train], settings.global_batch, seed)
        self.steps = max(1, round(settings.epochs * self.epochs.steps))
        self.tokens_per_step = round(self.counts["tokens"] / self.epochs.steps)
        self.flops_per_step = training_flops(model, self.tokens_per_step, 0.0)
        data = digest((example.label, example.tokens) for example in self.train)
        self.fingerprint = fingerprint([data, self.labels, settings.settings(), seed])

    def targets(self, step: int) -> int:
        """Examples in the step's batch."""
        return int((self.epochs.examples(step) >= 0).sum())

    def batch(self, sequences: Sequence[int]) -> Batch:
        """See `rows`."""
        numbers = [self.epochs.example(sequence) for sequence in sequences]
        return self.rows([self.train[number] if number >= 0 else None for number in numbers])

    def rows(self, examples: Sequence[Labelled | None]) -> Batch:
        """tokens and mask (rows, width) int64, right-padded; labels (rows,) int64, -100 for rows of padding."""
        longest = max((len(example.tokens) for example in examples if example is not None), default=1)
        width = padded_length(longest, self.seq_len)
        tokens = np.full((len(examples), width), self.pad, dtype=np.int64)
        mask = np.zeros((len(examples), width), dtype=np.int64)
        mask[:, 0] = 1  # a row with no token at all would have nothing to attend to
        labels = np.full(len(examples), IGNORED, dtype=np.int64)
        for row, example in enumerate(examples):
            if example is not None:
                tokens[row, : len(example.tokens)] = example.tokens
                mask[row, : len(example.tokens)] = 1
                labels[row] = example.label
        return {
            "tokens": torch.from_numpy(tokens),
            "mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
        }

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the cross-entropy over examples, fp32."""
        logits = model(input_ids=batch["tokens"], attention_mask=batch["mask"]).logits
        return F.cross_entropy(logits.float(), batch["labels"], ignore_index=IGNORED, reduction="sum")

    def validate(self, model: nn.Module, ranks: Ranks, reduce_sum: ReduceSum) -> dict[str, float]:
        """loss: mean over held-out examples; accuracy: share of them whose label has the highest score."""
        by_length = sorted(self.validation, key=lambda example: len(example.tokens))
        device = next(model.parameters()).device
        total = right = 0.0
        for rows in shares(by_length, self.micro_batch, ranks):
            batch = {name: value.to(device) for name, value in self.rows(rows).items()}
            logits = model(input_ids=batch["tokens"], attention_mask=batch["mask"]).logits.float()
            total += float(F.cross_entropy(logits, batch["labels"], ignore_index=IGNORED, reduction="sum"))
            right += float((logits.argmax(dim=-1) == batch["labels"]).sum())
        total, right = reduce_sum([total, right])
        return {"loss": total / len(self.validation), "accuracy": right / len(self.validation)}

    def end_token(self) -> int | None:
        """A classifier writes nothing."""
        return None

    def model_inputs(self) -> Batch:
        """A few held-out examples as the model's keyword arguments, to compare a saved model with the trained one."""
        rows = self.rows(self.validation[:4])
        return {"input_ids": rows["tokens"], "attention_mask": rows["mask"]}

    def shown(self, tokenizer: Any, number: int) -> str:
        """A training example as the model sees it, and its label between ⟦ and ⟧."""
        example = self.train[number]
        return f"{tokenizer.decode(example.tokens)} ⟦{self.labels[example.label]}⟧"


def _encode(examples: Sequence[Example], labels: Sequence[str], tokenizer: Any, seq_len: int) -> list[Labelled]:
    numbers = {label: number for number, label in enumerate(labels)}
    found = []
    for first in range(0, len(examples), AT_ONCE):
        part = examples[first : first + AT_ONCE]
        texts = [example.text for example in part]
        whole = tokenizer(texts, add_special_tokens=True)["input_ids"]
        cut = tokenizer(texts, add_special_tokens=True, truncation=True, max_length=seq_len)["input_ids"]
        for example, full, short in zip(part, whole, cut, strict=True):
            tokens = np.asarray(short, dtype=np.int64)
            found.append(Labelled(tokens, numbers[example.answer], len(short) < len(full)))
    return found
