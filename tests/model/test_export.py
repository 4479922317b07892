"""The export stage: a directory that stock `transformers` loads with the trained model's logits, or nothing."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM

from pipeline.errors import DataError, EnvironmentFault, PipelineError, UserError
from pipeline.manifest import Work
from pipeline.model import export
from pipeline.model.build import build_model
from pipeline.recipe import Recipe
from pipeline.tracking import Tracker

Trained = Callable[..., tuple[Recipe, Work]]


def directory_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


@pytest.mark.parametrize(
    "changes", [{}, {"tied_embeddings": False, "rope_theta": 500_000.0, "norm_eps": 1e-6}, {"architecture": "lstm"}]
)
def test_stock_transformers_loads_it_with_equal_logits(trained: Trained, changes: dict[str, object]) -> None:
    recipe, work = trained(**changes)
    made = export.run(recipe, work, Tracker())
    assert made.metrics["logit_difference"] <= 1e-5
    assert made.metrics["rounding_difference"] == made.metrics["logit_difference"]
    model = AutoModelForCausalLM.from_pretrained(work.folder)
    tokenizer = AutoTokenizer.from_pretrained(work.folder)
    found = export.read_trained(recipe.workdir / "checkpoints" / "final")
    ours = build_model(found.settings, found.vocab_size, seed=0)
    ours.load_state_dict({name: found.files.read(name) for name in found.files.shapes})
    tokens = torch.tensor([tokenizer("the river 河水 def flow")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=tokens).logits, ours(tokens), rtol=1e-4, atol=1e-5)
    assert made.counts["parameters"] == sum(weight.numel() for weight in ours.parameters())
    assert {output.path for output in made.outputs} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert model.generation_config.eos_token_id == [0, 3]
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (0, 0, 1)
    if not changes.get("architecture"):
        config = json.loads((work.folder / "config.json").read_text(encoding="utf-8"))
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == found.settings.rope_theta
    message = [{"role": "user", "content": "rain"}]
    assert tokenizer.apply_chat_template(message, tokenize=False).startswith("<|im_start|>user\nrain<|im_end|>")


def test_classifier_starts_from_it(trained: Trained) -> None:
    recipe, work = trained()
    export.run(recipe, work, Tracker())
    model = AutoModelForSequenceClassification.from_pretrained(work.folder, num_labels=3)
    ids = torch.tensor([[5, 6, 7], [5, 6, 1]])
    assert model(input_ids=ids, attention_mask=ids.ne(1)).logits.shape == (2, 3)


def test_half_precision_is_checked_against_weights_rounded_alike(trained: Trained) -> None:
    recipe, work = trained(export={"dtype": "bfloat16"})
    made = export.run(recipe, work, Tracker())
    assert made.metrics["logit_difference"] <= 1e-5
    assert 1e-4 < made.metrics["rounding_difference"] < 0.1
    assert load_file(work.folder / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert LlamaForCausalLM.from_pretrained(work.folder).dtype == torch.bfloat16


def test_bytes_are_the_same_after_a_kill_in_the_middle(trained: Trained) -> None:
    recipe, work = trained()
    (work.folder / "export.tmp").mkdir()
    (work.folder / "export.tmp" / "model.safetensors").write_bytes(b"half")
    export.run(recipe, work, Tracker())
    once = directory_bytes(work.folder)
    export.run(recipe, work, Tracker())
    assert directory_bytes(work.folder) == once
    assert "export.tmp" not in once


def test_a_full_disk_is_one_clear_line_and_the_next_start_ends_well(trained: Trained) -> None:
    recipe, work = trained()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (40_000, before[1])
    )  # the weights need more: safetensors meets a real error
    try:
        with pytest.raises(EnvironmentFault, match=r"export\.tmp"):
            export.run(recipe, work, Tracker())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (work.folder / "config.json").exists()
    assert export.run(recipe, work, Tracker()).counts["bytes"] > 40_000


def _change_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] += 3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _change_theta(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["rope_parameters"]["rope_theta"] = config["rope_theta"] = 20_000.0
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _swap_queries_and_keys(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    first, second = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "kv")
    weights[first], weights[second] = weights[second], weights[first]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("damage", [_change_weights, _change_theta, _swap_queries_and_keys])
def test_a_directory_that_differs_is_refused(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    recipe, work = trained()
    write = export.write_directory

    def write_damaged(folder: Path, *rest: object) -> None:
        write(folder, *rest)  # type: ignore[arg-type]
        damage(folder)

    monkeypatch.setattr(export, "write_directory", write_damaged)
    with pytest.raises(PipelineError, match=r"logits by .* nothing was exported") as refused:
        export.run(recipe, work, Tracker())
    assert not isinstance(refused.value, UserError)  # ours to answer for: not bad input
    assert not (work.folder / "manifest.json").exists()
    assert not (work.folder / "config.json").exists()


def test_damaged_checkpoints_get_one_clear_line(trained: Trained) -> None:
    recipe, work = trained()
    final = recipe.workdir / "checkpoints" / "final"
    whole = (final / "weights.safetensors").read_bytes()
    shape = json.loads((final / "final.json").read_text(encoding="utf-8"))

    def refused(pattern: str) -> None:
        with pytest.raises(DataError, match=pattern) as error:
            export.run(recipe, work, Tracker())
        assert "\n" not in str(error.value)

    (final / "weights.safetensors").write_bytes(whole[:-100])
    refused(r"weights\.safetensors: cannot be read")
    weights = load_file_bytes(whole)
    weights["norm.weight"][3] = float("nan")
    save_file(weights, final / "weights.safetensors")
    refused(r"norm\.weight holds NaN")
    weights = load_file_bytes(whole)
    weights.pop("norm.weight")
    save_file(weights, final / "weights.safetensors")
    refused(r"do not belong together .*norm\.weight")
    (final / "weights.safetensors").write_bytes(whole)
    (final / "final.json").write_text(json.dumps(shape | {"vocab_size": 200}), encoding="utf-8")
    refused(r"do not belong together .*embedding\.weight")
    (final / "final.json").write_text("{", encoding="utf-8")
    refused(r"final\.json: cannot be read")
    (final / "final.json").unlink()
    refused(r"final\.json: cannot be read .*pipeline pretrain")


def load_file_bytes(data: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return {name: weight.clone() for name, weight in load(data).items()}


def test_a_tokenizer_larger_than_the_model_is_refused(trained: Trained) -> None:
    recipe, work = trained()
    tokenizer = AutoTokenizer.from_pretrained(recipe.workdir / "tokenizer")
    tokenizer.add_tokens(["<one-more>"])
    tokenizer.save_pretrained(recipe.workdir / "tokenizer")
    with pytest.raises(DataError, match=re.escape("321 words")):
        export.run(recipe, work, Tracker())
