"""More pretraining of any causal base on plain text: every token is learnt, over windows of the token stream.

The text was encoded by the base's own tokenizer (continuation_tokens.py); documents stand in a row, each with its
end-of-text token, cut where a window ends, and window k of the order is the same on any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.cluster.ranks import Ranks
from pipeline.files import fingerprint
from pipeline.recipe import FinetuneTask
from pipeline.tokens.data import TokenData
from pipeline.tokens.stream import Stream
from pipeline.tokens.validation import PADDING, ValidationWindows
from pipeline.train.base_model import training_flops
from pipeline.train.instruction import IGNORED, shares
from pipeline.train.shown import Shown
from pipeline.train.task import Batch, ReduceSum


class ContinueTask:
    """Next-token prediction on new text: a `task.Task`. The loss is the mean cross-entropy over all tokens.

    train, validation: the numbers of the windows, an epoch's and those that a validation measures.
    """

    def __init__(self, name: str, settings: FinetuneTask, model: Any, tokens: TokenData, seed: int) -> None:
        self.name, self.model, self.sequences = name, model, settings.global_batch
        self.best_by, self.patience = settings.best_by, settings.patience
        self.micro_batch, self.seq_len = settings.micro_batch, settings.seq_len
        model.config.use_cache = False  # keys and values of a past serve generation only
        self.tokens = tokens
        self.stream = Stream(tokens, settings.seq_len, seed, {})
        self.windows = ValidationWindows(tokens, settings.seq_len)
        self.train = range(self.stream.windows)
        self.validation = range(min(len(self.windows), settings.max_validation_examples))
        self.steps = max(1, round(settings.epochs * self.stream.windows / settings.global_batch))
        self.tokens_per_step = settings.global_batch * settings.seq_len
        self.flops_per_step = training_flops(model, self.tokens_per_step, self.tokens_per_step)
        self.counts = {"truncated": 0, "tokens": tokens.tokens("train"), "windows": self.stream.windows}
        self.fingerprint = fingerprint([self.stream.fingerprint, settings.settings(), seed])

    def targets(self, step: int) -> int:
        """Every token of every window."""
        return self.tokens_per_step

    def batch(self, sequences: Sequence[int]) -> Batch:
        """See `_batch`; the loop deals out consecutive numbers, padding (-1) last."""
        windows = torch.full((len(sequences), self.seq_len + 1), PADDING, dtype=torch.int64)
        real = sum(sequence >= 0 for sequence in sequences)
        if real:
            windows[:real] = torch.from_numpy(self.stream.batch(sequences[0], real))
        return self._batch(windows)

    def _batch(self, windows: Tensor) -> Batch:
        """tokens and targets (rows, seq_len) int64, of windows (rows, seq_len + 1): the token after each place, -100
        where there is none."""
        targets = windows[:, 1:]
        return {
            "tokens": windows[:, :-1].clamp(min=0),
            "targets": torch.where(targets < 0, IGNORED, targets),
        }

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the cross-entropy over the tokens, fp32."""
        logits = model(input_ids=batch["tokens"]).logits
        return F.cross_entropy(
            logits.flatten(0, 1).float(), batch["targets"].flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def validate(self, model: nn.Module, ranks: Ranks, reduce_sum: ReduceSum) -> dict[str, float]:
        """loss: mean over the held-out tokens, in nats; bits_per_byte: of their text, exact when all windows are
        measured (loss / ln 2 · tokens / bytes of all that is held out)."""
        device = next(model.parameters()).device
        nats, count = 0.0, 0
        for rows in shares(self.validation, self.micro_batch, ranks):
            windows = torch.full((len(rows), self.seq_len + 1), PADDING, dtype=torch.int64)
            for row, number in enumerate(rows):
                if number is not None:
                    windows[row] = torch.from_numpy(self.windows.batch(number, 1)[0])
            batch = self._batch(windows)
            nats += float(self.loss_sum(model, {name: value.to(device) for name, value in batch.items()}))
            count += int((batch["targets"] != IGNORED).sum())
        nats, targets = reduce_sum([nats, float(count)])
        loss = nats / targets
        per_byte = self.tokens.tokens("validation") / self.tokens.bytes("validation")
        return {"loss": loss, "bits_per_byte": loss / math.log(2) * per_byte}

    def end_token(self) -> int | None:
        """The base keeps its own."""
        return None

    def model_inputs(self) -> Batch:
        """One held-out window as the model's keyword arguments, to compare a saved model with the trained one."""
        return {"input_ids": torch.from_numpy(self.windows.batch(0, 1)).clamp(min=0)[:, : self.seq_len]}

    def shown(self, tokenizer: Any, number: int) -> Shown:
        """A window as the model sees it: all of it is learnt but the token that it goes on from."""
        tokens = self.stream.batch(number, 1)[0].tolist()
        return Shown.of(tokenizer, tokens, [False] + [True] * self.seq_len)
