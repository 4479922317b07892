"""Supervised fine-tuning on prompts and completions: the model's own chat template, loss on the answer alone.

What is learnt are the tokens after the template's opening of the assistant's turn, up to and with the token that ends
the turn. Rows are padded on the right and read causally, so padding is never seen by a real token and no attention
mask is needed. The output layer works only where there are targets: most of a row is prompt.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
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
from pipeline.train.base_model import training_flops
from pipeline.train.epochs import Epochs, padded_length
from pipeline.train.examples import Example, Examples
from pipeline.train.loop import Batch, ReduceSum

IGNORED = -100
AT_ONCE = 1000  # examples that the tokenizer is given together


@dataclass(frozen=True)
class Encoded:
    """One example as the model sees it. tokens: 1-D int64; first: place of the first token that is learnt (all from
    there on are); cut: whether the prompt was shortened to fit."""

    tokens: npt.NDArray[np.int64]
    first: int
    cut: bool

    @property
    def targets(self) -> int:
        """Tokens that are learnt."""
        return len(self.tokens) - self.first


class ChatFormat:
    """Examples to tokens, by a tokenizer's chat template.

    Raises: DataError when the template opens no turn for the assistant that an answer continues.
    """

    def __init__(self, tokenizer: Any, seq_len: int) -> None:
        self.tokenizer, self.seq_len = tokenizer, seq_len
        self.special = set(tokenizer.all_special_ids)

    def prompt(self, text: str) -> str:
        """The text that the model continues with its answer."""
        opened: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        return opened

    def encode(self, examples: Sequence[Example]) -> list[Encoded | None]:
        """Tokens of each example, at most seq_len; None where the completion alone is too long.

        The prompt's end is cut where it must be, never the completion.
        """
        parts = (examples[first : first + AT_ONCE] for first in range(0, len(examples), AT_ONCE))
        found: list[Encoded | None] = [encoded for part in parts for encoded in self._encode(part)]
        for number, (example, encoded) in enumerate(zip(examples, found, strict=True)):
            if encoded is not None and len(encoded.tokens) > self.seq_len:
                found[number] = self._shortened(example)
        return found

    def _shortened(self, example: Example) -> Encoded | None:
        """The example with as much of the prompt's beginning as fits: cut, encode, and cut again what is still over."""
        prompt = self.tokenizer(example.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        keep = len(prompt)
        encoded = next(self._encode([example]))
        while len(encoded.tokens) > self.seq_len:
            keep -= len(encoded.tokens) - self.seq_len
            if keep <= 0:
                return None
            text = example.text[: prompt[keep - 1][1]].rstrip()
            encoded = next(self._encode([Example(example.id, text, example.answer)]))
        return Encoded(encoded.tokens, encoded.first, cut=True)

    def _encode(self, examples: Sequence[Example]) -> Iterator[Encoded]:
        opened = [self.prompt(example.text) for example in examples]
        whole = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": example.text}, {"role": "assistant", "content": example.answer}],
                tokenize=False,
            )
            for example in examples
        ]
        encoded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        for start, text, ids, places in zip(
            opened, whole, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            if not text.startswith(start) or len(text) == len(start):
                raise DataError(
                    "the chat template's text with an answer does not continue its text without one "
                    f"(… {start[-60:]!r}); give the base model another chat_template"
                )
            first = next(number for number, place in enumerate(places) if place[1] > len(start))
            # The turn's end is learnt; what the template writes after it (a line break) is never asked for.
            ends = [number for number in range(first, len(ids)) if ids[number] in self.special]
            last = ends[-1] if ends else len(ids) - 1
            yield Encoded(np.asarray(ids[: last + 1], dtype=np.int64), first, cut=False)


class SftTask:
    """Fine-tuning on answers: a `loop.Task`. The loss is the mean cross-entropy over the answers' tokens."""

    def __init__(
        self, name: str, settings: FinetuneTask, model: Any, tokenizer: Any, examples: Examples, seed: int
    ) -> None:
        self.name, self.model, self.sequences = name, model, settings.global_batch
        self.micro_batch = settings.micro_batch
        model.config.use_cache = False  # keys and values of a past serve generation only
        self.pad = int(tokenizer.pad_token_id)
        self.seq_len = settings.seq_len
        self.format = ChatFormat(tokenizer, settings.seq_len)
        train, validation = self.format.encode(examples.train), self.format.encode(examples.validation)
        self.train = [encoded for encoded in train if encoded is not None]
        self.validation = [encoded for encoded in validation if encoded is not None]
        self.counts = {
            "truncated": sum(encoded.cut for encoded in self.train),
            "long_completion": len(train) - len(self.train),
            "target_tokens": sum(encoded.targets for encoded in self.train),
            "tokens": sum(len(encoded.tokens) for encoded in self.train),
        }
        if not self.train or not self.validation:
            raise DataError(f"{name}: no completion fits into seq_len {settings.seq_len}; raise it")
        self.epochs = Epochs([len(encoded.tokens) for encoded in self.train], settings.global_batch, seed)
        self.steps = max(1, round(settings.epochs * self.epochs.steps))
        self.tokens_per_step = round(self.counts["tokens"] / self.epochs.steps)
        targets = self.counts["target_tokens"] / self.epochs.steps
        self.flops_per_step = training_flops(model, self.tokens_per_step, targets)
        data = digest((encoded.first, encoded.tokens) for encoded in self.train)
        self.fingerprint = fingerprint([data, settings.settings(), seed])
        self._keeps = takes_positions(model)

    def targets(self, step: int) -> int:
        """Answer tokens in the step's batch."""
        return sum(self.train[number].targets for number in self.epochs.examples(step) if number >= 0)

    def batch(self, sequences: Sequence[int]) -> Batch:
        """See `rows`."""
        numbers = [self.epochs.example(sequence) for sequence in sequences]
        return self.rows([self.train[number] if number >= 0 else None for number in numbers])

    def rows(self, examples: Sequence[Encoded | None]) -> Batch:
        """tokens (rows, width) int64, right-padded; positions (kept,) int64: columns with a target in any row; targets
        (rows, kept) int64: the token after each position, -100 where it is not learnt."""
        longest = max((len(encoded.tokens) - 1 for encoded in examples if encoded is not None), default=1)
        width = padded_length(longest, self.seq_len)
        tokens = np.full((len(examples), width), self.pad, dtype=np.int64)
        targets = np.full((len(examples), width), IGNORED, dtype=np.int64)
        for row, encoded in enumerate(examples):
            if encoded is not None:
                last = len(encoded.tokens) - 1
                tokens[row, :last] = encoded.tokens[:-1]
                targets[row, encoded.first - 1 : last] = encoded.tokens[encoded.first :]
        positions = np.flatnonzero((targets != IGNORED).any(axis=0))
        if not len(positions):
            positions = np.zeros(1, dtype=np.int64)  # a rank with padding alone still takes part
        return {
            "tokens": torch.from_numpy(tokens),
            "positions": torch.from_numpy(positions),
            "targets": torch.from_numpy(targets[:, positions]),
        }

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the cross-entropy over the answers' tokens, fp32."""
        if self._keeps:
            logits = model(input_ids=batch["tokens"], logits_to_keep=batch["positions"]).logits
        else:
            logits = model(input_ids=batch["tokens"]).logits[:, batch["positions"]]
        return F.cross_entropy(
            logits.flatten(0, 1).float(), batch["targets"].flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def validate(self, model: nn.Module, ranks: Ranks, reduce_sum: ReduceSum) -> dict[str, float]:
        """loss: mean over the held-out answers' tokens."""
        by_length = sorted(self.validation, key=lambda encoded: len(encoded.tokens))
        total, targets = 0.0, 0
        for rows in shares(by_length, self.micro_batch, ranks):
            batch = {name: value.to(_device_of(model)) for name, value in self.rows(rows).items()}
            total += float(self.loss_sum(model, batch))
            targets += sum(encoded.targets for encoded in rows if encoded is not None)
        total, count = reduce_sum([total, float(targets)])
        return {"loss": total / count}

    def end_token(self) -> int | None:
        """The token that ends an answer; None when the template writes none."""
        last = int(self.train[0].tokens[-1])
        return last if last in self.format.special else None

    def model_inputs(self) -> Batch:
        """One held-out example as the model's keyword arguments, to compare a saved model with the trained one."""
        return {"input_ids": torch.from_numpy(self.validation[0].tokens[None])}

    def shown(self, tokenizer: Any, number: int) -> str:
        """A training example as the model sees it, what is learnt between ⟦ and ⟧."""
        encoded = self.train[number]
        before = tokenizer.decode(encoded.tokens[: encoded.first])
        return f"{before}⟦{tokenizer.decode(encoded.tokens[encoded.first :])}⟧"


def shares(items: Sequence[Any], size: int, ranks: Ranks) -> Iterable[list[Any]]:
    """This rank's batches of `size` items, as many on every rank; None fills what is missing."""
    for first in range(0, len(items), size * ranks.world_size):
        block = [*items[first : first + size * ranks.world_size]]
        mine = block[ranks.rank :: ranks.world_size]
        yield mine + [None] * (size - len(mine))


def digest(examples: Iterable[tuple[int, npt.NDArray[np.int64]]]) -> str:
    """SHA-256 of encoded examples, each a number and tokens, in their order."""
    found = hashlib.sha256()
    for number, tokens in examples:
        found.update(np.asarray([number, len(tokens)], dtype="<i8").tobytes() + tokens.astype("<i8").tobytes())
    return found.hexdigest()


def takes_positions(model: Any) -> bool:
    """Whether the model computes logits at given positions only; of `transformers`' own models all do."""
    own = "logits_to_keep" in inspect.signature(model.forward).parameters
    return own and type(model).__module__.startswith("transformers.")


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
