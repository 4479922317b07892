"""A decoder-only Transformer of the Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    tokens ─ embedding ─┬─ norm ─ attention ─(+)─┬─ norm ─ SwiGLU ─(+)─ … layers … ─ norm ─ output layer ─ logits
                        └────────────────────┘   └──────────────────┘

Weights map one to one onto Hugging Face's `LlamaForCausalLM` (pipeline/model/huggingface.py); where ours stacks
matrices that read the same input (query, key, value; gate, up), one large product replaces several small ones.

Sources: Touvron et al. 2023 (Llama, arXiv:2302.13971), Su et al. 2021 (RoPE, 2104.09864), Ainslie et al. 2023 (GQA,
2305.13245), Zhang & Sennrich 2019 (RMSNorm, 1910.07467), Shazeer 2020 (SwiGLU, 2002.05202), Radford et al. 2019
(GPT-2: smaller initial weights where a block writes to the residual stream).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.loss import cross_entropy_sum
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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + head_dim/2]) by its angle: the split-half convention of Hugging Face's Llama.

    x: (batch, heads, seq, head_dim); cos, sin: (seq, head_dim).
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
        self.head_dim = settings.dim // settings.heads
        self.qkv = nn.Linear(settings.dim, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.output = nn.Linear(settings.dim, settings.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: (batch, seq, dim) → (batch, seq, dim); cos, sin: (seq, head_dim)."""
        batch, seq, dim = x.shape
        heads = self.qkv(x).view(batch, seq, -1, self.head_dim).transpose(1, 2)
        value = heads[:, -self.kv_heads :]
        turned = rotate(heads[:, : -self.kv_heads], cos, sin)  # queries and keys together: half the operations
        mixed = F.scaled_dot_product_attention(
            turned[:, : self.heads],
            turned[:, self.heads :],
            value,
            is_causal=True,
            enable_gqa=self.kv_heads != self.heads,
        )
        out: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, seq, dim))
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
    """One layer: attention, then SwiGLU, each on the normalised residual stream and added to it."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(settings.dim, settings.norm_eps)
        self.attention = Attention(settings)
        self.feed_forward_norm = RMSNorm(settings.dim, settings.norm_eps)
        self.feed_forward = SwiGLU(settings)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out


class Transformer(nn.Module):
    """The whole model. `forward(tokens)` gives logits, `forward(tokens, targets)` the summed loss."""

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
        the 2·layers additions leave its variance independent of depth (GPT-2). Norms start at 1."""
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                writes = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
                std = settings.init_std / (math.sqrt(2 * settings.layers) if writes else 1.0)
                nn.init.normal_(weight, std=std)

    @property
    def output_weight(self) -> Tensor:
        """(vocab, dim): the embedding itself when tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def hidden(self, tokens: Tensor) -> Tensor:
        """The normalised residual stream after the last layer: (batch, seq) int64 → (batch, seq, dim)."""
        x: Tensor = self.embedding(tokens)
        cos, sin = rotations(tokens.size(1), self.settings.dim // self.settings.heads, self.settings.rope_theta, x)
        for block in self.blocks:
            x = block(x, cos, sin)
        normed: Tensor = self.norm(x)
        return normed

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """tokens: (batch, seq) int64. Without targets: logits (batch, seq, vocab) in the model's dtype. With targets
        (batch, seq) int64, -100 where nothing counts: the SUM of the cross-entropy over the others, a fp32 scalar."""
        hidden = self.hidden(tokens)
        if targets is None:
            return F.linear(hidden, self.output_weight)
        return cross_entropy_sum(hidden.flatten(0, 1), self.output_weight, targets.flatten())

    def loss_sum(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Sum of the cross-entropy in nats over targets that are not -100, fp32; divide by their number yourself."""
        loss: Tensor = self(tokens, targets)
        return loss
