"""The GPT-2 that `learn` compares with: Hugging Face's model, where the training loop expects ours."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.model.loss import cross_entropy_sum
from pipeline.recipe import ModelSettings


class Gpt2(nn.Module):
    """GPT2LMHeadModel with fresh weights: learned positions, LayerNorm, GELU, feed-forward of 4·dim, tied embeddings.

    No dropout: each token is seen once. The loss is made as that of our models is, so that what is compared is what
    was learnt, not how the last layer is computed.
    """

    def __init__(self, settings: ModelSettings, vocab_size: int, seed: int) -> None:
        super().__init__()
        config = GPT2Config(
            vocab_size=vocab_size,
            n_positions=settings.max_seq_len,
            n_embd=settings.dim,
            n_layer=settings.layers,
            n_head=settings.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = GPT2LMHeadModel(config)

    @property
    def output_weight(self) -> Tensor:
        """(vocab, dim), tied with the embedding."""
        weight: Tensor = self.model.lm_head.weight
        return weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """(batch, seq) int64 both → the summed cross-entropy in nats, fp32."""
        hidden = self.model.transformer(tokens).last_hidden_state
        return cross_entropy_sum(hidden.flatten(0, 1), self.output_weight, targets.flatten())
