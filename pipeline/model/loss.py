"""Cross-entropy of a language model's last layer, without holding all logits in fp32.

The logits of a batch are by far its largest tensor (batch · seq · vocab). `cross_entropy_sum` makes them a block of
rows at a time, and while a block is at hand also makes its share of the gradients: nothing of size rows · vocab
outlives its block, and the logits are computed once. The idea is that of Liger Kernel's fused linear cross-entropy
(Hsu et al. 2024, arXiv:2410.10989), in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # a target that does not count
BLOCK_ELEMENTS = 1 << 25  # logits made at once: 64 MiB in bf16
PIECE_ELEMENTS = 1 << 19  # of these, turned to fp32 at once on a CPU: 2 MiB stay in its cache (1.7 times as fast)


def cross_entropy_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, gradient: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Tensor:
    """Sum of -log p(target) in fp32 nats, over the targets that are not -100.

    hidden: (rows, dim); weight: (vocab, dim), the output layer; targets: (rows,) int64. Logits are made in the dtype
    of `hidden`; the softmax is fp32. gradient: `softmax_gradient`, or what a compiler has made of it. Returns a scalar,
    differentiable once in hidden and weight.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        loss: Tensor = _CrossEntropySum.apply(hidden, weight, targets, gradient or softmax_gradient)  # type: ignore[no-untyped-call]
        return loss
    total = hidden.new_zeros((), dtype=torch.float32)
    for rows in _blocks(hidden, weight):
        logits = F.linear(hidden[rows], weight).float()
        total += F.cross_entropy(logits, targets[rows], ignore_index=IGNORE, reduction="sum")
    return total


def _blocks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Slices of the rows of `hidden` whose logits are made together."""
    rows = max(1, BLOCK_ELEMENTS // weight.size(0))
    return [slice(first, first + rows) for first in range(0, hidden.size(0), rows)]


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, gradient: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        blocks = _blocks(hidden, weight)
        total = hidden.new_zeros((), dtype=torch.float32)
        hidden_grad = torch.empty_like(hidden)
        weight_grad: Tensor | None = None
        for rows in blocks:
            block, wanted = hidden[rows], targets[rows]
            logits = F.linear(block, weight)
            total += gradient(logits, wanted)
            counts = (wanted != IGNORE)[:, None].to(hidden.dtype)  # here, where rows are dim wide and not vocab
            hidden_grad[rows] = (logits @ weight) * counts
            share = logits.t() @ (block * counts)
            if len(blocks) > 1:  # summed in fp32: bf16 would lose the small shares
                share = share.float() if weight_grad is None else weight_grad.add_(share)
            weight_grad = share
        assert weight_grad is not None, "a batch has rows"
        # Not save_for_backward, which would hold them while autograd takes them over: it would copy both.
        ctx.gradients = hidden_grad, weight_grad.to(weight.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_grad, weight_grad = ctx.gradients
        del ctx.gradients  # differentiable once
        scale = upstream[0]
        return hidden_grad.mul_(scale.to(hidden_grad.dtype)), weight_grad.mul_(scale.to(weight_grad.dtype)), None, None


def softmax_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropy; `logits` (rows, vocab) is overwritten with softmax − one-hot, its gradient.

    Rows whose target is -100 add nothing to the sum; what is left in them has no meaning.
    """
    total = logits.new_zeros((), dtype=torch.float32)
    # A compiler fuses these operations by itself; a loop would only be unrolled before its eyes.
    cached = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    rows = max(1, PIECE_ELEMENTS // logits.size(1)) if cached else logits.size(0)
    for piece, wanted in zip(logits.split(rows), targets.split(rows), strict=True):  # type: ignore[no-untyped-call]
        scores = torch.log_softmax(piece, dim=-1, dtype=torch.float32)
        total += F.nll_loss(scores, wanted, ignore_index=IGNORE, reduction="sum")
        places = wanted.clamp(min=0)[:, None]
        scores.exp_().scatter_add_(1, places, torch.full_like(places, -1, dtype=scores.dtype))
        piece.copy_(scores)
    return total
