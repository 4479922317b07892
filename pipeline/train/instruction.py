"""Supervised fine-tuning on prompts and completions: the model's own chat template, loss on the answer alone.

What is learnt are the tokens after the template's opening of each of the assistant's turns, up to and with the token
that ends the turn. Rows are padded on the right and read causally, so padding is never seen by a real token and no
attention mask is needed. With packing a row holds several examples, kept apart by their positions (packed_rows.py). The
output layer works only where there are targets: most of a row is prompt.
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
from pipeline.train.example import Example, without_oldest
from pipeline.train.examples import Examples
from pipeline.train.packed_rows import check_kept_apart, pack
from pipeline.train.shown import Shown
from pipeline.train.task import Batch, ReduceSum

IGNORED = -100
AT_ONCE = 1000  # examples that the tokenizer is given together


@dataclass(frozen=True)
class Encoded:
    """One example as the model sees it. tokens: 1-D int64; learnt: which of them are learnt, 1-D bool; cut: whether it
    was shortened to fit."""

    tokens: npt.NDArray[np.int64]
    learnt: npt.NDArray[np.bool_]
    cut: bool

    @property
    def targets(self) -> int:
        """Tokens that are learnt."""
        return int(self.learnt.sum())

    @property
    def first(self) -> int:
        """Place of the first token that is learnt."""
        return int(self.learnt.argmax())


class ChatFormat:
    """Examples to tokens, by a tokenizer's chat template.

    Raises: DataError when the template opens no turn for the assistant that an answer continues.
    """

    def __init__(self, tokenizer: Any, seq_len: int) -> None:
        self.tokenizer, self.seq_len = tokenizer, seq_len
        self.special = set(tokenizer.all_special_ids)

    def text(self, turns: Sequence[tuple[str, str]], opens: bool = False) -> str:
        """Turns (role, content) in the template's words. opens: with the beginning of the assistant's next turn."""
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            made: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens)
        except Exception as error:  # whatever the template raises: of roles that it does not know, of their order
            roles = ", ".join(role for role, _ in turns)
            raise DataError(f"the chat template refuses a chat of {roles}: {str(error).splitlines()[0]}") from error
        return made

    def encode(self, examples: Sequence[Example]) -> list[Encoded | None]:
        """Tokens of each example, at most seq_len; None where the completion alone is too long.

        Of a chat the oldest turns are left out where it must be, of a prompt the end, never the last answer.
        """
        parts = (examples[first : first + AT_ONCE] for first in range(0, len(examples), AT_ONCE))
        found: list[Encoded | None] = [encoded for part in parts for encoded in self._encode(part)]
        for number, (example, encoded) in enumerate(zip(examples, found, strict=True)):
            if encoded is not None and len(encoded.tokens) > self.seq_len:
                found[number] = self._shortened(example)
        return found

    def _shortened(self, example: Example) -> Encoded | None:
        """The example with as much of the prompt's beginning as fits: cut, encode, and cut again what is still over."""
        if example.messages:
            kept = without_oldest([role for role, _ in example.messages])
            if kept is None:
                return None
            turns = tuple(example.messages[turn] for turn in kept)
            shorter = Example(example.id, example.text, example.answer, messages=turns)
            encoded = next(self._encode([shorter]))
            if len(encoded.tokens) > self.seq_len:
                return self._shortened(shorter)
            return Encoded(encoded.tokens, encoded.learnt, cut=True)
        prompt = self.tokenizer(example.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        keep = len(prompt)
        encoded = next(self._encode([example]))
        while len(encoded.tokens) > self.seq_len:
            keep -= len(encoded.tokens) - self.seq_len
            if keep <= 0:
                return None
            text = example.text[: prompt[keep - 1][1]].rstrip()
            encoded = next(self._encode([Example(example.id, text, example.answer)]))
        return Encoded(encoded.tokens, encoded.learnt, cut=True)

    def _encode(self, examples: Sequence[Example]) -> Iterator[Encoded]:
        whole = [self.text(example.chat) for example in examples]
        encoded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        for example, text, ids, places in zip(
            examples, whole, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            begins, ends = (np.asarray(column, dtype=np.int64) for column in zip(*places, strict=True))
            learnt = np.zeros(len(ids), dtype=bool)
            for start, end in self._answers(example, text):
                turn = np.flatnonzero((ends > start) & (begins < end))
                # The turn's end is learnt; what the template writes after it (a line break) is never asked for.
                closing = [number for number in turn if ids[number] in self.special]
                learnt[turn[0] : (closing[-1] if closing else turn[-1]) + 1] = True
            last = int(np.flatnonzero(learnt)[-1])
            yield Encoded(np.asarray(ids[: last + 1], dtype=np.int64), learnt[: last + 1], cut=False)

    def _answers(self, example: Example, text: str) -> Iterator[tuple[int, int]]:
        """Where in `text` each of the assistant's turns begins and ends."""
        turns = example.chat
        for number, (role, _) in enumerate(turns):
            if role != "assistant" or not number:
                continue
            start = self.text(turns[:number], opens=True)
            until = text if number == len(turns) - 1 else self.text(turns[: number + 1])
            if not until.startswith(start) or len(until) == len(start) or not text.startswith(until):
                raise DataError(
                    "the chat template's text with an answer does not continue its text without one "
                    f"(… {start[-60:]!r}); give the base model another chat_template"
                )
            yield len(start), len(until)


class SftTask:
    """Fine-tuning on answers: a `task.Task`. The loss is the mean cross-entropy over the answers' tokens.

    packed: the numbers of the examples in each row; one each, unless the task packs.
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
        self.format = ChatFormat(tokenizer, settings.seq_len)
        chosen = [examples.train, examples.validation]
        if settings.task == "seq2seq":
            chosen = [tuple(prompted(example, settings.prompt) for example in part) for part in chosen]
        train, validation = map(self.format.encode, chosen)
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
        lengths = np.asarray([len(encoded.tokens) for encoded in self.train], dtype=np.int64)
        self.packed = [[number] for number in range(len(lengths))]
        self.packs = settings.packing
        if self.packs:
            check_kept_apart(model, name)
            self.packed = pack(np.maximum(lengths - 1, 1), settings.seq_len)  # the last token is a target only
            self.counts["rows"] = len(self.packed)
        self.epochs = Epochs([int(lengths[row].sum()) for row in self.packed], settings.global_batch, seed)
        self.steps = max(1, round(settings.epochs * self.epochs.steps))
        self.tokens_per_step = round(self.counts["tokens"] / self.epochs.steps)
        targets = self.counts["target_tokens"] / self.epochs.steps
        self.flops_per_step = training_flops(model, self.tokens_per_step, targets)
        data = digest((encoded.learnt, encoded.tokens) for encoded in self.train)
        self.fingerprint = fingerprint([data, settings.settings(), seed])
        self._keeps = takes_positions(model)

    def targets(self, step: int) -> int:
        """Answer tokens in the step's batch."""
        rows = [self.packed[row] for row in self.epochs.examples(step) if row >= 0]
        return sum(self.train[number].targets for row in rows for number in row)

    def batch(self, sequences: Sequence[int]) -> Batch:
        """See `rows`."""
        rows = [self.epochs.example(sequence) for sequence in sequences]
        return self.rows([[self.train[number] for number in self.packed[row]] if row >= 0 else [] for row in rows])

    def rows(self, examples: Sequence[Sequence[Encoded]]) -> Batch:
        """Of the examples in each row: tokens (rows, width) int64, right-padded; positions (kept,) int64: columns with
        a target in any row; targets (rows, kept) int64: the token after each position, -100 where it is not learnt;
        where the task packs, places (rows, width) int64: of each token in its example, of padding in the padding."""
        longest = max((sum(len(encoded.tokens) - 1 for encoded in row) for row in examples), default=1)
        width = padded_length(longest, self.seq_len)
        tokens = np.full((len(examples), width), self.pad, dtype=np.int64)
        targets = np.full((len(examples), width), IGNORED, dtype=np.int64)
        places = np.zeros((len(examples), width), dtype=np.int64)
        for row, some in enumerate(examples):
            begin = 0
            for encoded in some:
                end = begin + len(encoded.tokens) - 1
                tokens[row, begin:end] = encoded.tokens[:-1]
                targets[row, begin:end] = np.where(encoded.learnt[1:], encoded.tokens[1:], IGNORED)
                places[row, begin:end] = np.arange(end - begin)
                begin = end
            places[row, begin:] = np.arange(width - begin)
        positions = np.flatnonzero((targets != IGNORED).any(axis=0))
        if not len(positions):
            positions = np.zeros(1, dtype=np.int64)  # a rank with padding alone still takes part
        arrays = {"tokens": tokens, "positions": positions, "targets": targets[:, positions]}
        if self.packs:
            arrays["places"] = places
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @property
    def padding(self) -> float:
        """Share of the places in an epoch's rows of seq_len that hold nothing."""
        return 1 - sum(len(encoded.tokens) - 1 for encoded in self.train) / (len(self.packed) * self.seq_len)

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the cross-entropy over the answers' tokens, fp32."""
        apart = {"position_ids": batch["places"]} if "places" in batch else {}
        if self._keeps:
            logits = model(input_ids=batch["tokens"], logits_to_keep=batch["positions"], **apart).logits
        else:
            logits = model(input_ids=batch["tokens"], **apart).logits[:, batch["positions"]]
        return F.cross_entropy(
            logits.flatten(0, 1).float(), batch["targets"].flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def validate(self, model: nn.Module, ranks: Ranks, reduce_sum: ReduceSum) -> dict[str, float]:
        """loss: mean over the held-out answers' tokens."""
        by_length = sorted(self.validation, key=lambda encoded: len(encoded.tokens))
        total, targets = 0.0, 0
        for examples in shares(by_length, self.micro_batch, ranks):
            rows = [[] if encoded is None else [encoded] for encoded in examples]
            batch = {name: value.to(_device_of(model)) for name, value in self.rows(rows).items()}
            total += float(self.loss_sum(model, batch))
            targets += sum(encoded.targets for row in rows for encoded in row)
        total, count = reduce_sum([total, float(targets)])
        return {"loss": total / count}

    def end_token(self) -> int | None:
        """The token that ends an answer; None when the template writes none."""
        last = int(self.train[0].tokens[-1])
        return last if last in self.format.special else None

    def model_inputs(self) -> Batch:
        """One held-out example as the model's keyword arguments, to compare a saved model with the trained one."""
        return {"input_ids": torch.from_numpy(self.validation[0].tokens[None])}

    def shown(self, tokenizer: Any, number: int) -> Shown:
        """A row of training examples as the model sees it; packed, with the place of each token in its example."""
        row = [self.train[one] for one in self.packed[number]]
        tokens = [token for encoded in row for token in encoded.tokens.tolist()]
        learnt = [one for encoded in row for one in encoded.learnt.tolist()]
        places = [place for encoded in row for place in range(len(encoded.tokens))]
        return Shown.of(tokenizer, tokens, learnt, **({"places": places} if self.packs else {}))


def prompted(example: Example, prompt: str) -> Example:
    """An example of seq2seq with the task's prompt around its source."""
    return Example(example.id, prompt.replace("{source}", example.text), example.answer)


def shares(items: Sequence[Any], size: int, ranks: Ranks) -> Iterable[list[Any]]:
    """This rank's batches of `size` items, as many on every rank; None fills what is missing."""
    for first in range(0, len(items), size * ranks.world_size):
        block = [*items[first : first + size * ranks.world_size]]
        mine = block[ranks.rank :: ranks.world_size]
        yield mine + [None] * (size - len(mine))


def digest(examples: Iterable[tuple[npt.ArrayLike, npt.NDArray[np.int64]]]) -> str:
    """SHA-256 of encoded examples, each what is to be learnt of it and tokens, in their order."""
    found = hashlib.sha256()
    for answer, tokens in examples:
        numbers = np.asarray(answer, dtype="<f8").reshape(-1)
        found.update(np.asarray([len(numbers), len(tokens)], dtype="<i8").tobytes())
        found.update(numbers.tobytes() + tokens.astype("<i8").tobytes())
    return found.hexdigest()


def takes_positions(model: Any) -> bool:
    """Whether the model computes logits at given positions only; of `transformers`' own models all do."""
    own = "logits_to_keep" in inspect.signature(model.forward).parameters
    return own and type(model).__module__.startswith("transformers.")


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
