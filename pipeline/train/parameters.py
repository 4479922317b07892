"""Which weights decay, and which are Muon's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipeline.recipe import OptimizerSettings


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """The optimizer's groups: weight decay on matrices, none on embeddings, norms and biases.

    With Muon the hidden matrices are its own; embeddings, the output layer, norms and biases stay with AdamW.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    last = _output_weight(model)
    hidden: list[nn.Parameter] = []
    output: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for weight in model.parameters():
        if weight.requires_grad and weight.ndim >= 2 and id(weight) not in embeddings:
            (output if weight is last else hidden).append(weight)
        elif weight.requires_grad:
            plain.append(weight)
    adam = {"lr": settings.learning_rate, "betas": (settings.beta1, settings.beta2), "eps": settings.epsilon}
    decayed, undecayed = adam | {"weight_decay": settings.weight_decay}, adam | {"weight_decay": 0.0}
    if settings.name == "adamw":
        groups = [{"params": hidden + output, **decayed}, {"params": plain, **undecayed}]
    else:
        for weight in model.parameters():
            weight.use_muon = any(weight is other for other in hidden)  # type: ignore[attr-defined]
        muon = {
            "lr": settings.muon_learning_rate,
            "momentum": settings.muon_momentum,
            "weight_decay": settings.weight_decay,
            "ns_method": "standard",
        }
        groups = [
            {"params": hidden, "use_muon": True, **muon},
            {"params": output, "use_muon": False, **decayed},
            {"params": plain, "use_muon": False, **undecayed},
        ]
    return [group for group in groups if group["params"]]


def _output_weight(model: nn.Module) -> Tensor | None:
    """The matrix that makes logits of words: of our models, or of Hugging Face's."""
    known: Any = model
    if hasattr(model, "output_weight"):
        return known.output_weight  # type: ignore[no-any-return]
    layer = known.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return None if layer is None else layer.weight
