"""The block-wise cross-entropy against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pipeline.model import loss as loss_module
from pipeline.model.loss import cross_entropy_sum


def reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")


def draw(rows: int, vocab: int, ignored: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    targets = torch.randint(vocab, (rows,))
    targets[:ignored] = -100
    return torch.randn(rows, 8, requires_grad=True), torch.randn(vocab, 8, requires_grad=True), targets


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), vocab=st.integers(2, 30), ignored=st.integers(0, 40), block=st.integers(1, 1200))
def test_value_and_gradients_for_any_block(rows: int, vocab: int, ignored: int, block: int) -> None:
    hidden, weight, targets = draw(rows, vocab, ignored)
    whole = loss_module.BLOCK_ELEMENTS
    loss_module.BLOCK_ELEMENTS = block
    try:
        found = cross_entropy_sum(hidden, weight, targets)
        gradients = torch.autograd.grad(found * 0.25, (hidden, weight))
        with torch.no_grad():
            torch.testing.assert_close(cross_entropy_sum(hidden, weight, targets), found.detach())
    finally:
        loss_module.BLOCK_ELEMENTS = whole
    expected = reference(hidden, weight, targets)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    for mine, theirs in zip(gradients, torch.autograd.grad(expected * 0.25, (hidden, weight)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_no_target_counts() -> None:
    hidden, weight, targets = draw(5, 11, ignored=5)
    found = cross_entropy_sum(hidden, weight, targets)
    assert found.item() == 0
    assert all(bool((grad == 0).all()) for grad in torch.autograd.grad(found, (hidden, weight)))


@pytest.mark.parametrize("block", [1 << 25, 64])
def test_bf16_sums_in_fp32(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "BLOCK_ELEMENTS", block)
    hidden, weight, targets = draw(256, 64, ignored=3)
    low = [hidden.detach().bfloat16().requires_grad_(), weight.detach().bfloat16().requires_grad_()]
    found = cross_entropy_sum(low[0], low[1], targets)
    assert found.dtype == torch.float32
    exact = [tensor.detach().float().requires_grad_() for tensor in low]
    expected = reference(exact[0], exact[1], targets)
    assert found.item() == pytest.approx(expected.item(), rel=2e-3)
    for mine, theirs in zip(torch.autograd.grad(found, low), torch.autograd.grad(expected, exact), strict=True):
        assert (mine.float() - theirs).norm() < 0.02 * theirs.norm()
