"""What a model costs, counted against real models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model.build import build_model, flops_per_token, parameter_count
from pipeline.recipe import ModelSettings

Tiny = Callable[..., ModelSettings]


@pytest.mark.parametrize("architecture", ["transformer", "lstm"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameter_count_is_that_of_the_model(tiny: Tiny, architecture: str, tied: bool) -> None:
    settings = tiny(architecture=architecture, tied_embeddings=tied)
    model = build_model(settings, 333, seed=0)
    assert parameter_count(settings, 333) == sum(weight.numel() for weight in model.parameters())


def test_parameter_count_of_llama_7b() -> None:
    settings = ModelSettings(dim=4096, layers=32, heads=32, ffn_dim=11008, tied_embeddings=False)
    assert parameter_count(settings, 32_000) == 6_738_415_616  # as Llama 2 7B's safetensors index states


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_flops_are_those_that_pytorch_counts(tiny: Tiny, kv_heads: int) -> None:
    settings = tiny(kv_heads=kv_heads)
    model = build_model(settings, 333, seed=0)
    tokens = torch.randint(333, (2, 16))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model.loss_sum(tokens, tokens).backward()  # type: ignore[operator]
    # PyTorch counts attention without the causal half.
    whole = flops_per_token(settings, 333, 16) + 6 * settings.layers * 16 * settings.dim
    assert counted.get_total_flops() == pytest.approx(32 * whole)


def test_flops_by_hand() -> None:
    # per layer: qkv 4·(4+2+2), output 4·4, SwiGLU 3·4·8 = 144; two layers and an output layer of 10·4
    settings = ModelSettings(dim=4, layers=2, heads=2, kv_heads=1, ffn_dim=8)
    assert flops_per_token(settings, 10, 6) == 6 * (2 * 144 + 40) + 6 * 2 * 6 * 4
