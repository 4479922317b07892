"""The recurrent baseline: an LSTM language model, trained by the same stage and loaded by `transformers`.

Importing this module registers model type `headwater_lstm`, so that `AutoModelForCausalLM.from_pretrained` and
`AutoModelForSequenceClassification.from_pretrained` load its directories.

Each layer adds to a residual stream, as in the Transformer: x ← x + lstm(norm(x)). Sources: Hochreiter & Schmidhuber
1997; Merity et al. 2017 (arXiv:1708.02182; tied embeddings, LSTM baselines).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast, SequenceClassifierOutputWithPast

from pipeline.model.loss import cross_entropy_sum
from pipeline.recipe import ModelSettings


class Lstm(nn.Module):
    """The network. `forward(tokens)` gives logits, `forward(tokens, targets)` the summed loss, as in Transformer."""

    def __init__(self, settings: ModelSettings, vocab_size: int) -> None:
        super().__init__()
        self.settings = settings
        dim = settings.dim
        self.embedding = nn.Embedding(vocab_size, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=settings.norm_eps) for _ in range(settings.layers))
        self.layers = nn.ModuleList(nn.LSTM(dim, dim, batch_first=True) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(dim, eps=settings.norm_eps)
        self.head = None if settings.tied_embeddings else nn.Linear(dim, vocab_size, bias=False)
        self._initialize(settings)

    def _initialize(self, settings: ModelSettings) -> None:
        """Embedding and output ~ N(0, init_std²); gates uniform in ±1/sqrt(dim) (PyTorch's default for LSTMs); the
        forget gate's bias starts at 1, so that early gradients reach far back (Jozefowicz et al. 2015)."""
        nn.init.normal_(self.output_weight, std=settings.init_std)
        nn.init.normal_(self.embedding.weight, std=settings.init_std)
        bound = 1.0 / math.sqrt(settings.dim)
        for layer in self.layers:
            for name, weight in layer.named_parameters():
                nn.init.uniform_(weight, -bound, bound)
                if name.startswith("bias_"):
                    nn.init.zeros_(weight)
                if name.startswith("bias_ih"):
                    nn.init.ones_(weight[settings.dim : 2 * settings.dim])  # order: input, forget, cell, output

    @property
    def output_weight(self) -> Tensor:
        """(vocab, dim): the embedding itself when tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def hidden(self, tokens: Tensor) -> Tensor:
        """The normalised residual stream after the last layer: (batch, seq) int64 → (batch, seq, dim)."""
        x: Tensor = self.embedding(tokens)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))[0]
        normed: Tensor = self.norm(x)
        return normed

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """As `Transformer.forward`: logits (batch, seq, vocab), or with targets the summed cross-entropy."""
        hidden = self.hidden(tokens)
        if targets is None:
            return F.linear(hidden, self.output_weight)
        return cross_entropy_sum(hidden.flatten(0, 1), self.output_weight, targets.flatten())

    def loss_sum(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Sum of the cross-entropy in nats over targets that are not -100, fp32."""
        loss: Tensor = self(tokens, targets)
        return loss


# --- for transformers ----------------------------------------------------------------------------------------------


class HeadwaterLstmConfig(PreTrainedConfig):  # type: ignore[misc]
    """Shape of an LSTM, under the names that Hugging Face uses for those of a Transformer."""

    model_type = "headwater_lstm"
    vocab_size: int = 32_768
    hidden_size: int = 768
    num_hidden_layers: int = 2
    max_position_embeddings: int = 2048
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def model_settings(self) -> ModelSettings:
        """The recipe's settings of this shape."""
        return ModelSettings(
            architecture="lstm",
            dim=self.hidden_size,
            layers=self.num_hidden_layers,
            max_seq_len=self.max_position_embeddings,
            norm_eps=self.layer_norm_eps,
            tied_embeddings=self.tie_word_embeddings,
            init_std=self.initializer_range,
        )


class _HeadwaterLstm(PreTrainedModel):  # type: ignore[misc]
    config_class = HeadwaterLstmConfig
    base_model_prefix = "model"

    def __init__(self, config: HeadwaterLstmConfig) -> None:
        super().__init__(config)
        self.model = Lstm(config.model_settings(), config.vocab_size)

    def _init_weights(self, module: nn.Module) -> None:
        """Lstm initialises itself; here only layers added by a task (the classifier) are set."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(batch, seq, dim). Padding is moved behind each row's tokens before the recurrence reads them, and back
        after it: a state must not have read padding, on whichever side it is."""
        if attention_mask is None:
            return self.model.hidden(input_ids)
        order = torch.argsort(attention_mask.ne(0).int(), dim=1, descending=True, stable=True)
        hidden = self.model.hidden(input_ids.gather(1, order))
        places = torch.argsort(order, dim=1)
        return hidden.gather(1, places[:, :, None].expand_as(hidden))


class HeadwaterLstmForCausalLM(_HeadwaterLstm, GenerationMixin):  # type: ignore[misc]
    """Next-token logits. It keeps no cache: each generated token reads the whole text again."""

    def __init__(self, config: HeadwaterLstmConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """labels: as input_ids, shifted here, -100 where nothing counts; the loss is their mean."""
        hidden = self._hidden(input_ids, attention_mask)
        logits = F.linear(hidden[:, -logits_to_keep:], self.model.output_weight)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": 1}


class HeadwaterLstmForSequenceClassification(_HeadwaterLstm):
    """One score a label, read from the last token of each text."""

    def __init__(self, config: HeadwaterLstmConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutputWithPast:
        """labels: (batch,) int64. Without attention_mask every position is text."""
        hidden = self._hidden(input_ids, attention_mask)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = torch.arange(input_ids.size(1), device=input_ids.device)
        last = (mask.ne(0) * positions).argmax(dim=1)
        logits = self.score(hidden[torch.arange(len(hidden), device=hidden.device), last])
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutputWithPast(loss=loss, logits=logits)


AutoConfig.register("headwater_lstm", HeadwaterLstmConfig)
AutoModelForCausalLM.register(HeadwaterLstmConfig, HeadwaterLstmForCausalLM)
AutoModelForSequenceClassification.register(HeadwaterLstmConfig, HeadwaterLstmForSequenceClassification)
