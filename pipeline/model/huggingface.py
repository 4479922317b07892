"""Our weights as Hugging Face's, and Hugging Face's Llama weights as ours.

Each of our tensors is one of theirs, or a stack of two or three of theirs: nothing is transposed or permuted, so that
a round trip is the identity, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, cat, split

from pipeline.errors import DataError
from pipeline.model.transformer import ffn_width
from pipeline.recipe import ModelSettings

Weights = dict[str, Tensor]

# ours → theirs, inside a layer; several of theirs are stacked, in this order, along the rows
LAYER = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention.output.weight": ("self_attn.o_proj.weight",),
    "feed_forward_norm.weight": ("post_attention_layernorm.weight",),
    "feed_forward.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "feed_forward.down.weight": ("mlp.down_proj.weight",),
}
OUTSIDE = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}


def to_config(settings: ModelSettings, vocab_size: int, tokens: Mapping[str, int | None], dtype: str) -> Any:
    """The `transformers` config of a model: LlamaConfig, or HeadwaterLstmConfig for the recurrent baseline.

    tokens: bos_token_id, eos_token_id and pad_token_id of the tokenizer. dtype: of the stored weights (torch name).
    """
    if settings.architecture == "lstm":
        from pipeline.model.lstm import HeadwaterLstmConfig

        return HeadwaterLstmConfig(
            vocab_size=vocab_size,
            hidden_size=settings.dim,
            num_hidden_layers=settings.layers,
            max_position_embeddings=settings.max_seq_len,
            layer_norm_eps=settings.norm_eps,
            initializer_range=settings.init_std,
            tie_word_embeddings=settings.tied_embeddings,
            architectures=["HeadwaterLstmForCausalLM"],
            dtype=dtype,
            **tokens,
        )
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=settings.dim,
        intermediate_size=ffn_width(settings),
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads or settings.heads,
        max_position_embeddings=settings.max_seq_len,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        rms_norm_eps=settings.norm_eps,
        initializer_range=settings.init_std,
        tie_word_embeddings=settings.tied_embeddings,
        architectures=["LlamaForCausalLM"],
        dtype=dtype,
        **tokens,
    )


def from_config(config: Any) -> ModelSettings:
    """Our settings of a LlamaConfig.

    Raises: DataError for what our Transformer does not have: biases, scaled rotary positions, another activation,
    heads that do not divide the width.
    """
    rope = dict(config.rope_parameters or {})
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    refused = {
        f"model_type {config.model_type}": config.model_type != "llama",
        "attention_bias": bool(config.attention_bias),
        "mlp_bias": bool(config.mlp_bias),
        f"hidden_act {config.hidden_act}": config.hidden_act not in ("silu", "swish"),
        f"rope_type {rope.get('rope_type')}": rope.get("rope_type", "default") != "default",
        f"head_dim {head_dim}": head_dim * config.num_attention_heads != config.hidden_size,
    }
    for name, met in refused.items():
        if met:
            raise DataError(
                f"{name}: a Llama variant that our Transformer does not have; fine-tune it as it is instead"
            )
    return ModelSettings(
        dim=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        ffn_dim=config.intermediate_size,
        max_seq_len=config.max_position_embeddings,
        rope_theta=rope.get("rope_theta", 10_000.0),
        norm_eps=config.rms_norm_eps,
        tied_embeddings=config.tie_word_embeddings,
        init_std=config.initializer_range,
    )


def to_weights(settings: ModelSettings, weights: Mapping[str, Tensor]) -> Weights:
    """Our weights under Hugging Face's names; copies where ours are stacked, so that none share memory."""
    if settings.architecture == "lstm":
        return {f"model.{name}": weight for name, weight in weights.items()}
    found = {theirs: weights[ours] for ours, theirs in OUTSIDE.items()}
    if not settings.tied_embeddings:
        found["lm_head.weight"] = weights["head.weight"]
    for layer in range(settings.layers):
        for ours, theirs in LAYER.items():
            whole = weights[f"blocks.{layer}.{ours}"]
            parts = split(whole, _rows(settings, ours)) if len(theirs) > 1 else (whole,)
            for name, part in zip(theirs, parts, strict=True):
                found[f"model.layers.{layer}.{name}"] = part.clone() if len(theirs) > 1 else part
    return found


def from_weights(settings: ModelSettings, weights: Mapping[str, Tensor]) -> Weights:
    """Hugging Face's Llama weights under our names. Raises: DataError naming a weight that is missing or left over."""
    left = dict(weights)
    if settings.tied_embeddings:
        left.pop("lm_head.weight", None)  # the embedding again

    def take(name: str) -> Tensor:
        if name not in left:
            raise DataError(f"{name}: this weight is missing; the model directory is not whole")
        return left.pop(name)

    found = {ours: take(theirs) for ours, theirs in OUTSIDE.items()}
    if not settings.tied_embeddings:
        found["head.weight"] = take("lm_head.weight")
    for layer in range(settings.layers):
        for ours, theirs in LAYER.items():
            parts = [take(f"model.layers.{layer}.{name}") for name in theirs]
            found[f"blocks.{layer}.{ours}"] = cat(parts) if len(parts) > 1 else parts[0]
    if left:
        raise DataError(f"{min(left)}: a weight that our Transformer does not have, one of {len(left)}")
    return found


def _rows(settings: ModelSettings, name: str) -> list[int]:
    """Rows of each part of a stacked matrix."""
    if name == "feed_forward.gate_up.weight":
        return [ffn_width(settings)] * 2
    head_dim = settings.dim // settings.heads
    keys = head_dim * (settings.kv_heads or settings.heads)
    return [settings.dim, keys, keys]
