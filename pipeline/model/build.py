"""From settings to a model, and what it costs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pipeline.model.transformer import Transformer, ffn_width
from pipeline.recipe import ModelSettings


def build_model(settings: ModelSettings, vocab_size: int, seed: int) -> nn.Module:
    """A model with fresh weights in fp32 on the CPU: the same for the same seed, wherever and whenever it is built.

    `model(tokens)` gives logits, `model(tokens, targets)` and `model.loss_sum(tokens, targets)` the summed loss; see
    `Transformer.forward`. The global random state is left as it was.
    """
    kind: Callable[[ModelSettings, int], nn.Module] = Transformer
    if settings.architecture == "lstm":
        from pipeline.model.lstm import Lstm  # imports transformers, which takes seconds

        kind = Lstm
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(settings, vocab_size)


def parameter_count(settings: ModelSettings, vocab_size: int) -> int:
    """Number of trained weights; a tied embedding counts once."""
    dim, vocabulary = settings.dim, vocab_size * settings.dim
    embeddings = vocabulary * (1 if settings.tied_embeddings else 2)
    if settings.architecture == "lstm":
        # four gates read input and state, two bias vectors each (torch.nn.LSTM), a LayerNorm before each and at the end
        return embeddings + settings.layers * (8 * dim * dim + 8 * dim + 2 * dim) + 2 * dim
    return embeddings + settings.layers * (_block_matrices(settings) + 2 * dim) + dim


def flops_per_token(settings: ModelSettings, vocab_size: int, seq_len: int) -> float:
    """Floating-point operations of training on one token, forward and backward:

        6 · N_matmul + 6 · layers · seq_len · dim

    N_matmul: weights that multiply (all matrices and the output layer; not the embedding, which is looked up, nor
    norms and biases): 2 operations each forward, 4 backward. Attention: scores and mixing are 2 · 2 · seq_len · dim
    forward over all pairs, three times that with backward, and causality halves it. (PaLM, Chowdhery et al. 2022,
    appendix B, counts 12 · layers · seq_len · dim without the half.) Recomputation does not count. The LSTM has no
    second term.
    """
    if settings.architecture == "lstm":
        matmul, attention = settings.layers * 8 * settings.dim * settings.dim, 0
    else:
        matmul, attention = settings.layers * _block_matrices(settings), 6 * settings.layers * seq_len * settings.dim
    return 6.0 * (matmul + vocab_size * settings.dim) + attention


def _block_matrices(settings: ModelSettings) -> int:
    """Weights of one Transformer layer's matrices."""
    head_dim = settings.dim // settings.heads
    attention = 2 * settings.dim * settings.dim + 2 * settings.dim * head_dim * (settings.kv_heads or settings.heads)
    return attention + 3 * settings.dim * ffn_width(settings)
