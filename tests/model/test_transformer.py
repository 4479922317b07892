"""Our Transformer against Hugging Face's Llama, Qwen2 and Qwen3, and its own promises."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from pipeline.errors import DataError
from pipeline.model.build import build_model
from pipeline.model.huggingface import load_weights, to_config, to_weights
from pipeline.model.transformer import document_blocks, rotations
from pipeline.recipe import ModelSettings
from pipeline.settings.model import shape_of

Tiny = Callable[..., ModelSettings]
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
SHAPES = [
    {},
    {"tied_embeddings": False},
    {"kv_heads": None},
    {"head_dim": 12},
    {"qkv_bias": True},
    {"qk_norm": True, "head_dim": 16, "tied_embeddings": False},
    {"kv_heads": 1, "rope_theta": 500_000.0, "norm_eps": 1e-6, "ffn_dim": 48, "layers": 3},
]


def foreign(settings: ModelSettings, vocab_size: int) -> Any:
    """Their model; where there are biases and norms of heads, they are drawn."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(to_config(settings, vocab_size, TOKENS, "float32"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("bias", "q_norm.weight", "k_norm.weight")):
                weight.add_(torch.randn_like(weight) / 4)
    return model.eval()


def taken_over(settings: ModelSettings, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    ours = build_model(settings, 300, seed=0)
    with torch.no_grad():
        load_weights(ours, settings, {name: weight.shape for name, weight in weights.items()}, weights.__getitem__)
    return ours


@pytest.mark.parametrize("changes", SHAPES)
def test_logits_equal_hugging_face(tiny: Tiny, changes: dict[str, object]) -> None:
    settings = tiny(**changes)
    theirs = foreign(settings, 300)
    ours = taken_over(settings, theirs.state_dict())
    tokens = torch.randint(300, (2, 64))
    with torch.no_grad():
        expected, found = theirs(input_ids=tokens).logits, ours(tokens)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5)
        assert expected.std() > 0.05  # else equality would mean little
        # bf16 rounds at each step; both round the same angles
        expected, found = theirs.bfloat16()(input_ids=tokens).logits.float(), ours.bfloat16()(tokens).float()
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("changes", SHAPES)
def test_gradients_equal_hugging_face(tiny: Tiny, changes: dict[str, object]) -> None:
    settings = tiny(**changes)
    theirs = foreign(settings, 300)
    ours = taken_over(settings, theirs.state_dict())
    tokens = torch.randint(300, (2, 33))
    ours.loss_sum(tokens[:, :-1], tokens[:, 1:]).backward()  # type: ignore[operator]
    loss = functional.cross_entropy(theirs(input_ids=tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())
    (loss * 64).backward()  # type: ignore[no-untyped-call]
    found = to_weights(settings, {name: weight.grad for name, weight in ours.named_parameters()})  # type: ignore[misc]
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=2e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("changes", SHAPES)
def test_round_trip_is_the_identity(tiny: Tiny, changes: dict[str, object]) -> None:
    settings = tiny(**changes)
    weights = build_model(settings, 300, seed=5).state_dict()
    again = taken_over(settings, to_weights(settings, weights)).state_dict()
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())
    back = ModelSettings(**shape_of(to_config(settings, 300, TOKENS, "float32").to_dict()))
    stated = {"ffn_dim": back.ffn_dim, "kv_heads": settings.kv_heads or settings.heads, "vocab_size": 300}
    assert back.settings() == settings.settings() | stated


def test_foreign_variants_are_refused_by_name(tiny: Tiny) -> None:
    weights = to_weights(tiny(), build_model(tiny(), 300, seed=5).state_dict())
    with pytest.raises(DataError, match=r"rotary\.inv_freq"):
        taken_over(tiny(), weights | {"rotary.inv_freq": torch.zeros(1)})
    weights.pop("model.layers.1.mlp.up_proj.weight")
    with pytest.raises(DataError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        taken_over(tiny(), weights)


def test_a_token_reads_nothing_after_it(tiny: Tiny) -> None:
    model = build_model(tiny(), 300, seed=0)
    tokens = torch.randint(300, (1, 20))
    changed = tokens.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 300
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize("length", [96, 200])  # within a block of FlexAttention, and more than one
def test_blocks_of_documents_say_what_the_dense_mask_says(tiny: Tiny, length: int) -> None:
    model: Any = build_model(tiny(max_seq_len=256), 300, seed=1)
    tokens = torch.randint(300, (2, length), generator=torch.Generator().manual_seed(0))
    documents = (tokens < 12).cumsum(1)
    with torch.no_grad():  # FlexAttention has no backward pass on a CPU
        expected = model(tokens, documents=documents)
        model.document_blocks = document_blocks
        found = model(tokens, documents=documents)
        assert not torch.allclose(expected, model(tokens), atol=1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_angles_do_not_suffer_from_bf16() -> None:
    exact, _ = rotations(4096, 64, 10_000.0, torch.zeros(1))
    rounded, _ = rotations(4096, 64, 10_000.0, torch.zeros(1, dtype=torch.bfloat16))
    assert (exact - rounded.float()).abs().max() < 2**-8
    assert exact[4095, 0].item() == pytest.approx(math.cos(4095.0), abs=1e-3)


def test_initial_weights_have_the_stated_spread() -> None:
    settings = ModelSettings(dim=128, layers=8, heads=4, init_std=0.02, tied_embeddings=False)
    weights = build_model(settings, 1000, seed=0).state_dict()
    for name, weight in weights.items():
        if weight.ndim == 1:
            assert bool((weight == 1).all()), name
            continue
        writes = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
        assert weight.std().item() == pytest.approx(0.02 / (4 if writes else 1), rel=0.03), name
        assert abs(weight.mean().item()) < 1e-3, name


def test_an_untrained_model_knows_nothing() -> None:
    model = build_model(ModelSettings(dim=64, layers=2, heads=4), 512, seed=0)
    tokens = torch.randint(512, (4, 65))
    loss = model.loss_sum(tokens[:, :-1], tokens[:, 1:]).item() / 256  # type: ignore[operator]
    assert loss == pytest.approx(math.log(512), rel=0.02)


def test_seed_decides_the_weights_and_global_state_stays(tiny: Tiny) -> None:
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    first, second, other = (build_model(tiny(), 300, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])
