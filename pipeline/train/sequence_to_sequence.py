"""Fine-tuning an encoder–decoder (T5, BART, Marian) to write a text from a text: translation, summarisation.

The encoder reads the source, with the task's prompt around it, cut at its end; the decoder is given the target shifted
by one behind the model's start token and learns every token of it, its end included. Rows are padded on the right; the
source's padding is masked, the target's is read causally and needs no mask.
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
from pipeline.errors import DataError
from pipeline.files import fingerprint
from pipeline.recipe import FinetuneTask
from pipeline.train.base_model import operations
from pipeline.train.epochs import Epochs, padded_length
from pipeline.train.example import Example
from pipeline.train.examples import Examples
from pipeline.train.instruction import AT_ONCE, IGNORED, digest, prompted, shares
from pipeline.train.shown import Shown, pieces_of
from pipeline.train.task import Batch, ReduceSum


@dataclass(frozen=True)
class Translation:
    """One example as the model sees it. source, target: 1-D int64; cut: whether the source was shortened."""

    source: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    cut: bool


class Seq2SeqTask:
    """Fine-tuning an encoder–decoder: a `task.Task`. The loss is the mean cross-entropy over the targets' tokens."""

    def __init__(
        self, name: str, settings: FinetuneTask, model: Any, tokenizer: Any, examples: Examples, seed: int
    ) -> None:
        self.name, self.model, self.sequences = name, model, settings.global_batch
        self.best_by, self.patience = settings.best_by, settings.patience
        self.micro_batch, self.seq_len = settings.micro_batch, settings.seq_len
        model.config.use_cache = False  # keys and values of a past serve generation only
        self.pad, self.end = int(tokenizer.pad_token_id), int(tokenizer.eos_token_id)
        self.start = int(model.config.decoder_start_token_id)
        found = [
            self._encode([prompted(example, settings.prompt) for example in part], tokenizer)
            for part in (examples.train, examples.validation)
        ]
        self.train, self.validation = ([one for one in part if len(one.target) <= self.seq_len] for part in found)
        if not self.train or not self.validation:
            raise DataError(f"{name}: no target fits into seq_len {settings.seq_len}; raise it")
        self.counts = {
            "truncated": sum(one.cut for one in self.train),
            "long_completion": len(found[0]) - len(self.train),
            "target_tokens": sum(len(one.target) for one in self.train),
            "tokens": sum(len(one.source) + len(one.target) for one in self.train),
        }
        self.epochs = Epochs([len(one.source) for one in self.train], settings.global_batch, seed)
        self.steps = max(1, round(settings.epochs * self.epochs.steps))
        self.tokens_per_step = round(self.counts["tokens"] / self.epochs.steps)
        self.flops_per_step = self._flops() / self.epochs.steps
        data = digest((one.target, one.source) for one in self.train)
        self.fingerprint = fingerprint([data, settings.settings(), seed])

    def _encode(self, examples: Sequence[Example], tokenizer: Any) -> list[Translation]:
        made = []
        for first in range(0, len(examples), AT_ONCE):
            part = examples[first : first + AT_ONCE]
            texts = [example.text for example in part]
            whole = tokenizer(texts)["input_ids"]
            sources = tokenizer(texts, truncation=True, max_length=self.seq_len)["input_ids"]
            targets = tokenizer(text_target=[example.answer for example in part])["input_ids"]
            for full, source, target in zip(whole, sources, targets, strict=True):
                ended = target if target[-1:] == [self.end] else [*target, self.end]
                made.append(Translation(np.asarray(source), np.asarray(ended), len(source) < len(full)))
        return made

    def _flops(self) -> float:
        """Of an epoch: `operations` for each weight and each token that it works on; embeddings are looked up."""

        def weights(module: nn.Module) -> int:
            tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
            return sum(operations(weight) for weight in module.parameters() if id(weight) not in tables)

        head = operations(self.model.get_output_embeddings().weight)
        sources = self.counts["tokens"] - self.counts["target_tokens"]
        encoder, decoder = weights(self.model.get_encoder()), weights(self.model.get_decoder())
        return float(encoder * sources + (decoder + head) * self.counts["target_tokens"])

    def targets(self, step: int) -> int:
        """Target tokens in the step's batch."""
        return sum(len(self.train[number].target) for number in self.epochs.examples(step) if number >= 0)

    def batch(self, sequences: Sequence[int]) -> Batch:
        """See `rows`."""
        numbers = [self.epochs.example(sequence) for sequence in sequences]
        return self.rows([self.train[number] if number >= 0 else None for number in numbers])

    def rows(self, examples: Sequence[Translation | None]) -> Batch:
        """tokens and mask (rows, source width) int64; decoder and targets (rows, target width) int64: what the decoder
        is given, and the token after each place, -100 for padding."""
        real = [one for one in examples if one is not None]
        width = padded_length(max((len(one.source) for one in real), default=1), self.seq_len)
        depth = padded_length(max((len(one.target) for one in real), default=1), self.seq_len)
        tokens = np.full((len(examples), width), self.pad, dtype=np.int64)
        mask = np.zeros((len(examples), width), dtype=np.int64)
        mask[:, 0] = 1  # a row with no token at all would have nothing to attend to
        decoder = np.full((len(examples), depth), self.pad, dtype=np.int64)
        decoder[:, 0] = self.start
        targets = np.full((len(examples), depth), IGNORED, dtype=np.int64)
        for row, one in enumerate(examples):
            if one is not None:
                tokens[row, : len(one.source)] = one.source
                mask[row, : len(one.source)] = 1
                decoder[row, 1 : len(one.target)] = one.target[:-1]
                targets[row, : len(one.target)] = one.target
        arrays = {"tokens": tokens, "mask": mask, "decoder": decoder, "targets": targets}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the cross-entropy over the targets' tokens, fp32."""
        logits = model(
            input_ids=batch["tokens"], attention_mask=batch["mask"], decoder_input_ids=batch["decoder"]
        ).logits
        return F.cross_entropy(
            logits.flatten(0, 1).float(), batch["targets"].flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def validate(self, model: nn.Module, ranks: Ranks, reduce_sum: ReduceSum) -> dict[str, float]:
        """loss: mean over the held-out targets' tokens."""
        by_length = sorted(self.validation, key=lambda one: len(one.source))
        device = next(model.parameters()).device
        total, targets = 0.0, 0
        for rows in shares(by_length, self.micro_batch, ranks):
            batch = {name: value.to(device) for name, value in self.rows(rows).items()}
            total += float(self.loss_sum(model, batch))
            targets += sum(len(one.target) for one in rows if one is not None)
        total, count = reduce_sum([total, float(targets)])
        return {"loss": total / count}

    def end_token(self) -> int | None:
        """The token that ends a target."""
        return self.end

    def model_inputs(self) -> Batch:
        """A few held-out examples as the model's keyword arguments, to compare a saved model with the trained one."""
        rows = self.rows(self.validation[:4])
        return {
            "input_ids": rows["tokens"],
            "attention_mask": rows["mask"],
            "decoder_input_ids": rows["decoder"],
        }

    def shown(self, tokenizer: Any, number: int) -> Shown:
        """A training example as the model sees it: what the encoder reads, and the target that is learnt."""
        one, target = self.train[number], self.train[number].target.tolist()
        return Shown.answered(
            tokenizer,
            one.source.tolist(),
            tokenizer.decode(target),
            target_tokens=target,
            target_pieces=pieces_of(tokenizer, target),
        )
