"""A decoder-only Transformer of the Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    tokens ─ embedding ─┬─ norm ─ attention ─(+)─┬─ norm ─ SwiGLU ─(+)─ … layers … ─ norm ─ output layer ─ logits
                        └────────────────────┘   └──────────────────┘

Weights map one to one onto Hugging Face's `LlamaForCausalLM`, with biases of queries, keys and values onto Qwen2's,
with norms of queries and keys onto Qwen3's (pipeline/model/huggingface.py). Where ours stacks matrices that read the
same input (query, key, value; gate, up), one large product replaces several small ones.

Sources: Touvron et al. 2023 (Llama, arXiv:2302.13971), Su et al. 2021 (RoPE, 2104.09864), Ainslie et al. 2023 (GQA,
2305.13245), Zhang & Sennrich 2019 (RMSNorm, 1910.07467), Shazeer 2020 (SwiGLU, 2002.05202), Radford et al. 2019
(GPT-2: smaller initial weights where a block writes to the residual stream).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from pipeline.model.cpu_attention import causal_attention, suits
from pipeline.model.loss import cross_entropy_sum, softmax_gradient
from pipeline.model.recompute import Kind, recomputed
from pipeline.recipe import ModelSettings


def ffn_width(settings: ModelSettings) -> int:
    """Width of the SwiGLU layer: as set, else 8/3 of dim rounded up to a multiple of 64 (as many weights as the
    usual two matrices of width 4·dim; a multiple of 64 suits matrix units)."""
    return settings.ffn_dim or -(-8 * settings.dim // (3 * 64)) * 64


def rotations(length: int, head_dim: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, (length, head_dim), on the device and in the dtype of `like`.

    Angle of position p and pair i: p · theta^(−2i/head_dim). Made in fp32 in each forward pass and only then
    rounded: as a buffer of the module it would be rounded together with the weights, and positions past 256 would
    run together in bf16.
    """
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float32, device=like.device)
    frequencies = 1.0 / theta ** (pairs / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=like.device), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def document_positions(documents: Tensor) -> Tensor:
    """Each token's place in its document, from 0. documents: (batch, seq) int64, the number of each token's document,
    rising along a row."""
    places = torch.arange(documents.size(1), device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - torch.where(begins, places, 0).cummax(dim=1).values


def document_mask(documents: Tensor) -> Tensor:
    """(batch, 1, seq, seq) bool: true where a query may see a key, which is its own document's and not after it.

    It takes batch · seq² bytes (64 MiB for four rows of 4,096), once for all layers.
    """
    same = documents[:, :, None] == documents[:, None, :]
    return same.tril()[:, None]


def document_blocks(documents: Tensor) -> BlockMask:
    """The same for FlexAttention: which blocks of 128 queries by 128 keys are seen, in batch · (seq/128)² numbers; the
    others are passed over. Compile it, or it makes the dense mask on the way."""

    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[row, query] == documents[row, key])

    batch, seq = documents.shape
    return create_block_mask(sees, batch, None, seq, seq, device=documents.device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + head_dim/2]) by its angle: the split-half convention of Hugging Face's Llama.

    x: (batch, heads, seq, head_dim); cos, sin: (seq, head_dim), or (batch, 1, seq, head_dim).
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, over the last dimension; the statistics are fp32 in every dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Causal attention; `heads` queries share `kv_heads` keys and values in groups."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.heads = settings.heads
        self.kv_heads = settings.kv_heads or settings.heads
        self.head_dim = settings.head_width
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = nn.Linear(settings.dim, width, bias=settings.qkv_bias)
        self.query_norm = RMSNorm(self.head_dim, settings.norm_eps) if settings.qk_norm else None
        self.key_norm = RMSNorm(self.head_dim, settings.norm_eps) if settings.qk_norm else None
        self.output = nn.Linear(self.heads * self.head_dim, settings.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | BlockMask | None = None) -> Tensor:
        """x: (batch, seq, dim) → (batch, seq, dim); cos, sin: as in `rotate`; mask: of `document_mask` or
        `document_blocks`."""
        batch, seq, _ = x.shape
        heads = self.qkv(x).view(batch, seq, -1, self.head_dim).transpose(1, 2)
        value = heads[:, -self.kv_heads :]
        turned = heads[:, : -self.kv_heads]  # queries and keys together: half the operations
        if self.query_norm is not None and self.key_norm is not None:
            query, key = turned.split((self.heads, self.kv_heads), dim=1)
            turned = torch.cat((self.query_norm(query), self.key_norm(key)), dim=1)
        turned = rotate(turned, cos, sin)
        query, key, shared = turned[:, : self.heads], turned[:, self.heads :], self.kv_heads != self.heads
        if isinstance(mask, BlockMask):
            mixed = flex_attention(query, key, value, block_mask=mask, enable_gqa=shared)
        elif mask is None and suits(query):
            mixed = causal_attention(query, key, value)
        else:
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=shared
            )
        out: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, seq, -1))
        return out


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)); gate and up are stacked in one matrix, gate first."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        width = ffn_width(settings)
        self.gate_up = nn.Linear(settings.dim, 2 * width, bias=False)
        self.down = nn.Linear(width, settings.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class Block(nn.Module):
    """One layer: attention, then SwiGLU, each on the normalised residual stream and added to it.

    activations: which of them are kept for the backward pass (recompute.py).
    """

    activations: Kind = "none"

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(settings.dim, settings.norm_eps)
        self.attention = Attention(settings)
        self.feed_forward_norm = RMSNorm(settings.dim, settings.norm_eps)
        self.feed_forward = SwiGLU(settings)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | BlockMask | None = None) -> Tensor:
        return recomputed(self.activations, self._forward, x, cos, sin, mask)

    def _forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | BlockMask | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, mask)
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out


class Transformer(nn.Module):
    """The whole model. `forward(tokens)` gives logits, `forward(tokens, targets)` the summed loss.

    softmax_gradient, document_blocks: what a compiler may take the place of (train/compilation.py). Without a compiled
    `document_blocks` a dense mask keeps documents apart: FlexAttention is slower than that when not compiled, and has
    no backward pass on a CPU.
    """

    softmax_gradient = staticmethod(softmax_gradient)
    document_blocks: Callable[[Tensor], BlockMask] | None = None

    def __init__(self, settings: ModelSettings, vocab_size: int) -> None:
        super().__init__()
        self.settings = settings
        self.embedding = nn.Embedding(vocab_size, settings.dim)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.norm = RMSNorm(settings.dim, settings.norm_eps)
        self.head = None if settings.tied_embeddings else nn.Linear(settings.dim, vocab_size, bias=False)
        self._initialize(settings)

    def _initialize(self, settings: ModelSettings) -> None:
        """Matrices ~ N(0, init_std²); those that write to the residual stream ~ N(0, init_std² / (2·layers)), so that
        the 2·layers additions leave its variance independent of depth (GPT-2). Norms start at 1, biases at 0."""
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                writes = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
                std = settings.init_std / (math.sqrt(2 * settings.layers) if writes else 1.0)
                nn.init.normal_(weight, std=std)
            elif name.endswith(".bias"):
                nn.init.zeros_(weight)

    @property
    def output_weight(self) -> Tensor:
        """(vocab, dim): the embedding itself when tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def hidden(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """The normalised residual stream after the last layer: (batch, seq) int64 → (batch, seq, dim).

        documents: (batch, seq), the number of each token's document; None: a row is one.
        """
        x: Tensor = self.embedding(tokens)
        cos, sin = rotations(tokens.size(1), self.settings.head_width, self.settings.rope_theta, x)
        mask: Tensor | BlockMask | None = None
        if documents is not None:
            positions, mask = document_positions(documents), (self.document_blocks or document_mask)(documents)
            cos, sin = cos[positions][:, None], sin[positions][:, None]
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        normed: Tensor = self.norm(x)
        return normed

    def forward(self, tokens: Tensor, targets: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """tokens: (batch, seq) int64. Without targets: logits (batch, seq, vocab) in the model's dtype. With targets
        (batch, seq) int64, -100 where nothing counts: the SUM of the cross-entropy over the others, a fp32 scalar.
        documents: as in `hidden`."""
        hidden = self.hidden(tokens, documents)
        if targets is None:
            return F.linear(hidden, self.output_weight)
        return cross_entropy_sum(hidden.flatten(0, 1), self.output_weight, targets.flatten(), self.softmax_gradient)

    def loss_sum(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Sum of the cross-entropy in nats over targets that are not -100, fp32; divide by their number yourself."""
        loss: Tensor = self(tokens, targets)
        return loss
