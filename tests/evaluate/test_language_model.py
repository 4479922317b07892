"""Bits per byte: hand-worked on models whose answers are known, and each token counted once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import LlamaForCausalLM

from pipeline.corpus.document import Document
from pipeline.errors import DataError
from pipeline.evaluate import language_model
from pipeline.evaluate.language_model import Cost, batches, document_costs, negative_log_likelihoods, windows
from pipeline.model.directory import load_causal_model
from pipeline.progress import Progress
from pipeline.tokens.encode import Encoder

TEXTS = ["The river runs to the sea.", "", "月光 and <|endoftext|> in a text", "x" * 70]


@pytest.fixture
def model(run_folder: Path) -> Any:
    return load_causal_model(run_folder / "model")[0]


@pytest.fixture
def encoder(run_folder: Path) -> Encoder:
    return Encoder.open(run_folder / "model")


def cost(model: Any, encoder: Encoder, texts: list[str], context: int, stride: int, batch: int = 3) -> Cost:
    return sum((one for _, one in costs(model, encoder, texts, context, stride, batch)), Cost())


def costs(
    model: Any, encoder: Encoder, texts: list[str], context: int, stride: int, batch: int = 3
) -> list[tuple[Document, Cost]]:
    documents = (Document(text, str(number), "test") for number, text in enumerate(texts))
    bar = Progress("test", 0, "B")
    return list(document_costs(model, encoder, documents, context=context, stride=stride, batch=batch, bar=bar))


def ids(encoder: Encoder, texts: list[str]) -> list[int]:
    """The stream that the docstring promises: end of text, then each document with its end of text."""
    return [0, *(token for text in texts for token in [*encoder.encode([text])[0].tolist(), 0])]


def test_uniform_model_costs_log2_of_the_vocabulary_a_token(model: LlamaForCausalLM, encoder: Encoder) -> None:
    torch.nn.init.zeros_(model.lm_head.weight)
    found = cost(model, encoder, TEXTS, context=16, stride=8)
    tokens = len(ids(encoder, TEXTS)) - 1
    size = len("".join(TEXTS).encode())
    assert (found.tokens, found.bytes, found.documents) == (tokens, size, 4)
    table = found.table()
    assert table["bits_per_byte"] == pytest.approx(math.log2(model.config.vocab_size) * tokens / size, rel=1e-5)
    assert table["perplexity"] == pytest.approx(model.config.vocab_size, rel=1e-4)


def test_text_that_fits_one_window_is_one_forward_pass(model: LlamaForCausalLM, encoder: Encoder) -> None:
    texts = TEXTS[:2]
    stream = torch.tensor(ids(encoder, texts))
    with torch.inference_mode():
        expected = functional.cross_entropy(model(stream[None, :-1]).logits[0], stream[1:], reduction="sum")
    for stride in (1, 20, 60):
        assert cost(model, encoder, texts, context=60, stride=stride).nats == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("stride", [1, 5, 12])
def test_each_target_is_predicted_from_the_stated_context(
    model: LlamaForCausalLM, encoder: Encoder, stride: int
) -> None:
    context, texts = 12, TEXTS[:3]
    stream = ids(encoder, texts)
    expected = 0.0
    for target in range(1, len(stream)):  # the slow way: the window's start for each target by itself
        ends = [*range(context, len(stream) - 1, stride), len(stream) - 1]
        end = next(end for end in ends if end >= target)
        with torch.inference_mode():
            logits = model(torch.tensor([stream[end - context : target]])).logits[0, -1]
        expected += float(functional.cross_entropy(logits, torch.tensor(stream[target])))
    assert cost(model, encoder, texts, context, stride).nats == pytest.approx(expected, rel=1e-5)


def test_each_document_pays_for_its_own_tokens(model: LlamaForCausalLM, encoder: Encoder) -> None:
    texts = [*TEXTS, "", "y"]
    stream = torch.tensor(ids(encoder, texts))
    with torch.inference_mode():
        losses = functional.cross_entropy(model(stream[None, :-1]).logits[0], stream[1:], reduction="none")
    sizes = [len(encoder.encode([text])[0]) + 1 for text in texts]
    expected = [float(part.sum()) for part in torch.split(losses, sizes)]
    found = costs(model, encoder, texts, context=200, stride=200)
    assert [document.text for document, _ in found] == texts
    assert [one.nats for _, one in found] == pytest.approx(expected, rel=1e-4)
    assert [one.tokens for _, one in found] == sizes
    assert [one.bytes for _, one in found] == [len(text.encode()) for text in texts]
    cut = costs(model, encoder, texts, context=7, stride=3, batch=2)  # documents end within windows
    assert [one.tokens for _, one in cut] == sizes


def test_batch_and_logits_at_once_change_nothing(
    model: LlamaForCausalLM, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cost(model, encoder, TEXTS, 10, 5, batch=1)
    assert cost(model, encoder, TEXTS, 10, 5, batch=7).nats == pytest.approx(one.nats, rel=1e-6)
    monkeypatch.setattr(language_model, "LOGITS", 1)
    assert cost(model, encoder, TEXTS, 10, 5, batch=7).nats == pytest.approx(one.nats, rel=1e-6)


def test_models_that_cannot_leave_out_logits(model: LlamaForCausalLM) -> None:
    class Plain(torch.nn.Module):
        """Like older architectures: all logits, whatever is asked."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config = model, model.config

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
            return SimpleNamespace(logits=model(input_ids, use_cache=use_cache).logits)

    inputs = np.arange(27, dtype=np.int64).reshape(3, 9)
    expected = negative_log_likelihoods(model, inputs, 4)
    assert expected.shape == (3, 4)
    torch.testing.assert_close(negative_log_likelihoods(Plain(), inputs, 4), expected)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[list[int], int, int]:
    context = draw(st.integers(1, 9))
    return draw(st.lists(st.integers(0, 12), max_size=6)), context, draw(st.integers(1, context))


@given(cuts())
def test_windows_score_every_token_but_the_first_once_and_in_order(cut: tuple[list[int], int, int]) -> None:
    sizes, context, stride = cut
    total = sum(sizes)

    def stream() -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
        first = 0
        for size in sizes:
            yield np.arange(first, first + size)
            first += size

    found = list(windows(stream(), context, stride))
    scored = [int(token) for window, count in found for token in window[-count:]]
    assert scored == list(range(1, total))
    for window, count in found:
        assert len(window) == min(context + 1, total)
        assert np.array_equal(window, np.arange(window[0], window[0] + len(window)))
        assert window[0] == 0 or count <= stride


@given(cuts(), st.integers(1, 4))
def test_batches_keep_all_windows_in_order(cut: tuple[list[int], int, int], count: int) -> None:
    sizes, context, stride = cut
    found = list(windows(iter([np.arange(sum(sizes))]), context, stride))
    grouped = [(row.tolist(), scored) for rows, scored in batches(found, count) for row in rows]
    assert grouped == [(window.tolist(), scored) for window, scored in found]


@pytest.mark.parametrize("nats", [math.nan, math.inf, 1e6])
def test_broken_weights_are_named(nats: float) -> None:
    with pytest.raises(DataError, match="weights are broken"):
        Cost(nats, 10, 40, 1).table()
