"""Loss, perplexity and bits per byte of a causal language model on held-out text.

Documents are read one after another, each ended by the end-of-text token, as in pretraining. The model predicts every
token once, the end-of-text tokens too: their cost counts, though they carry no byte of text, so that bits per byte is
the full price of storing the text with its document ends. The very first token is predicted from an end-of-text token.

A window of `context` tokens slides over the text by `stride` tokens, and only the targets that are new in it are
scored. Each target but the first window's is then predicted from at least `context - stride` tokens: smaller strides
give lower, fairer figures at more cost (Hugging Face, "Perplexity of fixed-length models"; Baevski & Auli 2019).
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from pipeline.corpus.document import Document, in_batches, utf8_bytes
from pipeline.errors import DataError
from pipeline.progress import Progress
from pipeline.tokens.encode import Encoder

Tokens = NDArray[np.int64]
ENCODE_CHARACTERS = 1 << 17  # characters of text that are encoded at once
LOGITS = 1 << 26  # logits that are held at once: 256 MiB in fp32, as much again for their softmax


@dataclass(frozen=True)
class Cost:
    """What a model pays for a text: nats over `tokens` targets that stand for `bytes` of text in `documents`."""

    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0
    documents: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.nats + other.nats,
            self.tokens + other.tokens,
            self.bytes + other.bytes,
            self.documents + other.documents,
        )

    def table(self) -> dict[str, float]:
        """loss (nats a token), perplexity (its exponential), bits_per_byte (of UTF-8 text), and what was counted.

        Raises: DataError when the model's loss is not a finite number.
        """
        loss = self.nats / self.tokens
        if not loss < 700:  # exp(710) overflows; NaN is not less than anything
            raise DataError(f"the model's loss on held-out text is {loss}: its weights are broken; train it again")
        return {
            "loss": loss,
            "perplexity": math.exp(loss),
            "bits_per_byte": self.nats / math.log(2) / self.bytes,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "documents": self.documents,
        }


def document_costs(
    model: nn.Module,
    encoder: Encoder,
    documents: Iterable[Document],
    *,
    context: int,
    stride: int,
    batch: int,
    bar: Progress,
) -> Iterator[tuple[Document, Cost]]:
    """What each document of a text costs a Hugging Face causal model, its end-of-text token included, in order.

    Args: documents, in order, which are read one after another as one stream; context, tokens that the model sees at
    most; stride, how far the window slides (at most context); batch, windows at once; bar, advanced by bytes of text.
    """
    waiting: deque[tuple[Document, int, int]] = deque()  # read but not scored whole: document, its bytes and targets

    def stream() -> Iterator[Tokens]:
        yield np.array([encoder.eos_id])
        for group in in_batches(documents, ENCODE_CHARACTERS):
            for document, tokens in zip(group, encoder.encode([one.text for one in group]), strict=True):
                size = utf8_bytes(document.text)
                waiting.append((document, size, len(tokens) + 1))
                yield np.append(tokens.astype(np.int64), encoder.eos_id)
                bar.advance(size)

    nats, scored_before = 0.0, 0  # of the first document that waits
    for inputs, scored in batches(windows(stream(), context, stride), batch):
        losses = negative_log_likelihoods(model, inputs, scored).flatten().double().cpu()
        while waiting and scored_before + len(losses) >= waiting[0][2]:
            document, size, targets = waiting.popleft()
            own, losses = losses[: targets - scored_before], losses[targets - scored_before :]
            yield document, Cost(nats + float(own.sum()), targets, size, 1)
            nats, scored_before = 0.0, 0
        nats += float(losses.sum())
        scored_before += len(losses)


def windows(stream: Iterable[Tokens], context: int, stride: int) -> Iterator[tuple[Tokens, int]]:
    """Cut a stream of tokens into overlapping windows in which every token but the stream's first is scored once.

    Args: stream, its tokens in pieces of any size; context and stride, in tokens, stride ≤ context.
    Yields: (tokens (length + 1,), scored): the last `scored` of the window's `length` targets are new in it. All
    windows hold context + 1 tokens, unless the stream is shorter. Memory: one piece and one window.
    """
    held = np.empty(0, dtype=np.int64)
    done = 0  # targets in `held` that were scored before
    for piece in stream:
        held = np.concatenate([held, piece])
        while len(held) > (end := done + (stride if done else context)):
            yield held[end - context : end + 1], end - done
            held, done = held[end - context :], context
    if (left := len(held) - 1 - done) > 0:
        yield held[max(0, len(held) - 1 - context) :], left


def batches(cut: Iterable[tuple[Tokens, int]], count: int) -> Iterator[tuple[Tokens, int]]:
    """Group windows of equal length and number of targets: (tokens (≤ count, length + 1), scored)."""
    for (_, scored), group in groupby(cut, key=lambda window: (len(window[0]), window[1])):
        rows: list[Tokens] = []
        for tokens, _ in group:
            rows.append(tokens)
            if len(rows) == count:
                yield np.stack(rows), scored
                rows = []
        if rows:
            yield np.stack(rows), scored


@torch.inference_mode()
def negative_log_likelihoods(model: nn.Module, inputs: Tokens, scored: int) -> torch.Tensor:
    """Nats that each of the last `scored` targets costs: (batch, length + 1) tokens → (batch, scored), in fp32."""
    device = next(model.parameters()).device
    tokens = torch.from_numpy(inputs).to(device)
    # Most causal models can leave out logits that nobody asks for: with a large vocabulary that is half the work.
    keep = {"logits_to_keep": scored} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    rows = max(1, LOGITS // (vocabulary * (scored if keep else tokens.shape[1])))
    found = []
    for part in torch.split(tokens, rows):
        logits = model(input_ids=part[:, :-1], use_cache=False, **keep).logits[:, -scored:]
        losses = functional.cross_entropy(logits.flatten(0, 1).float(), part[:, -scored:].flatten(), reduction="none")
        found.append(losses.view(len(part), scored))
    return torch.cat(found)
