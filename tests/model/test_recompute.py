"""Activation checkpointing: the same bits for less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from pipeline.errors import RecipeError
from pipeline.model.build import build_model
from pipeline.model.recompute import Kind, keep_activations
from pipeline.model.transformer import Transformer
from pipeline.recipe import ModelSettings

Tiny = Callable[..., ModelSettings]


def bytes_kept(settings: ModelSettings, kind: Kind) -> int:
    """Activations that are held when the forward pass of one row is over. Nothing is computed: fake tensors."""
    with FakeTensorMode():
        model = Transformer(settings, 512)
        keep_activations(model, kind)
        tokens = torch.zeros(1, settings.max_seq_len, dtype=torch.int64)
        tracker = MemTracker()
        tracker.track_external(model)
        with tracker:
            loss = model(tokens, tokens)
            held: Any = tracker.get_tracker_snapshot("current")[torch.device("cpu")]
        del loss
    return next(int(number) for kind_of, number in held.items() if "ACT" in str(kind_of))


def test_each_kind_keeps_less() -> None:
    """In numbers a token of each block, as multiples of dim."""

    def of_a_block(kind: Kind) -> float:
        shape = {"dim": 64, "heads": 4, "kv_heads": 2, "ffn_dim": 192, "max_seq_len": 128}
        few, more = (bytes_kept(ModelSettings(layers=layers, **shape), kind) for layers in (2, 4))
        return (more - few) / 2 / (128 * 64 * 4)

    none, selective, full = of_a_block("none"), of_a_block("selective"), of_a_block("full")
    assert full == pytest.approx(1.0, abs=0.01)
    assert full < selective < 0.6 * none, (none, selective, full)


@pytest.mark.parametrize("kind", ["selective", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_the_same_bits(tiny: Tiny, kind: Kind, dtype: torch.dtype) -> None:
    tokens = torch.randint(300, (2, 33), generator=torch.Generator().manual_seed(0))
    documents = (tokens[:, :-1] < 30).cumsum(1)
    found = []
    for each in ("none", kind):
        model = build_model(tiny(), 300, seed=1).to(dtype)
        keep_activations(model, each)
        loss = model(tokens[:, :-1], tokens[:, 1:], documents)
        loss.backward()
        found.append([loss.detach(), *(weight.grad for weight in model.parameters())])
    for kept, again in zip(*found, strict=True):
        assert torch.equal(kept, again)


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_a_hugging_face_model_has_it_too(tiny: Tiny, kind: Kind) -> None:
    from transformers import AutoModelForCausalLM

    from pipeline.model.huggingface import to_config

    tokens = torch.randint(300, (2, 24), generator=torch.Generator().manual_seed(0))
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    found = []
    for each in ("none", kind):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(to_config(tiny(), 300, special, "float32")).train()
        keep_activations(model, each)
        assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules()) == (each != "none")
        model(input_ids=tokens, labels=tokens).loss.backward()
        found.append([weight.grad for weight in model.parameters()])
    for kept, again in zip(*found, strict=True):
        assert torch.equal(kept, again)


def test_a_model_that_cannot_is_refused(tiny: Tiny) -> None:
    lstm = build_model(tiny(architecture="lstm"), 300, seed=1)
    keep_activations(lstm, "none")
    with pytest.raises(RecipeError, match="activation_checkpointing: Lstm cannot"):
        keep_activations(lstm, "full")
