"""Attention by blocks on a CPU against torch's own, in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.cpu_attention import BLOCK, MAX_SEQ, causal_attention, suits
from pipeline.model.recompute import Kind, keep_activations
from pipeline.model.transformer import Transformer
from pipeline.recipe import ModelSettings

SHAPES = [
    (2, 4, 4, 1, 8),
    (1, 2, 1, BLOCK, 16),
    (2, 6, 2, BLOCK + 1, 16),
    (1, 4, 1, 3 * BLOCK - 5, 32),
    (1, 4, 4, MAX_SEQ, 64),
]


def inputs(batch: int, heads: int, kv_heads: int, seq: int, dim: int) -> tuple[list[Tensor], Tensor]:
    """Query, key and value as the model makes them (heads beside each other in memory), and a gradient."""
    torch.manual_seed(seq)
    made = [3 * torch.randn(batch, seq, number, dim) for number in (heads, kv_heads, kv_heads, heads)]
    rounded = [each.to(torch.bfloat16).transpose(1, 2) for each in made]
    return [each.requires_grad_() for each in rounded[:3]], rounded[3]


def run(attend: object, leaves: list[Tensor], gradient: Tensor) -> list[Tensor]:
    assert callable(attend)
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient.to(out.dtype))]


def torchs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / (truth.norm() + 1e-9))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_as_exact_as_torchs(shape: tuple[int, int, int, int, int]) -> None:
    leaves, gradient = inputs(*shape)
    truth = run(lambda *given: torchs(*(each.double() for each in given)), leaves, gradient)
    ours, others = run(causal_attention, leaves, gradient), run(torchs, leaves, gradient)
    for mine, other, exact, leaf in zip(ours, others, truth, [leaves[0], *leaves], strict=True):
        assert mine.shape == leaf.shape and mine.dtype == torch.bfloat16
        assert error(mine, exact.double()) <= 1.1 * error(other, exact.double()) + 1e-3


def test_large_scores_are_not_rounded_before_they_are_exponentiated() -> None:
    leaves, gradient = inputs(1, 2, 2, 200, 64)
    with torch.no_grad():
        leaves[0].mul_(8)
    truth = run(lambda *given: torchs(*(each.double() for each in given)), leaves, gradient)[0]
    assert error(run(causal_attention, leaves, gradient)[0], truth.double()) < 0.004  # rounded: .04


def test_the_future_changes_nothing() -> None:
    leaves, _ = inputs(1, 2, 1, 2 * BLOCK, 16)
    before = causal_attention(*leaves)
    with torch.no_grad():
        for leaf in leaves:
            leaf[:, :, BLOCK + 7 :] = 1e3
    assert torch.equal(causal_attention(*leaves)[:, :, : BLOCK + 7], before[:, :, : BLOCK + 7])


@pytest.mark.parametrize("batch", [1, 2])  # of one, key and value are views with other strides
def test_stock_checks_of_a_custom_operation(batch: int) -> None:
    leaves, gradient = inputs(batch, 4, 2, BLOCK + 3, 8)
    operations = torch.ops.headwater
    torch.library.opcheck(operations.causal_attention.default, (*leaves, True))
    given = [each.detach() for each in leaves]
    kept = operations.causal_attention(*given, True)[1]
    torch.library.opcheck(operations.causal_attention_backward.default, (gradient, *given, kept))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_where_the_model_uses_it(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(
        "pipeline.model.transformer.causal_attention", lambda *given: used.append(1) or causal_attention(*given)
    )
    model = Transformer(ModelSettings(dim=32, layers=2, heads=4, kv_heads=2, max_seq_len=64), 40).to(dtype)
    tokens = torch.arange(64).remainder(40)[None]
    model(tokens, tokens).backward()
    assert len(used) == (2 if dtype == torch.bfloat16 else 0)
    assert not suits(torch.empty(1, 1, MAX_SEQ + 1, 8, dtype=torch.bfloat16))
    assert not suits(torch.empty(0, 1, 8, 8, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):  # ZeRO-0
        found = model(tokens, tokens)
    assert len(used) == (4 if dtype == torch.bfloat16 else 2)
    assert found.isfinite()


def test_without_gradients_it_is_the_same_and_keeps_nothing() -> None:
    leaves, _ = inputs(1, 4, 2, BLOCK + 9, 16)
    kept = causal_attention(*leaves)
    with torch.no_grad():
        assert torch.equal(causal_attention(*leaves), kept)
    assert torch.ops.headwater.causal_attention(*leaves, False)[1].numel() == 0


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_recomputed_it_is_the_same_to_the_bit(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[list[int]] = []
    monkeypatch.setattr(
        "pipeline.model.transformer.causal_attention", lambda *given: runs[-1].append(1) or causal_attention(*given)
    )
    gradients = []
    for activations in ("none", kind):
        runs.append([])
        torch.manual_seed(0)
        model = Transformer(ModelSettings(dim=32, layers=2, heads=4, kv_heads=2, max_seq_len=192), 40).bfloat16()
        keep_activations(model, activations)  # type: ignore[arg-type]
        tokens = torch.arange(192).remainder(40)[None]
        model(tokens, tokens).backward()
        gradients.append([weight.grad for weight in model.parameters()])
    assert [len(calls) for calls in runs] == [2, 4]
    for mine, other in zip(*gradients, strict=True):
        assert mine is not None and other is not None
        assert torch.equal(mine, other)
