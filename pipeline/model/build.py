"""From settings to a model, and what it costs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pipeline.errors import DataError
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


def rows_of_embedding(settings: ModelSettings, words: int) -> int:
    """Rows of the embedding for a tokenizer of so many words: as set, else as many.

    Raises: DataError when the model has fewer.
    """
    if settings.vocab_size is not None and settings.vocab_size < words:
        where = f"{settings.base} has" if settings.base else "model.vocab_size is"
        raise DataError(
            f"the tokenizer has {words:,} words, but {where} {settings.vocab_size:,}; use the model's own tokenizer "
            "(tokenizer.path), or raise model.vocab_size"
        )
    return settings.vocab_size or words


def parameter_count(settings: ModelSettings, vocab_size: int) -> int:
    """Number of trained weights; a tied embedding counts once."""
    dim, vocabulary = settings.dim, vocab_size * settings.dim
    embeddings = vocabulary * (1 if settings.tied_embeddings else 2)
    if settings.architecture == "lstm":
        # four gates read input and state, two bias vectors each (torch.nn.LSTM), a LayerNorm before each and at the end
        return embeddings + settings.layers * (8 * dim * dim + 8 * dim + 2 * dim) + 2 * dim
    width = settings.head_width
    biases = (settings.heads + 2 * (settings.kv_heads or settings.heads)) * width if settings.qkv_bias else 0
    norms = 2 * dim + (2 * width if settings.qk_norm else 0)
    return embeddings + settings.layers * (_block_matrices(settings) + biases + norms) + dim


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
        width = settings.heads * settings.head_width
        matmul, attention = settings.layers * _block_matrices(settings), 6 * settings.layers * seq_len * width
    return 6.0 * (matmul + vocab_size * settings.dim) + attention


def _block_matrices(settings: ModelSettings) -> int:
    """Weights of one Transformer layer's matrices."""
    queries = settings.heads * settings.head_width
    keys = settings.head_width * (settings.kv_heads or settings.heads)
    attention = 2 * settings.dim * queries + 2 * settings.dim * keys
    return attention + 3 * settings.dim * ffn_width(settings)
