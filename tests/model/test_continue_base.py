"""model.base: a Hugging Face Llama, Qwen2 or Qwen3 becomes our model and comes back unchanged; others are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from pipeline.config import load_recipe, save_recipe
from pipeline.errors import DataError, RecipeError
from pipeline.manifest import Work
from pipeline.model import export
from pipeline.model.build import build_model, parameter_count, rows_of_embedding
from pipeline.model.huggingface import load_base
from pipeline.recipe import ModelSettings, Recipe
from pipeline.tracking import Tracker

SHAPE = {
    "vocab_size": 324,  # more rows than the tokenizer has words, as Qwen has
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
BASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}),
    "llama_tied": (LlamaConfig, {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "head_dim": 12}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {"head_dim": 16}),
}


def save_base(folder: Path, kind: str, dtype: str = "bfloat16", **changes: Any) -> Path:
    """Saved by `transformers`, in shards; biases and norms are drawn."""
    make, more = BASES[kind]
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(make(**SHAPE, **more, **changes)).to(getattr(torch, dtype))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) / 4)
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder


def change(folder: Path, values: Mapping[str, Any], *gone: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in gone:
        del config[name]
    path.write_text(json.dumps(config | dict(values)), encoding="utf-8")


def all_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: weight for path in folder.glob("*.safetensors") for name, weight in load_file(path).items()}


def ours(folder: Path) -> tuple[ModelSettings, torch.nn.Module]:
    settings = ModelSettings(base=str(folder))
    assert settings.vocab_size
    model = build_model(settings, settings.vocab_size, seed=0)
    load_base(model, settings, folder)
    return settings, model.eval()


@pytest.mark.parametrize("kind", BASES)
def test_logits_equal_and_the_way_back_is_the_identity(
    trained: Callable[..., tuple[Recipe, Work]], tmp_path: Path, kind: str
) -> None:
    folder = save_base(tmp_path / "base", kind)
    settings, model = ours(folder)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.randint(324, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = stock(input_ids=tokens).logits
        torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.05
    assert sum(weight.numel() for weight in model.parameters()) == parameter_count(settings, 324)

    recipe, work = trained(export={"dtype": "bfloat16"})  # a run whose weights are these
    final = recipe.workdir / "checkpoints" / "final"
    save_file({name: weight.detach() for name, weight in model.named_parameters()}, final / "weights.safetensors")
    (final / "final.json").write_text(json.dumps({"model": settings.settings(), "vocab_size": 324}), encoding="utf-8")
    shutil.move(folder, tmp_path / "gone")  # the base is not needed any more
    made = export.run(recipe, work, Tracker())
    assert made.metrics["logit_difference"] <= 1e-5
    assert made.metrics["rounding_difference"] <= 1e-5  # bf16 before, bf16 after
    before, after = all_weights(tmp_path / "gone"), all_weights(work.folder)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(before[name].dtype == after[name].dtype for name in before)
    configs = [json.loads((path / "config.json").read_text()) for path in (tmp_path / "gone", work.folder)]
    for name in ("model_type", "architectures", *SHAPE, "rope_parameters", "tie_word_embeddings", "rms_norm_eps"):
        assert configs[0].get(name) == configs[1].get(name), name


def test_configs_from_before_transformers_5_are_read(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "llama", dtype="float32")
    known = ModelSettings(base=str(folder))
    change(folder, {"rope_theta": 500_000.0, "rope_scaling": None}, "rope_parameters", "head_dim")
    path = next(folder.glob("*.safetensors"))
    old = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    index["weight_map"] |= dict.fromkeys(old, path.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    save_file(load_file(path) | old, path)
    settings, _ = ours(folder)
    assert settings == known
    assert settings.rope_theta == 500_000.0


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("llama", {"model_type": "gpt2"}, "model_type gpt2: only llama, qwen2, qwen3"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act gelu"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_type llama3"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}}, "rope_type linear"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types sliding_attention"),
        ("qwen3", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"hidden_size": None}, "hidden_size is not stated"),
    ],
)
def test_what_our_transformer_does_not_have_is_named(
    tmp_path: Path, kind: str, values: dict[str, Any], said: str
) -> None:
    folder = save_base(tmp_path / "base", kind)
    change(folder, values)
    with pytest.raises(RecipeError, match=said) as error:
        load_recipe("demo", [f"model.base={folder}"])
    assert "\n" not in str(error.value)
    assert str(folder / "config.json") in str(error.value)


def test_folders_that_hold_no_base(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none/config\.json: cannot be read"):
        load_recipe("demo", [f"model.base={tmp_path / 'none'}"])
    (tmp_path / "config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"not the config\.json"):
        load_recipe("demo", [f"model.base={tmp_path}"])


def test_the_recipe_takes_shape_and_tokenizer_from_the_base(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "qwen2")
    words = [f"model.base={folder}", "pretrain.seq_len=64", "finetune={}", f"workdir={tmp_path / 'run'}"]
    recipe = load_recipe("demo", words)
    assert (recipe.model.dim, recipe.model.qkv_bias, recipe.model.vocab_size) == (32, True, 324)
    assert recipe.tokenizer.path == str(folder)
    saved = tmp_path / "saved.yaml"
    saved.write_text(save_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(saved)) == recipe
    assert load_recipe("demo", [*words, "tokenizer.continue_from=other"]).tokenizer.path is None
    with pytest.raises(RecipeError, match=r"pretrain\.seq_len \(65\) is longer"):
        load_recipe("demo", [*words, "pretrain.seq_len=65"])


def test_weights_that_are_not_those_of_the_config(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "llama")
    change(folder, {"num_hidden_layers": 3})
    with pytest.raises(DataError, match=r"model\.layers\.2\.input_layernorm\.weight: this weight is missing"):
        ours(folder)
    change(folder, {"num_hidden_layers": 1})
    with pytest.raises(DataError, match=r"model\.layers\.1\S+ a weight that our Transformer does not have, one of 9"):
        ours(folder)
    change(folder, {"num_hidden_layers": 2, "intermediate_size": 64})
    with pytest.raises(DataError, match=r"its shape is \[48, 32\], config\.json asks for \[64, 32\]"):
        ours(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(DataError, match=r"model\.base .* cannot be read"):
        ours(folder)


def test_a_tokenizer_with_more_words_than_the_base(tmp_path: Path) -> None:
    settings = ModelSettings(base=str(save_base(tmp_path / "base", "llama")))
    assert rows_of_embedding(settings, 320) == 324
    with pytest.raises(DataError, match=r"has 325 words, but .*base has 324"):
        rows_of_embedding(settings, 325)
