"""The recurrent baseline: it learns, and `transformers` loads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pipeline.model.build import build_model
from pipeline.model.directory import load_model
from pipeline.model.huggingface import to_config, to_weights
from pipeline.recipe import ModelSettings

Tiny = Callable[..., ModelSettings]
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}


def save(folder: Path, settings: ModelSettings) -> torch.nn.Module:
    model = build_model(settings, 50, seed=0)
    to_config(settings, 50, TOKENS, "float32").save_pretrained(str(folder))
    weights = {name: weight.clone() for name, weight in to_weights(settings, model.state_dict()).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return model


def test_it_learns_a_text_by_heart(tiny: Tiny) -> None:
    model = build_model(tiny(architecture="lstm", init_std=0.05), 50, seed=0)
    tokens = torch.randint(50, (2, 17), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = model.loss_sum(tokens[:, :-1], tokens[:, 1:]) / 32  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 3.5
    assert losses[-1] < 0.2


def test_forget_gates_start_open(tiny: Tiny) -> None:
    layer = build_model(tiny(architecture="lstm"), 50, seed=0).layers[0]  # type: ignore[index]
    bias = layer.bias_ih_l0.view(4, -1)
    assert bool((bias[1] == 1).all())
    assert bool((bias[[0, 2, 3]] == 0).all())


def test_transformers_loads_it_with_equal_logits(tiny: Tiny, tmp_path: Path) -> None:
    for tied in (True, False):
        folder = tmp_path / str(tied)
        ours = save(folder, tiny(architecture="lstm", tied_embeddings=tied))
        theirs = AutoModelForCausalLM.from_pretrained(folder)
        tokens = torch.randint(50, (2, 9))
        with torch.no_grad():
            assert torch.equal(theirs(input_ids=tokens).logits, ours(tokens))


def test_padding_on_either_side_changes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    save(tmp_path, tiny(architecture="lstm"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    tokens, pad = torch.randint(2, 50, (1, 6)), torch.full((1, 3), 1)
    ones, zeros = torch.ones_like(tokens), torch.zeros_like(pad)
    with torch.no_grad():
        expected, scores = model(input_ids=tokens).logits, classifier(input_ids=tokens).logits
        for order, kept in (((pad, tokens), slice(3, None)), ((tokens, pad), slice(0, 6))):
            ids = torch.cat(order, dim=1)
            mask = torch.cat([ones if part is tokens else zeros for part in order], dim=1)
            torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits[:, kept], expected)
            torch.testing.assert_close(classifier(input_ids=ids, attention_mask=mask).logits, scores)


def test_a_copy_saved_by_transformers_is_whole(tiny: Tiny, tmp_path: Path) -> None:
    save(tmp_path / "a", tiny(architecture="lstm"))
    (tmp_path / "a" / "tokenizer.json").write_text("{}", encoding="utf-8")  # its presence is checked, no more
    model = load_model(tmp_path / "a", "AutoModelForCausalLM")
    model.save_pretrained(tmp_path / "b")
    (tmp_path / "b" / "tokenizer.json").write_text("{}", encoding="utf-8")
    again = load_model(tmp_path / "b", type(model).__name__)
    tokens = torch.randint(50, (2, 9))
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_it_generates(tiny: Tiny, tmp_path: Path) -> None:
    save(tmp_path, tiny(architecture="lstm"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.randint(2, 50, (1, 4))
    out = model.generate(input_ids=tokens, max_new_tokens=5, do_sample=False, eos_token_id=None)
    with torch.no_grad():
        for place in range(4, 9):
            assert out[0, place] == model(input_ids=out[:, :place]).logits[0, -1].argmax()


def test_classifier_learns(tiny: Tiny, tmp_path: Path) -> None:
    save(tmp_path, tiny(architecture="lstm", init_std=0.05))
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    tokens, labels = torch.randint(2, 50, (8, 6)), torch.tensor([0, 1] * 4)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-2)
    for _ in range(40):
        loss = classifier(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
