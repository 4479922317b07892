"""Our weights as Hugging Face's, and those of Hugging Face's Llama, Qwen2 and Qwen3 as ours.

Each of our tensors is one of theirs, or a stack of two or three of theirs: nothing is transposed or permuted, so that
a round trip is the identity, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from pipeline.errors import DataError
from pipeline.model.transformer import ffn_width
from pipeline.model.weight_files import WeightFiles
from pipeline.recipe import ModelSettings

Weights = dict[str, Tensor]
Read = Callable[[str], Tensor]

# ours → theirs, inside a layer; several of theirs are stacked, in this order, along the rows
LAYER = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention.output.weight": ("self_attn.o_proj.weight",),
    "feed_forward_norm.weight": ("post_attention_layernorm.weight",),
    "feed_forward.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "feed_forward.down.weight": ("mlp.down_proj.weight",),
}
QWEN2 = {"attention.qkv.bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")}
QWEN3 = {
    "attention.query_norm.weight": ("self_attn.q_norm.weight",),
    "attention.key_norm.weight": ("self_attn.k_norm.weight",),
}


def to_config(settings: ModelSettings, vocab_size: int, tokens: Mapping[str, int | None], dtype: str) -> Any:
    """The `transformers` config of a model: of Llama, Qwen2 (qkv_bias) or Qwen3 (qk_norm), or HeadwaterLstmConfig for
    the recurrent baseline.

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
    return _attention_config(settings)(
        vocab_size=vocab_size,
        hidden_size=settings.dim,
        intermediate_size=ffn_width(settings),
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads or settings.heads,
        head_dim=settings.head_width,
        max_position_embeddings=settings.max_seq_len,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        rms_norm_eps=settings.norm_eps,
        initializer_range=settings.init_std,
        tie_word_embeddings=settings.tied_embeddings,
        architectures=[f"{_attention_config(settings).__name__.removesuffix('Config')}ForCausalLM"],
        dtype=dtype,
        **tokens,
    )


def _attention_config(settings: ModelSettings) -> Any:
    """The config class of the family that has just what these settings have."""
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    return Qwen3Config if settings.qk_norm else Qwen2Config if settings.qkv_bias else LlamaConfig


class Piece(NamedTuple):
    """One of their tensors: rows of one of ours."""

    theirs: str
    ours: str
    first: int
    rows: int | None  # None: all of it


def pieces(settings: ModelSettings, names: Iterable[str]) -> Iterator[Piece]:
    """Their tensors, in the order of their model. names: of our tensors, of which an LSTM's stay as they are."""
    if settings.architecture == "lstm":
        yield from (Piece(f"model.{name}", name, 0, None) for name in names)
        return
    yield Piece("model.embed_tokens.weight", "embedding.weight", 0, None)
    layer = {
        **LAYER,
        **(QWEN2 if settings.qkv_bias else {}),
        **(QWEN3 if settings.qk_norm else {}),
    }
    for number in range(settings.layers):
        for ours, theirs in layer.items():
            place = 0
            for name, rows in zip(theirs, _rows(settings, ours), strict=True):
                yield Piece(f"model.layers.{number}.{name}", f"blocks.{number}.{ours}", place, rows)
                place += rows or 0
    yield Piece("model.norm.weight", "norm.weight", 0, None)
    if not settings.tied_embeddings:
        yield Piece("lm_head.weight", "head.weight", 0, None)


def to_weights(settings: ModelSettings, weights: Mapping[str, Tensor]) -> Weights:
    """Our weights under Hugging Face's names; copies where ours are stacked, so that none share memory."""
    found = {}
    for piece in pieces(settings, weights):
        whole = weights[piece.ours]
        part = whole if piece.rows is None else whole[piece.first : piece.first + piece.rows].clone()
        found[piece.theirs] = part
    return found


def load_weights(model: nn.Module, settings: ModelSettings, shapes: Mapping[str, Sequence[int]], read: Read) -> None:
    """Copy Hugging Face's weights into our model, one at a time. shapes: of all that there are; read: gives one.

    Raises: DataError naming a weight that is missing, left over or of another shape.
    """
    held = model.state_dict()
    left = {name for name in shapes if not name.endswith("rotary_emb.inv_freq")}  # older files keep these too
    if settings.tied_embeddings:
        left.discard("lm_head.weight")  # the embedding again
    for piece in pieces(settings, held):
        into = held[piece.ours]
        if piece.rows is not None:
            into = into[piece.first : piece.first + piece.rows]
        if piece.theirs not in shapes:
            raise DataError(f"{piece.theirs}: this weight is missing; the model directory is not whole")
        if tuple(shapes[piece.theirs]) != tuple(into.shape):
            raise DataError(
                f"{piece.theirs}: its shape is {list(shapes[piece.theirs])}, config.json asks for {list(into.shape)}"
            )
        into.copy_(read(piece.theirs))
        left.discard(piece.theirs)
    if left:
        raise DataError(f"{min(left)}: a weight that our Transformer does not have, one of {len(left)}")


def load_base(model: nn.Module, settings: ModelSettings, folder: Path) -> None:
    """Give our model the weights of a model directory to go on with. Raises: DataError, one line."""
    try:
        files = WeightFiles(folder)
        load_weights(model, settings, files.shapes, files.read)
    except DataError as error:
        raise DataError(f"model.base {folder}: {error}") from None


def _rows(settings: ModelSettings, name: str) -> list[int | None]:
    """Rows of each part of one of our tensors; None: it is one."""
    if name == "feed_forward.gate_up.weight":
        return [ffn_width(settings)] * 2
    if name.startswith("attention.qkv."):
        keys = settings.head_width * (settings.kv_heads or settings.heads)
        return [settings.head_width * settings.heads, keys, keys]
    return [None]
