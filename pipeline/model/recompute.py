"""Activation checkpointing: what a block's forward pass made is thrown away and made again in the backward pass.

`full` (Chen et al. 2016, arXiv:1604.06174) keeps a block's input alone and computes all of it twice: a third more
operations. `selective` (Korthikanti et al. 2022, arXiv:2205.05198, by operation) keeps what matrix products and
attention gave, and computes twice only what is cheap: norms, rotations, activations, sums; and attention by blocks
(cpu_attention.py), whose weights would take more memory than all that is kept. Neither changes a bit of what comes out:
the same operations run on the same numbers.

Kept of a block at the shape of 7b.yaml in bf16, for one sequence of 4,096 (counted by torch's MemTracker, torch 2.13,
not compiled): none 889 MiB, selective 401, full 32. A compiled block keeps less than this by itself, since a compiler,
too, computes the cheap twice where that saves memory traffic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from pipeline.errors import RecipeError

Kind = Literal["none", "selective", "full"]

_aten = torch.ops.aten
KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
}


def _policy(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def arguments(kind: Literal["selective", "full"]) -> dict[str, Any]:
    """What torch.utils.checkpoint.checkpoint is to be called with, by us or by a Hugging Face model."""
    found: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        found["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    return found


def recomputed(kind: Kind, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """function(*inputs), kept as `kind` says. The function draws no random numbers."""
    if kind == "none" or not torch.is_grad_enabled():
        return function(*inputs)
    found: Tensor = checkpoint(function, *inputs, preserve_rng_state=False, **arguments(kind))
    return found


def keep_activations(model: nn.Module, kind: Kind) -> None:
    """Let a model keep what `kind` says: a Transformer of ours, or a Hugging Face one.

    Raises: RecipeError for a model that cannot.
    """
    blocks = getattr(model, "blocks", None)
    if blocks is not None:
        for block in blocks:
            block.activations = kind
    elif kind == "none":
        return
    elif getattr(model, "supports_gradient_checkpointing", False):
        known: Any = model
        if hasattr(model, "activation_checkpointing_enable"):  # transformers' new name
            known.activation_checkpointing_enable(arguments(kind))
        else:
            known.gradient_checkpointing_enable(arguments(kind))
    else:
        raise RecipeError(f"activation_checkpointing: {type(model).__name__} cannot; set it to none")
