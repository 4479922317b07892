"""The `model:` section of a recipe: the network's shape, its own or that of a model to go on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from pipeline.settings.section import Section, no_effect

FAMILIES = ("llama", "qwen2", "qwen3")  # model_type of what our Transformer can be


class ModelSettings(Section):
    """The network. The vocabulary comes from the tokenizer, the context length is `max_seq_len`."""

    base: str | None = no_effect(None)
    """A Llama, Qwen2 or Qwen3 in a Hugging Face model directory, whose pretraining goes on: its weights, its tokenizer
    unless `tokenizer.path` names another, and its shape in place of all that stands here. What is in that folder
    counts, not where it lies."""
    architecture: Literal["transformer", "lstm"] = "transformer"
    dim: PositiveInt = 768
    layers: PositiveInt = 12
    heads: PositiveInt = 12
    kv_heads: PositiveInt | None = None
    """Key/value heads (grouped-query attention); null: as many as heads."""
    head_dim: PositiveInt | None = None
    """Width of a head; null: dim/heads."""
    ffn_dim: PositiveInt | None = None
    """Width of the SwiGLU layer; null: 8/3 of dim, rounded up to a multiple of 64."""
    max_seq_len: PositiveInt = 2048
    rope_theta: PositiveFloat = 10_000.0
    norm_eps: PositiveFloat = 1e-5
    qkv_bias: bool = False
    """Biases of queries, keys and values, as Qwen2 has them."""
    qk_norm: bool = False
    """RMSNorm of each head's queries and keys, as Qwen3 has it."""
    tied_embeddings: bool = True
    vocab_size: PositiveInt | None = None
    """Rows of the embedding; null: as many as the tokenizer has words."""
    init_std: PositiveFloat = 0.02

    @model_validator(mode="before")
    @classmethod
    def _shape_of_base(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("base"):
            return {**values, **read_shape(Path(str(values["base"])))}
        return values

    @model_validator(mode="after")
    def _shapes_fit(self) -> ModelSettings:
        if self.architecture == "transformer":
            if self.head_dim is None and self.dim % self.heads:
                raise ValueError(f"dim ({self.dim}) must be a multiple of heads ({self.heads})")
            if self.head_width % 2:
                raise ValueError(f"dim/heads ({self.head_width}) must be even, for rotary positions")
            if self.heads % (self.kv_heads or self.heads):
                raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
            if self.qkv_bias and self.qk_norm:
                raise ValueError("qkv_bias (Qwen2) and qk_norm (Qwen3) are of different models; choose one")
        elif self.head_dim or self.qkv_bias or self.qk_norm:
            raise ValueError("head_dim, qkv_bias and qk_norm are of attention, which an lstm has not")
        return self

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.head_dim or self.dim // self.heads


def read_shape(folder: Path) -> dict[str, Any]:
    """Our settings of a model directory. Raises: ValueError naming the file and what cannot be."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give the folder of a Hugging Face model") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: not the config.json of a Hugging Face model")
    try:
        return shape_of(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def shape_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our settings of a config.json, as `transformers` writes it now or wrote it before version 5.

    Raises: ValueError for what our Transformer does not have, and for a size that is not stated.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"model_type {family}: only {', '.join(FAMILIES)} can be gone on with; others be fine-tuned")
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"):
        if not isinstance(config.get(name), int):
            raise ValueError(f"{name} is not stated")
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    kinds = set(config.get("layer_types") or []) - {"full_attention"}
    refused = {
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        f"hidden_act {config.get('hidden_act')}": config.get("hidden_act", "silu") not in ("silu", "swish"),
        f"rope_type {scaling} (scaled positions)": scaling != "default",
        "use_sliding_window": bool(config.get("use_sliding_window")),
        f"layer_types {min(kinds, default='')}": bool(kinds),
        "quantization_config (weights that are not numbers as they stand)": bool(config.get("quantization_config")),
    }
    for name, met in refused.items():
        if met:
            raise ValueError(f"{name}: a variant that our Transformer does not have; fine-tune it as it is instead")
    dim, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or (128 if family == "qwen3" else dim // heads)  # Qwen3Config's own default
    return {
        "architecture": "transformer",
        "dim": dim,
        "layers": config["num_hidden_layers"],
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": None if width * heads == dim else width,
        "ffn_dim": config["intermediate_size"],
        "max_seq_len": config.get("max_position_embeddings", 2048),
        "rope_theta": float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "qkv_bias": family == "qwen2",
        "qk_norm": family == "qwen3",
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
        "vocab_size": config["vocab_size"],
        "init_std": config.get("initializer_range", 0.02),
    }
